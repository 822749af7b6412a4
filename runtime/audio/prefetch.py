"""Produce items of an iterator in a thread while the caller works on earlier ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterator[T], ahead: int = 2) -> Generator[T, None, None]:
    """Yield ``items``, of which up to ``ahead`` are produced in advance by another thread.

    Used to read, decode and cut audio while a model runs; these operations release Python's lock. Closing the generator
    waits for the item in progress and ends the thread. Close what ``items`` reads from only after that. An exception of
    ``items`` is raised at the position of the item.

    Args:
        items: the iterator; used by one thread only.
        ahead: number of items, at least 1.
    """
    end = object()  # marks the end of the items
    with ThreadPoolExecutor(1, "prefetch") as thread:
        pending = deque(thread.submit(next, items, end) for _ in range(max(1, ahead)))
        try:
            while (item := pending.popleft().result()) is not end:
                pending.append(thread.submit(next, items, end))
                yield item  # type: ignore[misc]  # an item, not the mark
        finally:
            for future in pending:
                future.cancel()
