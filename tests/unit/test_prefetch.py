"""Tests of prefetching: same items, errors at their position, and no remaining thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from runtime.audio.prefetch import prefetch


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")}


@pytest.mark.parametrize("ahead", [0, 1, 2, 100])
def test_items_are_the_same_in_order(ahead: int) -> None:
    assert list(prefetch(iter(range(50)), ahead)) == list(range(50))
    assert list(prefetch(iter([]), ahead)) == []
    assert not threads()


def test_error_is_raised_at_the_position_of_its_item() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise ValueError("damaged")

    ahead = prefetch(items(), 10)
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="damaged"):
        next(ahead)
    assert not threads()


def test_number_of_items_in_advance_and_closing_early() -> None:
    produced: list[int] = []
    beyond = threading.Event()

    def items() -> Iterator[int]:
        for item in range(1000):
            produced.append(item)
            if item == 3:
                beyond.set()
            yield item

    ahead = prefetch(items(), 3)
    assert next(ahead) == 0
    assert beyond.wait(10)  # the item that was returned and three in advance
    assert threads()
    ahead.close()
    assert len(produced) <= 4
    assert not threads()
