"""Load the parts of a model at the same time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

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
