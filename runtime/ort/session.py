"""Inference sessions: threads that follow what this process may use, and a provider that really is active."""

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
# Those that say that the file itself is wrong, whatever the provider.
_INVALID_ERRORS = (ort_errors.InvalidGraph, ort_errors.InvalidProtobuf, ort_errors.NoSuchFile)
_REASON = 320  # characters of somebody else's error
_FATAL = 4  # ONNX Runtime's severity
# Smaller weights of a prepared graph stay in the graph's own file, and are packed when it is loaded.
_EXTERNAL_BYTES = 1024
# ONNX Runtime 1.31 lets packed weights of more than 1 MiB begin at a page, and smaller ones wherever the file has come
# to. Mapped from there those of MatMulNBits are read wrong: its kernels look for their parts from the next address
# that 64 divides. Where such would be, only the large ones go into the file.
_PAGED_BYTES = 1 << 20
_ALIGNMENT = 64
_PACKED_AT = re.compile(rb"MatMulNBits\+\d+\|(\d+);")  # in the graph: operator, hash, offset


@functools.cache
def _share_arena() -> None:
    """One arena for the activations of all sessions of this process: graphs run one after the other, and each would
    keep its own otherwise (30 MB at 0.6B, of under 1 GB in all).
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    try:
        ort.create_and_register_allocator(memory, ort.OrtArenaCfg({}))
    except _LOAD_ERRORS as error:  # somebody else in this process has registered theirs, which is as good
        log.debug("no arena of our own: %s", error)


def save_prepacked(path: Path, target: Path) -> None:
    """Write the graph in ``path`` as this machine would run it: optimized, its weights packed for the CPU's kernels.

    Large weights go into a file beside ``target``, from which ONNX Runtime maps them when it loads the graph.

    Raises:
        ArtifactInvalidError: ONNX Runtime cannot load the graph, or cannot write the other.
    """
    _save_prepacked(path, target, _EXTERNAL_BYTES)
    if any(int(offset) % _ALIGNMENT for offset in _PACKED_AT.findall(target.read_bytes())):
        _save_prepacked(path, target, _PAGED_BYTES)


def _save_prepacked(path: Path, target: Path, external_bytes: int) -> None:
    data = target.with_name(f"{target.name}.data")
    for written in (target, data):
        written.unlink(missing_ok=True)
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
        raise ArtifactInvalidError(f"{path}: ONNX Runtime cannot prepare this graph ({_reason(error)})") from error


class _ProviderSession(ort.InferenceSession):  # type: ignore[misc]  # onnxruntime has no types
    """A session whose provider can fail while it runs, which then is an error of ours."""

    def __init__(self, path: Path, options: ort.SessionOptions, asked: str, **more: Any) -> None:
        self._asked, self._file = asked, path.name
        # Unless told so, ONNX Runtime prints to standard output when a provider fails, and goes on with the CPU alone.
        super().__init__(path, options, enable_fallback=0, **more)

    @contextmanager
    def _running(self) -> Iterator[None]:
        try:
            yield
        except (*_LOAD_ERRORS, RuntimeError) as error:
            raise ProviderError(f"{self._file} failed while it ran on {self._asked} ({_reason(error)})") from error

    def run(self, *arguments: Any, **more: Any) -> Any:
        """As the base's."""
        with self._running():
            return super().run(*arguments, **more)

    def run_with_iobinding(self, *arguments: Any, **more: Any) -> None:
        """As the base's."""
        with self._running():
            super().run_with_iobinding(*arguments, **more)


