"""Open inference sessions with threads for the usable cores, on providers that are checked to be active."""

from __future__ import annotations

import functools
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from runtime.errors import ArtifactInvalidError, ProviderError
from runtime.ort.provider_options import built_in_options, plugin_options, settings
from runtime.ort.providers import ProviderSpec, check_order, describe, is_built_in, plugin_device, short_name
from runtime.ort.threads import apply_threads, usable_cores

log = logging.getLogger(__name__)

# ONNX Runtime's errors have no common base class of their own.
_LOAD_ERRORS = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)
# Those that mean that the file itself is invalid, whatever the provider.
_INVALID_ERRORS = (ort_errors.InvalidGraph, ort_errors.InvalidProtobuf, ort_errors.NoSuchFile)
_MAX_REASON = 320  # characters of another library's error message
_FATAL = 4  # severity level of ONNX Runtime's logger
# Weights of a prepacked graph that are smaller than this stay in the graph's own file and are packed at each load.
_EXTERNAL_BYTES = 1024
# Last version (major, minor) of ONNX Runtime with this defect: in the file of packed weights, weights of more than
# 1 MiB begin at a page, and smaller ones at any offset. The kernels of MatMulNBits look for the parts of their weights
# from the next address that is a multiple of 64, so that weights mapped from another address are read wrong. For a
# graph with such weights, only the large ones go into the file. Seen with 1.31.1; 1.31 is the oldest version that this
# project supports. Raise this version if the tests that compare prepacked graphs with plain ones fail with a newer one.
LAST_UNALIGNED_VERSION = (1, 31)
_PAGED_BYTES = 1 << 20
_ALIGNMENT = 64
_PACKED_OFFSET = re.compile(rb"MatMulNBits\+\d+\|(\d+);")  # in the serialized graph: operator, hash, offset in the file


