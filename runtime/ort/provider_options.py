"""Options of each execution provider: which there are, the defaults that suit this work, and how ONNX Runtime takes
them.

Names and values are those of ONNX Runtime 1.31's sources (``*_provider_options``, ``coreml_options.cc``), OpenVINO's
those of its properties. Options that hold addresses, or that need shapes which do not change (CUDA graphs), are left
out: they cannot work here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

# Ours, for every provider: the encoder gets one window at a time, always of full width, and its graph fixed shapes.
FIXED_WINDOWS = "fixed_windows"
# A property of OpenVINO, such as INFERENCE_PRECISION_HINT; OpenVINO itself refuses those it does not know.
PROPERTY = re.compile(r"[A-Z][A-Z0-9_]+")


class Options(msgspec.Struct, frozen=True):
    """Options of one provider.

    ``names`` are all it has, ``switches`` those that are 0 or 1, ``choices`` those with few values. ``properties``:
    properties of OpenVINO are taken as well.
    """

    names: frozenset[str]
    defaults: dict[str, str] = {}
    switches: frozenset[str] = frozenset()
    choices: dict[str, tuple[str, ...]] = {}
    properties: bool = False


def _options(
    text: str, *, switches: str = "", choices: dict[str, tuple[str, ...]] | None = None, **more: object
) -> Options:
    names = frozenset((*text.split(), *switches.split(), *(choices or {}), FIXED_WINDOWS))
    return msgspec.convert(
        {"names": names, "switches": frozenset(switches.split()), "choices": choices or {}, **more}, Options
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
            # Keys and values are few large buffers of known size: doubling the arena would waste up to half of it.
            "arena_extend_strategy": "kSameAsRequested",
            # An exhaustive search is made anew for each shape, and the last window of a segment can have any of eight.
            "cudnn_conv_algo_search": "HEURISTIC",
            # ONNX Runtime's default is 1: products of float32 with 10 bits of mantissa. That must be asked for.
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
            FIXED_WINDOWS: "1",  # an engine is built for ranges of shapes; one shape needs none
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

# OpenVINO's own defaults are bfloat16 products where the processor has them, and activations in 8 bits before
# compressed weights: neither is to happen unasked. A GPU counts the same; an NPU knows half precision alone.
_OPENVINO_EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


def settings(name: str, given: Mapping[str, str], *, graph: Path, threads: int) -> dict[str, str]:
    """All options of a provider for one graph, given ones over defaults, by the names of :data:`OPTIONS`.

    Args:
        name: the provider's short name.
        given: what was asked for.
        graph: the ``.onnx`` file; a cache of what is compiled from it is kept apart from those of other models.
        threads: threads of a provider that has threads of its own.
    """
    made = OPTIONS[name].defaults | dict(given)
    made.pop(FIXED_WINDOWS, None)
    if name == "tensorrt":
        folder = cache_folder(name, graph)
        if folder is not None:
            made.setdefault("trt_engine_cache_path", str(folder))
            made.setdefault("trt_timing_cache_path", str(folder))
    if name == "openvino":
        device = made["device_type"]
        own = _OPENVINO_EXACT if device != "NPU" else {}
        if device == "CPU":
            own = own | {"INFERENCE_NUM_THREADS": str(threads), "NUM_STREAMS": "1"}
        made = own | made
    return made


def plugin_options(name: str, settings: Mapping[str, str]) -> dict[str, str]:
    """Settings as ``SessionOptions.add_provider_for_devices`` takes them; the device itself is chosen apart."""
    if name != "openvino":
        return dict(settings)
    return {"load_config": _load_config(settings)}


def built_in_options(name: str, settings: Mapping[str, str]) -> dict[str, str]:
    """Settings as the ``providers`` of ``InferenceSession`` take them."""
    if name != "openvino":
        return dict(settings)
    made = {"device_type": settings["device_type"], "load_config": _load_config(settings)}
    if threads := settings.get("INFERENCE_NUM_THREADS"):
        made["num_of_threads"] = threads  # this build counts them here, 8 by default
    return made


def _load_config(settings: Mapping[str, str]) -> str:
    """OpenVINO's properties as the JSON that both forms of its provider take."""
    properties = {key: value for key, value in settings.items() if PROPERTY.fullmatch(key)}
    return json.dumps({settings["device_type"]: properties})


def cache_folder(name: str, graph: Path) -> Path | None:
    """Where a provider keeps what it compiled from a graph, made if need be; None for a user without a home.

    TensorRT finds its engines by the graph's structure alone, so weights that changed would be served from an engine
    with the old ones: the folder's name has the manifest's hash, which changes with any file of the model.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        home = Path(base) if base else Path.home() / ".cache"
    except RuntimeError:
        return None
    manifest = graph.with_name("manifest.json")
    said = manifest.read_bytes() if manifest.is_file() else f"{graph.resolve()} {graph.stat().st_mtime_ns}".encode()
    folder = home / "asr-deploy" / name / f"{hashlib.sha256(said).hexdigest()[:16]}-{graph.stem}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a read-only home: every start compiles anew
        return None
    return folder
