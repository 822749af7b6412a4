"""Inference sessions: threads that follow what this process may use, and a provider that really is active."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from runtime.errors import ArtifactInvalidError, ProviderError
from runtime.providers import ProviderSpec
from runtime.threads import apply_threads

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

# Smaller weights of a prepared graph stay in the graph's own file.
_EXTERNAL_BYTES = 1024


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
    options = ort.SessionOptions()
    apply_threads(options)
    options.log_severity_level = 3
    options.optimized_model_filepath = str(target)
    prefix = "session.optimized_model_external_initializers_"
    options.add_session_config_entry(prefix + "file_name", f"{target.name}.data")
    options.add_session_config_entry(prefix + "min_size_in_bytes", str(_EXTERNAL_BYTES))
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    try:
        ort.InferenceSession(path, options, providers=ProviderSpec().onnxruntime())
    except _LOAD_ERRORS as error:
        reason = str(error).strip().splitlines()[0]
        raise ArtifactInvalidError(f"{path}: ONNX Runtime cannot prepare this graph ({reason})") from error


def make_session(
    path: Path, provider: ProviderSpec, *, threads: int | None = None, prepared: Path | None = None
) -> ort.InferenceSession:
    """Open a graph on ``provider``.

    Args:
        path: the ``.onnx`` file; external data is found beside it and mapped.
        provider: what was asked for; it must become the session's first provider.
        threads: intra-op threads; :func:`runtime.threads.usable_cores` when None.
        prepared: what :func:`runtime.prepared.prepared_graph` says of this graph: loaded in its place, unless None.

    Raises:
        ProviderError: the provider did not become active.
        ArtifactInvalidError: ONNX Runtime cannot load the graph.
    """
    options = ort.SessionOptions()
    apply_threads(options, threads)
    options.log_severity_level = 3
    _share_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    if prepared:
        path, options.graph_optimization_level = prepared, ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is done
    try:
        session = ort.InferenceSession(path, options, providers=provider.onnxruntime())
    except _LOAD_ERRORS as error:
        reason = str(error).strip().splitlines()[0]
        raise ArtifactInvalidError(f"{path}: ONNX Runtime cannot load this graph ({reason})") from error
    active = session.get_providers()
    if active[0] != provider.execution_provider:
        raise ProviderError(
            f"provider {provider.name!r} was asked for, but ONNX Runtime made {active[0]} active for {path.name}"
        )
    return session
