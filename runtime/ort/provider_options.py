"""Options of each execution provider: names, defaults for speech recognition, and conversion for ONNX Runtime.

Names and values come from the sources of ONNX Runtime 1.31 (``*_provider_options``, ``coreml_options.cc``); OpenVINO's
are its properties. Options that hold addresses, or that need fixed shapes (CUDA graphs), are left out because they
cannot work here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from runtime.host.files import user_cache

# This project's own option of every provider: encode one window of full width at a time; the graph has fixed shapes.
FIXED_WINDOWS = "fixed_windows"
# Name of an OpenVINO property such as INFERENCE_PRECISION_HINT; OpenVINO itself refuses unknown ones.
PROPERTY = re.compile(r"[A-Z][A-Z0-9_]+")


class Options(msgspec.Struct, frozen=True):
    """Options of one provider.

    Attributes:
        names: of all options.
        defaults: values that differ from ONNX Runtime's defaults, by name.
        switches: names of options whose values are 0 and 1.
        choices: allowed values by name, for options that have a fixed list.
        properties: whether properties of OpenVINO are accepted too.
    """

    names: frozenset[str]
    defaults: dict[str, str] = {}
    switches: frozenset[str] = frozenset()
    choices: dict[str, tuple[str, ...]] = {}
    properties: bool = False


def _options(
    text: str, *, switches: str = "", choices: dict[str, tuple[str, ...]] | None = None, **others: object
) -> Options:
    """Make :class:`Options` from names separated by blanks; ``others`` are the remaining fields."""
    names = frozenset((*text.split(), *switches.split(), *(choices or {}), FIXED_WINDOWS))
    return msgspec.convert(
        {"names": names, "switches": frozenset(switches.split()), "choices": choices or {}, **others}, Options
    )


OPTIONS = {
    "cpu": _options(""),
    "cuda": _options(
        "device_id gpu_mem_limit sdpa_kernel tunable_op_max_tuning_duration_ms",
        switches="cudnn_conv1d_pad_to_nc1d cudnn_conv_use_max_workspace do_copy_in_default_stream "
        "enable_skip_layer_norm_strict_mode fuse_conv_bias prefer_nhwc tunable_op_enable tunable_op_tuning_enable "
        "use_ep_level_unified_stream use_tf32",
        choices={
            "arena_extend_strategy": ("kNextPowerOfTwo", "kSameAsRequested"),
            "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
        },
        defaults={
            # Keys and values are a few large buffers of known size: doubling the arena would waste up to half of it.
            "arena_extend_strategy": "kSameAsRequested",
            # An exhaustive search runs for each shape, and the last window of a segment can have one of eight shapes.
            "cudnn_conv_algo_search": "HEURISTIC",
            # ONNX Runtime's default is 1, which reduces the mantissa of float32 products to 10 bits. Here users opt in.
            "use_tf32": "0",
        },
    ),
    "tensorrt": _options(
        "device_id trt_auxiliary_streams trt_builder_optimization_level trt_engine_cache_path trt_engine_cache_prefix "
        "trt_extra_plugin_lib_paths trt_max_partition_iterations trt_max_workspace_size trt_min_subgraph_size "
        "trt_op_types_to_exclude trt_profile_max_shapes trt_profile_min_shapes trt_profile_opt_shapes "
        "trt_tactic_sources trt_timing_cache_path",
        switches="trt_bf16_enable trt_build_heuristics_enable trt_context_memory_sharing_enable trt_detailed_build_log "
        "trt_engine_cache_enable trt_engine_hw_compatible trt_force_sequential_engine_build trt_force_timing_cache "
        "trt_fp16_enable trt_int8_enable trt_layer_norm_fp32_fallback trt_sparsity_enable trt_timing_cache_enable",
        defaults={
            "trt_engine_cache_enable": "1",  # building an engine takes minutes
            "trt_timing_cache_enable": "1",
            FIXED_WINDOWS: "1",  # an engine is built for ranges of shapes; one shape needs no range
        },
    ),
    "coreml": _options(
        "ModelCacheDirectory",
        switches="AllowLowPrecisionAccumulationOnGPU EnableOnSubgraphs ProfileComputePlan RequireStaticInputShapes",
        choices={
            "ModelFormat": ("MLProgram", "NeuralNetwork"),
            "MLComputeUnits": ("ALL", "CPUAndNeuralEngine", "CPUAndGPU", "CPUOnly"),
            "SpecializationStrategy": ("Default", "FastPrediction"),
        },
        defaults={
            "ModelFormat": "MLProgram",
            "MLComputeUnits": "ALL",
            "RequireStaticInputShapes": "1",  # dynamic shapes keep a node off the Neural Engine, and compile each time
            FIXED_WINDOWS: "1",
        },
    ),
    "openvino": _options(
        "",
        choices={"device_type": ("CPU", "GPU", "NPU")},
        defaults={"device_type": "CPU"},
        properties=True,
    ),
    "directml": _options(
        "device_id",
        switches="disable_metacommands",
        choices={
            "performance_preference": ("default", "high_performance", "minimum_power"),
            "device_filter": ("gpu", "npu", "any"),
        },
        defaults={"performance_preference": "high_performance", FIXED_WINDOWS: "1"},
    ),
    "webgpu": _options(
        "adapterIndex forceCpuNodeNames maxNumPendingDispatches maxStorageBufferBindingSize",
        switches="enableInt64 enableRobustness enableMatmulFp32Accumulation",
        choices={
            "preferredLayout": ("NCHW", "NHWC"),
            "dawnBackendType": ("D3D12", "Vulkan"),
            "powerPreference": ("high-performance", "low-power"),
            "validationMode": ("disabled", "wgpuOnly", "basic", "full"),
            **{
                f"{kind}BufferCacheMode": ("disabled", "lazyRelease", "simple", "bucket")
                for kind in ("storage", "uniform", "queryResolve", "default")
            },
        },
        defaults={"powerPreference": "high-performance"},
    ),
}

# OpenVINO's own defaults are bfloat16 products where the processor supports them, and 8-bit activations with compressed
# weights. Both reduce precision, so that users opt in, on the CPU and on GPUs. An NPU supports half precision only.
_OPENVINO_EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


def settings(name: str, options: Mapping[str, str], *, graph: Path, threads: int) -> dict[str, str]:
    """Return all options of a provider for one graph by the names of :data:`OPTIONS`, without ``fixed_windows``.

    Args:
        name: the provider's short name.
        options: the user's options, which override the defaults.
        graph: the ``.onnx`` file; the cache of code compiled from it is separate from those of other models.
        threads: number of threads, for a provider that has its own threads.
    """
    merged = OPTIONS[name].defaults | dict(options)
    merged.pop(FIXED_WINDOWS, None)
    if name == "tensorrt":
        folder = cache_folder(name, graph)
        if folder is not None:
            merged.setdefault("trt_engine_cache_path", str(folder))
            merged.setdefault("trt_timing_cache_path", str(folder))
    if name == "openvino":
        device = merged["device_type"]
        defaults = _OPENVINO_EXACT if device != "NPU" else {}
        if device == "CPU":
            defaults = defaults | {"INFERENCE_NUM_THREADS": str(threads), "NUM_STREAMS": "1"}
        merged = defaults | merged
    return merged


def plugin_options(name: str, settings: Mapping[str, str]) -> dict[str, str]:
    """Convert settings for ``SessionOptions.add_provider_for_devices``, which gets the device as another argument."""
    if name != "openvino":
        return dict(settings)
    return {"load_config": _load_config(settings)}


def built_in_options(name: str, settings: Mapping[str, str]) -> dict[str, str]:
    """Convert settings for the ``providers`` of ``InferenceSession``."""
    if name != "openvino":
        return dict(settings)
    options = {"device_type": settings["device_type"], "load_config": _load_config(settings)}
    if threads := settings.get("INFERENCE_NUM_THREADS"):
        options["num_of_threads"] = threads  # this build reads the number from here; its default is 8
    return options


def _load_config(settings: Mapping[str, str]) -> str:
    """Return OpenVINO's properties as JSON, which its built-in provider and its plugin both read."""
    properties = {key: value for key, value in settings.items() if PROPERTY.fullmatch(key)}
    return json.dumps({settings["device_type"]: properties})


def cache_folder(name: str, graph: Path) -> Path | None:
    """Return the folder for code that a provider compiled from a graph, and create it if it does not exist.

    TensorRT looks up its engines by the graph's structure only, so that a graph with changed weights would run an
    engine with the old ones. Therefore the folder's name contains the manifest's hash, which changes with any file of
    the model. Returns None for a user without a home, or if the folder cannot be created.
    """
    cache = user_cache()
    if cache is None:
        return None
    manifest = graph.with_name("manifest.json")
    identity = manifest.read_bytes() if manifest.is_file() else f"{graph.resolve()} {graph.stat().st_mtime_ns}".encode()
    folder = cache / name / f"{hashlib.sha256(identity).hexdigest()[:16]}-{graph.stem}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # read-only home: every start compiles again
        return None
    return folder
