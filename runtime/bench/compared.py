"""What the comparison of execution providers asks of a process, what comes back, and what is made of both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.bench.results import Spread

# A word, or a character of a script that has no spaces.
_UNIT = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f]|[^\s\u3040-\u30ff\u3400-\u9fff]+"
)


class Request(msgspec.Struct, frozen=True):
    """One provider's work, for a process of its own.

    ``outputs`` is the file for the graphs' outputs, and ``reference`` the reference's, None for the reference itself.
    ``new_tokens`` forces so many tokens a segment, to time a model that says nothing.
    """

    model: str
    providers: list[str]
    audio: list[str]
    runs: int
    threads: int | None
    new_tokens: int | None
    outputs: str
    reference: str | None = None


class Difference(msgspec.Struct, frozen=True):
    """How far a graph's outputs are from the reference's on the same inputs.

    ``relative`` is of the Euclidean norms; ``same_choices`` the share of rows with the same largest entry, for logits.
    """

    largest: float
    relative: float
    same_choices: float | None = None


class Measured(msgspec.Struct, frozen=True):
    """What one process measured. Seconds, of all audio; ``step`` of one token; ``peak_bytes`` of the process.

    ``placement`` counts nodes by role, provider and operator. ``texts`` and ``tokens`` are of each audio file.
    """

    load: float
    encode: Spread
    prefill: Spread
    step: Spread | None
    total: Spread
    audio_seconds: float
    peak_bytes: int
    placement: dict[str, dict[str, dict[str, int]]]
    differences: dict[str, Difference]
    texts: list[str]
    tokens: list[list[int]]
    versions: dict[str, str]

    @property
    def rtf(self) -> float:
        """Seconds of work a second of audio."""
        return self.total.median / self.audio_seconds


class Outcome(msgspec.Struct, frozen=True):
    """A provider's row: what was measured, or in a sentence why nothing was.

    ``first_difference`` is the place of the first token that is not the reference's, None where all are the same;
    ``identical`` counts files with the reference's tokens; ``word_errors`` is the error rate of the texts against the
    reference's, None where the reference has no words.
    """

    provider: str
    measured: Measured | None = None
    error: str | None = None
    first_difference: int | None = None
    identical: int | None = None
    word_errors: float | None = None


class Comparison(msgspec.Struct, frozen=True):
    """The whole comparison. ``reference`` says what the differences are from; ``machine`` is a ``Machine``."""

    model: str
    reference: str
    audio: list[str]
    audio_seconds: float
    runs: int
    new_tokens: int | None
    machine: dict[str, Any]
    outcomes: list[Outcome]


def difference(ours: npt.NDArray[Any], theirs: npt.NDArray[Any], *, choices: bool) -> Difference:
    """Compare two outputs of one shape; ``choices``: the largest entries along the last axis are decisions."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    norm = float(np.linalg.norm(b))
    return Difference(
        largest=float(np.max(np.abs(a - b), initial=0.0)),
        relative=float(np.linalg.norm(a - b)) / norm if norm else float(np.any(a != b)),
        same_choices=float((a.argmax(-1) == b.argmax(-1)).mean()) if choices else None,
    )


def worst(found: Sequence[Difference]) -> Difference:
    """The worst of each figure over several inputs."""
    choices = [each.same_choices for each in found if each.same_choices is not None]
    return Difference(
        max(each.largest for each in found),
        max(each.relative for each in found),
        min(choices) if choices else None,
    )


def compare_texts(provider: str, measured: Measured, reference: Measured) -> Outcome:
    """A provider's row beside the reference's tokens and texts."""
    pairs = list(zip(measured.tokens, reference.tokens, strict=True))
    firsts = [index for ours, theirs in pairs if (index := first_difference(ours, theirs)) is not None]
    texts = zip(measured.texts, reference.texts, strict=True)
    units = [(_UNIT.findall(theirs), _UNIT.findall(ours)) for ours, theirs in texts]
    said = sum(len(theirs) for theirs, _ in units)
    return Outcome(
        provider,
        measured,
        first_difference=min(firsts, default=None),
        identical=len(pairs) - len(firsts),
        word_errors=sum(edits(theirs, ours) for theirs, ours in units) / said if said else None,
    )


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Place of the first token that differs, counted from 0; None where there is none."""
    for index, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            return index
    return None if len(ours) == len(theirs) else min(len(ours), len(theirs))


def edits(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Levenshtein distance: substitutions, deletions and insertions that make one of the other."""
    row = list(range(len(hypothesis) + 1))
    for index, unit in enumerate(reference, start=1):
        above, row[0] = row[0], index
        for column, other in enumerate(hypothesis, start=1):
            above, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, above + (unit != other))
    return row[-1]