def make_session(
    path: Path,
    provider: ProviderSpec | Sequence[ProviderSpec],
    *,
    threads: int | None = None,
    dimensions: Mapping[str, int] | None = None,
    prepacked: Path | None = None,
) -> ort.InferenceSession:
    """Open a graph on one provider, or on several in order of priority; the CPU takes what they leave.

    A warning says which nodes that is: :func:`placement` has the counts.

    Args:
        path: the ``.onnx`` file; external data is found beside it and mapped.
        provider: what was asked for. Each must become active, and some node run on one of them.
        threads: intra-op threads; :func:`runtime.ort.threads.usable_cores` when None.
        dimensions: sizes of dynamic dimensions by their names, for providers that need to know them.
        prepacked: what :func:`runtime.ort.prepacked.prepacked_graph` says of this graph: loaded in its place, unless None.

    Raises:
        ProviderError: a provider did not become active, refuses the graph or an option, or takes no node of it.
        ArtifactInvalidError: ONNX Runtime cannot load the graph.
    """
    specs = (provider,) if isinstance(provider, ProviderSpec) else tuple(provider)
    check_order(specs)
    threads = threads or usable_cores()
    options = ort.SessionOptions()
    apply_threads(options, threads)
    options.log_severity_level = 3
    if prepacked:
        path, options.graph_optimization_level = prepacked, ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is done
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
    """The session, with providers that are built in, plugins, or both."""
    wanted = [settings(spec.name, spec.options, graph=path, threads=threads) for spec in specs]
    if any(spec.name == "directml" for spec in specs):
        options.enable_mem_pattern = False  # DirectML cannot have it
    if any(spec.name != "cpu" for spec in specs):
        # Some log by the environment's level, a line for every node; what fails comes back as an error all the same.
        ort.set_default_logger_severity(_FATAL)
        options.log_severity_level = _FATAL
    built_in = [is_built_in(spec) for spec in specs]
    if all(built_in):
        chosen = [
            (spec.execution_provider, built_in_options(spec.name, its)) for spec, its in zip(specs, wanted, strict=True)
        ]
        if specs[0].name == "cpu":
            return ort.InferenceSession(path, options, providers=chosen)
        return _ProviderSession(path, options, describe(specs), providers=chosen)
    for spec, its, here in zip(specs, wanted, built_in, strict=True):
        if not here:
            device = plugin_device(spec, its)
            options.add_provider_for_devices([device], plugin_options(spec.name, its))
        elif spec.name != "cpu":
            options.add_provider(spec.execution_provider, built_in_options(spec.name, its))
    return _ProviderSession(path, options, describe(specs))


def _reason(error: BaseException) -> str:
    """What an error says in one line: without ONNX Runtime's code, and without the places in OpenVINO's sources."""
    said = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip())
    said = re.sub(r"Exception from \S+:\d+:", "", said)
    line = " ".join(said.split()) or type(error).__name__
    # Those of OpenVINO's build name C++ functions with all their types before they come to the point.
    return line if len(line) <= _REASON else f"{line[: _REASON // 4]} … {line[-_REASON * 3 // 4 :]}"


def placement(session: ort.InferenceSession) -> dict[str, dict[str, int]]:
    """Nodes of a session's graph by the provider that runs them (its short name), then by operator.

    The nodes are those that ONNX Runtime shared out: after constants are folded, before a provider joins nodes into
    kernels of its own.
    """
    counts: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        nodes = counts.setdefault(short_name(part.ep_name), Counter())
        nodes.update(node.op_type for node in part.get_nodes())
    return {name: dict(nodes.most_common()) for name, nodes in counts.items()}


def _check_placement(session: ort.InferenceSession, specs: Sequence[ProviderSpec], path: Path) -> None:
    """What was asked for must be active and have work to do; what fell to the CPU is said."""
    active = session.get_providers()
    accelerators = [spec for spec in specs if spec.name != "cpu"]
    for spec in specs:
        if spec.execution_provider not in active:
            raise ProviderError(
                f"provider {spec.name!r} was asked for, but ONNX Runtime made {active[0]} active for {path.name}"
            )
    if not accelerators:
        return
    counts = {name: sum(nodes.values()) for name, nodes in placement(session).items()}
    total = sum(counts.values())
    idle = [spec.name for spec in accelerators if not counts.get(spec.name)]
    if len(idle) == len(accelerators):
        raise ProviderError(
            f"{' and '.join(idle)} can run none of the {total} nodes of {path.name}; ask for another provider for this "
            "graph, such as --decoder-provider cpu"
        )
    if idle:
        log.info("%s: %s has no node: those before it take all that it could", path.name, ", ".join(idle))
    if fallen := counts.get("cpu", 0):
        nodes = ", ".join(f"{count} {name}" for name, count in placement(session)["cpu"].items())
        log.warning("%s: %d of %d nodes run on the CPU: %s", path.name, fallen, total, nodes)
