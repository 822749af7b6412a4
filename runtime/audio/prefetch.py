"""Making the next items while the last ones are worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterator[T], ahead: int = 2) -> Generator[T, None, None]:
    """``items``, up to ``ahead`` of them made beforehand in a thread of their own.

    For reading, decoding and cutting audio beside a model: these release Python's lock. An error comes where the item
    would have. Closing the generator waits for the item that is being made, and leaves no thread behind; only then
    close what ``items`` reads from.
    """
    end = object()
    with ThreadPoolExecutor(1, "prefetch") as thread:
        waiting = deque(thread.submit(next, items, end) for _ in range(max(1, ahead)))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(next, items, end))
                yield item  # type: ignore[misc]  # not the end
        finally:
            for future in waiting:
                future.cancel()