@functools.cache
def _share_arena() -> None:
    """Share one arena for activations among all sessions of this process.

    Graphs run one after another; with an arena of its own, each would keep memory (30 MB of under 1 GB in total for the
    0.6B model).
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    try:
        ort.create_and_register_allocator(memory, ort.OrtArenaCfg({}))
    except _LOAD_ERRORS as error:  # other code in this process registered an arena, which serves as well
        log.debug("cannot register an arena: %s", error)


def save_prepacked(path: Path, target: Path) -> None:
    """Write the graph in ``path`` optimized for this machine, with weights packed for the CPU's kernels.

    Large weights go into a file beside ``target``, from which ONNX Runtime maps them when it loads the graph.

    Raises:
        ArtifactInvalidError: ONNX Runtime cannot load the graph.
        ArtifactInvalidError: ONNX Runtime cannot write the prepacked graph.
    """
    _save_prepacked(path, target, _EXTERNAL_BYTES)
    if not misreads_unaligned_weights(ort.__version__):
        log.debug(
            "%s: offsets of packed weights are not checked, as onnxruntime %s is newer than %d.%d",
            path.name,
            ort.__version__,
            *LAST_UNALIGNED_VERSION,
        )
    elif any(int(offset) % _ALIGNMENT for offset in _PACKED_OFFSET.findall(target.read_bytes())):
        _save_prepacked(path, target, _PAGED_BYTES)


def misreads_unaligned_weights(version: str) -> bool:
    """Whether a version of ONNX Runtime misreads small packed weights at offsets that are not multiples of 64.

    Args:
        version: such as ``1.31.1``; development builds and release candidates count as their release.
    """
    major, minor = version.split(".")[:2]
    return (int(major), int(minor)) <= LAST_UNALIGNED_VERSION


def _save_prepacked(path: Path, target: Path, external_bytes: int) -> None:
    """Write the graph once; weights of at least ``external_bytes`` bytes go into the file of packed weights."""
    data = target.with_name(f"{target.name}.data")
    for file in (target, data):
        file.unlink(missing_ok=True)
    options = ort.SessionOptions()
    apply_threads(options)
    options.log_severity_level = 3
    options.optimized_model_filepath = str(target)
    prefix = "session.optimized_model_external_initializers_"
    options.add_session_config_entry(prefix + "file_name", data.name)
    options.add_session_config_entry(prefix + "min_size_in_bytes", str(external_bytes))
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    try:
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except _LOAD_ERRORS as error:
        raise ArtifactInvalidError(f"{path}: ONNX Runtime cannot prepack this graph ({_reason(error)})") from error


class _ProviderSession(ort.InferenceSession):  # type: ignore[misc]  # onnxruntime has no types
    """A session that raises :class:`ProviderError` if its provider fails while it runs."""

    def __init__(self, path: Path, options: ort.SessionOptions, providers_text: str, **others: Any) -> None:
        """``providers_text`` names the providers in errors; ``others`` are arguments of ``InferenceSession``."""
        self._providers_text, self._file = providers_text, path.name
        # By default, ONNX Runtime prints to standard output when a provider fails, and continues on the CPU alone.
        super().__init__(path, options, enable_fallback=0, **others)

    @contextmanager
    def _running(self) -> Iterator[None]:
        try:
            yield
        except (*_LOAD_ERRORS, RuntimeError) as error:
            message = f"{self._file} failed while it ran on {self._providers_text} ({_reason(error)})"
            raise ProviderError(message) from error

    def run(self, *arguments: Any, **options: Any) -> Any:
        """Run the graph with arrays.

        Raises:
            ProviderError: the provider fails.
        """
        with self._running():
            return super().run(*arguments, **options)

    def run_with_iobinding(self, *arguments: Any, **options: Any) -> None:
        """Run the graph with bound inputs and outputs.

        Raises:
            ProviderError: the provider fails.
        """
        with self._running():
            super().run_with_iobinding(*arguments, **options)


def make_session(
    path: Path,
    provider: ProviderSpec | Sequence[ProviderSpec],
    *,
    threads: int | None = None,
    dimensions: Mapping[str, int] | None = None,
    prepacked: Path | None = None,
) -> ort.InferenceSession:
    """Open a graph on one provider, or on several in order of priority. The CPU runs the nodes that they refuse.

    Logs a warning with the nodes of an accelerated graph that run on the CPU; :func:`placement` has the counts.

    Args:
        path: the ``.onnx`` file; external data is read from its folder and mapped.
        provider: each provider must become active, and at least one accelerator must run some node.
        threads: intra-op threads; :func:`runtime.ort.threads.usable_cores` if None.
        dimensions: sizes of dynamic dimensions by name, for providers that need fixed sizes.
        prepacked: prepacked graph from :func:`runtime.ort.prepacked.prepacked_graph` to load instead of ``path``.

    Raises:
        ProviderError: a provider did not become active.
        ProviderError: a provider refuses the graph or an option.
        ProviderError: no accelerator can run any node of the graph.
        ArtifactInvalidError: ONNX Runtime cannot load the graph.
    """
    specs = (provider,) if isinstance(provider, ProviderSpec) else tuple(provider)
    check_order(specs)
    threads = threads or usable_cores()
    options = ort.SessionOptions()
    apply_threads(options, threads)
    options.log_severity_level = 3
    if prepacked:  # optimized already
        path, options.graph_optimization_level = prepacked, ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    _share_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for name, size in (dimensions or {}).items():
        options.add_free_dimension_override_by_name(name, size)
    try:
        session = _open(path, options, specs, threads)
    except _INVALID_ERRORS as error:
        raise ArtifactInvalidError(f"{path}: ONNX Runtime cannot load this graph ({_reason(error)})") from error
    except ProviderError:
        raise
    except (*_LOAD_ERRORS, RuntimeError, ValueError) as error:
        if specs[0].name == "cpu":
            raise ArtifactInvalidError(f"{path}: ONNX Runtime cannot load this graph ({_reason(error)})") from error
        raise ProviderError(f"{path.name} cannot run on {describe(specs)} ({_reason(error)})") from error
    _check_placement(session, specs, path)
    return session


def _open(path: Path, options: ort.SessionOptions, specs: Sequence[ProviderSpec], threads: int) -> ort.InferenceSession:
    """Open a session with providers that are built in, plugins, or both."""
    provider_settings = [settings(spec.name, spec.options, graph=path, threads=threads) for spec in specs]
    if any(spec.name == "directml" for spec in specs):
        options.enable_mem_pattern = False  # DirectML does not support it
    if any(spec.name != "cpu" for spec in specs):
        # Some providers log one line for every node at the environment's level. Failures are raised as errors anyway.
        ort.set_default_logger_severity(_FATAL)
        options.log_severity_level = _FATAL
    built_in = [is_built_in(spec) for spec in specs]
    if all(built_in):
        providers = [
            (spec.execution_provider, built_in_options(spec.name, values))
            for spec, values in zip(specs, provider_settings, strict=True)
        ]
        if specs[0].name == "cpu":
            return ort.InferenceSession(path, options, providers=providers)
        return _ProviderSession(path, options, describe(specs), providers=providers)
    for spec, values, is_in_build in zip(specs, provider_settings, built_in, strict=True):
        if not is_in_build:
            device = plugin_device(spec, values)
            options.add_provider_for_devices([device], plugin_options(spec.name, values))
        elif spec.name != "cpu":
            options.add_provider(spec.execution_provider, built_in_options(spec.name, values))
    return _ProviderSession(path, options, describe(specs))


def _reason(error: BaseException) -> str:
    """Return an error's message in one line, without ONNX Runtime's error code and OpenVINO's source locations."""
    message = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip())
    message = re.sub(r"Exception from \S+:\d+:", "", message)
    line = " ".join(message.split()) or type(error).__name__
    # OpenVINO's messages begin with C++ functions and all their types; the cause comes last.
    return line if len(line) <= _MAX_REASON else f"{line[: _MAX_REASON // 4]} … {line[-_MAX_REASON * 3 // 4 :]}"


