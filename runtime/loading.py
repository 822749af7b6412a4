"""Load the parts of a model: graphs on their providers, and all at the same time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import onnxruntime as ort

from runtime.artifact import Artifact
from runtime.engine import EngineOptions
from runtime.prepared import prepared_graph
from runtime.session import make_session

First = TypeVar("First")
Second = TypeVar("Second")
Third = TypeVar("Third")


def load_together(
    first: Callable[[], First], second: Callable[[], Second], third: Callable[[], Third]
) -> tuple[First, Second, Third]:
    """What three loaders return, run in a thread each.

    ONNX Runtime and tokenizers load outside the interpreter's lock, so that a model's two graphs and its tokenizer take
    hardly longer than the slowest of them. All are finished when this returns or raises.

    Raises:
        whatever a loader raises: the first one's error, in the order of the arguments.
    """
    with ThreadPoolExecutor(3, thread_name_prefix="load") as pool:
        loading = pool.submit(first), pool.submit(second), pool.submit(third)
    return loading[0].result(), loading[1].result(), loading[2].result()


def open_graph(
    artifact: Artifact, role: str, options: EngineOptions, sizes: Mapping[str, int] | None = None
) -> ort.InferenceSession:
    """The graph with ``role`` on the providers that ``options`` name for it, prepared if this machine has prepared it.

    ``sizes`` are of dynamic dimensions, for providers that need to know them; errors are those of
    :func:`runtime.session.make_session`.
    """
    providers = options.providers_for(role)
    prepared = prepared_graph(artifact, role, providers)
    path = artifact.graph_path(role)
    return make_session(path, providers, threads=options.threads, dimensions=sizes, prepared=prepared)
