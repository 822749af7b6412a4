"""How far the times that a model gives to words are from those at which espeak began them, for every family."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np

from runtime.results import Word
from tools.tiny.evaluate import normalize

NEAR = 0.08  # seconds


@dataclass(frozen=True, slots=True)
class StartErrors:
    """Seconds, found minus true, of the starts of ``matched`` of ``spoken`` words; NaN when none was matched.

    ``mean`` and ``median`` are of the absolute error, ``bias`` is the mean with its sign, and ``near`` is the share
    that is at most 80 ms off.
    """

    spoken: int
    matched: int
    mean: float
    median: float
    bias: float
    near: float

    def sentence(self) -> str:
        """All of it in the card's words."""
        return (
            f"{self.mean * 1000:.0f} ms in the mean, {self.median * 1000:.0f} ms in the median, "
            f"{self.bias * 1000:+.0f} ms with the sign, {self.near:.1%} at most {NEAR * 1000:.0f} ms off "
            f"({self.matched:,} of {self.spoken:,} words)"
        )


def start_errors(found: Sequence[Word], marks: Sequence[tuple[float, str]]) -> list[float]:
    """Seconds, found minus true, of each word that both have: equal words without case and punctuation, in order.

    What counts is the start of a written word. Of one that is several without its punctuation (``10:45``), which is
    several to espeak too, the first alone has a time.

    Args:
        found: a text's words, as the runtime gives them.
        marks: the start (seconds) and the word, as ``Item.words`` has them.
    """
    ours = _apart((word.start, word.text) for word in found)
    true = _apart(marks)
    matcher = SequenceMatcher(None, [word for _, word in ours], [word for _, word in true], autojunk=False)
    errors = []
    for block in matcher.get_matching_blocks():
        pairs = zip(ours[block.a : block.a + block.size], true[block.b : block.b + block.size], strict=True)
        errors += [at - start for (at, _), (start, _) in pairs if at is not None and start is not None]
    return errors


def summary(utterances: Iterable[tuple[Sequence[Word], Sequence[tuple[float, str]]]]) -> StartErrors:
    """Figures over utterances, each the words that were found and the true marks."""
    errors: list[float] = []
    spoken = 0
    for found, marks in utterances:
        spoken += sum(start is not None for start, _ in _apart(marks))
        errors += start_errors(found, marks)
    if not errors:
        return StartErrors(spoken, 0, *[float("nan")] * 4)
    signed = np.array(errors)
    size = np.abs(signed)
    # A hair more than the bound: a difference of two decimal times is not exact.
    near = float((size <= NEAR + 1e-9).mean())
    return StartErrors(spoken, len(signed), float(size.mean()), float(np.median(size)), float(signed.mean()), near)


def _apart(words: Iterable[tuple[float, str]]) -> list[tuple[float | None, str]]:
    """Normalized words one by one, the time with the first of those that one mark gives."""
    parts: list[tuple[float | None, str]] = []
    for start, text in words:
        parts += [(None if index else start, part) for index, part in enumerate(normalize(text).split())]
    return parts
