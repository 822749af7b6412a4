"""Items made ahead: the same items, errors in their place, and no thread left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from runtime.audio.prefetch import prefetch


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")}


@pytest.mark.parametrize("ahead", [0, 1, 2, 100])
def test_the_same_items_in_order(ahead: int) -> None:
    assert list(prefetch(iter(range(50)), ahead)) == list(range(50))
    assert list(prefetch(iter([]), ahead)) == []
    assert not threads()


def test_an_error_comes_where_the_item_would_have() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise ValueError("damaged")

    ahead = prefetch(items(), 10)
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="damaged"):
        next(ahead)
    assert not threads()


def test_no_more_is_made_than_asked_for_and_leaving_early_ends_it() -> None:
    made: list[int] = []
    beyond = threading.Event()

    def items() -> Iterator[int]:
        for item in range(1000):
            made.append(item)
            if item == 3:
                beyond.set()
            yield item

    ahead = prefetch(items(), 3)
    assert next(ahead) == 0
    assert beyond.wait(10)  # the one given out, and three more, without anybody asking
    assert threads()
    ahead.close()
    assert len(made) <= 4
    assert not threads()