def placement(session: ort.InferenceSession) -> dict[str, dict[str, int]]:
    """Count the nodes of a session's graph by the provider that runs them (its short name), then by operator.

    The nodes are those that ONNX Runtime assigned to providers: after it folded constants, before a provider fuses
    nodes into its own kernels.
    """
    counts: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        nodes = counts.setdefault(short_name(part.ep_name), Counter())
        nodes.update(node.op_type for node in part.get_nodes())
    return {name: dict(nodes.most_common()) for name, nodes in counts.items()}


def _check_placement(session: ort.InferenceSession, specs: Sequence[ProviderSpec], path: Path) -> None:
    """Check that the requested providers are active and run nodes, and log the nodes that run on the CPU.

    Raises:
        ProviderError: a provider is not active.
        ProviderError: no accelerator runs any node.
    """
    active = session.get_providers()
    accelerators = [spec for spec in specs if spec.name != "cpu"]
    for spec in specs:
        if spec.execution_provider not in active:
            raise ProviderError(
                f"provider {spec.name!r} was requested, but ONNX Runtime activated {active[0]} for {path.name}"
            )
    if not accelerators:
        return
    counts = {name: sum(nodes.values()) for name, nodes in placement(session).items()}
    total = sum(counts.values())
    idle = [spec.name for spec in accelerators if not counts.get(spec.name)]
    if len(idle) == len(accelerators):
        raise ProviderError(
            f"{' and '.join(idle)} can run none of the {total} nodes of {path.name}; choose another provider for "
            "this graph, such as --decoder-provider cpu"
        )
    if idle:
        log.info("%s: %s runs no node: providers before it run all that it supports", path.name, ", ".join(idle))
    if on_cpu := counts.get("cpu", 0):
        nodes = ", ".join(f"{count} {name}" for name, count in placement(session)["cpu"].items())
        log.warning("%s: %d of %d nodes run on the CPU: %s", path.name, on_cpu, total, nodes)
