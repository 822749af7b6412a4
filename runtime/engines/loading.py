"""Load the parts of a model side by side: graphs on their providers, and the tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, overload

import onnxruntime as ort

from runtime.engines.base import EngineOptions
from runtime.host.memory import release_free_memory
from runtime.model.artifact import Artifact
from runtime.ort.prepacked import prepacked_graph
from runtime.ort.session import make_session

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")


@overload
def load_together(first: Callable[[], T1], second: Callable[[], T2], /) -> tuple[T1, T2]: ...


@overload
def load_together(
    first: Callable[[], T1], second: Callable[[], T2], third: Callable[[], T3], /
) -> tuple[T1, T2, T3]: ...


@overload
def load_together(*loaders: Callable[[], T]) -> tuple[T, ...]: ...


def load_together(*loaders: Callable[[], Any]) -> tuple[Any, ...]:
    """Run each loader in its own thread and return their results in order.

    ONNX Runtime and tokenizers load outside Python's global lock, so a model's graphs and tokenizer together take
    little longer than the slowest of them. All loaders have finished when this returns or raises.

    Raises:
        Exception: the error of the first loader that failed, in argument order.
    """
    with ThreadPoolExecutor(max(1, len(loaders)), thread_name_prefix="load") as pool:
        futures = [pool.submit(loader) for loader in loaders]
    release_free_memory()
    return tuple(future.result() for future in futures)


def open_graph(
    artifact: Artifact, role: str, options: EngineOptions, sizes: Mapping[str, int] | None = None
) -> ort.InferenceSession:
    """Open the graph with ``role`` on its providers; use the prepacked copy if this machine has one.

    Args:
        artifact: the opened artifact.
        role: the graph's role in the manifest, such as ``encoder``.
        options: providers by role, and threads.
        sizes: fixed sizes of dynamic dimensions by name, for providers that need them.

    Raises:
        ArtifactInvalidError: ONNX Runtime cannot load the graph.
        ProviderError: a provider is missing, inactive, or refuses the graph.
    """
    providers = options.providers_for(role)
    prepacked = prepacked_graph(artifact, role, providers)
    path = artifact.graph_path(role)
    return make_session(path, providers, threads=options.threads, dimensions=sizes, prepacked=prepacked)
