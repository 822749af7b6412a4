"""Errors of word times against the starts that espeak reports."""

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
    """Errors of word starts in seconds (recognized minus true) of ``matched`` of ``spoken`` words; NaN without matches.

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
        """Return the figures as a sentence for the card."""
        return (
            f"{self.mean * 1000:.0f} ms in the mean, {self.median * 1000:.0f} ms in the median, "
            f"{self.bias * 1000:+.0f} ms with the sign, {self.near:.1%} at most {NEAR * 1000:.0f} ms off "
            f"({self.matched:,} of {self.spoken:,} words)"
        )


def start_errors(words: Sequence[Word], marks: Sequence[tuple[float, str]]) -> list[float]:
    """Return the error of each word start in seconds (recognized minus true), for words that are in both texts.

    Words are matched in order, without case and punctuation. A written word that has several parts without its
    punctuation (``10:45``), as it has for espeak, counts with its first part alone.

    Args:
        words: of a transcript.
        marks: start in seconds and word, as in ``Item.words``.
    """
    ours = _apart((word.start, word.text) for word in words)
    true = _apart(marks)
    matcher = SequenceMatcher(None, [word for _, word in ours], [word for _, word in true], autojunk=False)
    errors = []
    for block in matcher.get_matching_blocks():
        pairs = zip(ours[block.a : block.a + block.size], true[block.b : block.b + block.size], strict=True)
        errors += [at - start for (at, _), (start, _) in pairs if at is not None and start is not None]
    return errors


def summary(utterances: Iterable[tuple[Sequence[Word], Sequence[tuple[float, str]]]]) -> StartErrors:
    """Return the figures over utterances, each with its recognized words and true marks."""
    errors: list[float] = []
    spoken = 0
    for words, marks in utterances:
        spoken += sum(start is not None for start, _ in _apart(marks))
        errors += start_errors(words, marks)
    if not errors:
        return StartErrors(spoken, 0, *[float("nan")] * 4)
    signed = np.array(errors)
    size = np.abs(signed)
    # The difference of two decimal times is not exact.
    near = float((size <= NEAR + 1e-9).mean())
    return StartErrors(spoken, len(signed), float(size.mean()), float(np.median(size)), float(signed.mean()), near)


def _apart(words: Iterable[tuple[float, str]]) -> list[tuple[float | None, str]]:
    """Return normalized words one by one; of several parts of a mark only the first has its time."""
    parts: list[tuple[float | None, str]] = []
    for start, text in words:
        parts += [(None if index else start, part) for index, part in enumerate(normalize(text).split())]
    return parts
