"""Data of a comparison of execution providers: request, measurements, differences, outcome."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.bench.results import Spread

# A word, or a character of a script without spaces.
_UNIT = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f]|[^\s\u3040-\u30ff\u3400-\u9fff]+"
)


class Request(msgspec.Struct, frozen=True):
    """What the process of one provider measures.

    Attributes:
        model: folder of the artifact.
        providers: providers in order of priority.
        audio: files to transcribe.
        runs: counted runs, after a warm-up.
        threads: threads of a session; None: the cores this process may use.
        new_tokens: tokens to force for every segment; None forces none.
        outputs: file to which the reference writes inputs and outputs of the graphs.
        reference: file with the reference's inputs and outputs; None for the reference itself.
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
    """Difference between a graph's outputs and the reference's on the same inputs.

    Attributes:
        largest: largest absolute difference.
        relative: Euclidean norm of the difference over that of the reference.
        same_choices: share of rows with the same largest entry, 0 to 1, for logits; None for other outputs.
    """

    largest: float
    relative: float
    same_choices: float | None = None


class Measured(msgspec.Struct, frozen=True):
    """Measurements of one process. Times are seconds for all audio.

    Attributes:
        load: time to open the model.
        encode: time of the encoder.
        prefill: time of the decoder's prompts.
        step: time of a token; None if no token was generated.
        total: time of a run.
        audio_seconds: length of all audio.
        peak_bytes: peak resident memory of the process.
        placement: number of nodes by graph role, provider and operator.
        differences: difference from the reference by graph role; empty for the reference.
        texts: text of each audio file.
        tokens: tokens of each audio file.
        versions: version of each package that runs graphs.
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
        """Seconds of work for each second of audio."""
        return self.total.median / self.audio_seconds


class Outcome(msgspec.Struct, frozen=True):
    """Row of a provider. One of ``measured`` and ``error`` is set.

    Attributes:
        provider: providers as they were given, joined by ``+``.
        measured: its measurements.
        error: why it could not be measured.
        first_difference: lowest index of a token that differs from the reference; None if all are equal.
        identical: number of files with the same tokens as the reference.
        word_errors: error rate of the texts against those of the reference; None if these have no words.
    """

    provider: str
    measured: Measured | None = None
    error: str | None = None
    first_difference: int | None = None
    identical: int | None = None
    word_errors: float | None = None


class Comparison(msgspec.Struct, frozen=True):
    """A whole comparison.

    Attributes:
        model: name of the model.
        reference: name of the reference.
        audio: names of the audio files.
        audio_seconds: length of all audio.
        runs: counted runs.
        new_tokens: tokens forced for every segment; None if none were.
        machine: fields of a :class:`runtime.bench.machine.Machine`.
        outcomes: a row for each provider.
    """

    model: str
    reference: str
    audio: list[str]
    audio_seconds: float
    runs: int
    new_tokens: int | None
    machine: dict[str, Any]
    outcomes: list[Outcome]


def difference(ours: npt.NDArray[Any], theirs: npt.NDArray[Any], *, choices: bool) -> Difference:
    """Compare two outputs of the same shape.

    Args:
        ours: output of a provider.
        theirs: output of the reference.
        choices: whether to compare the indices of the largest entries along the last axis too.
    """
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    norm = float(np.linalg.norm(b))
    return Difference(
        largest=float(np.max(np.abs(a - b), initial=0.0)),
        relative=float(np.linalg.norm(a - b)) / norm if norm else float(np.any(a != b)),
        same_choices=float((a.argmax(-1) == b.argmax(-1)).mean()) if choices else None,
    )


def worst(differences: Sequence[Difference]) -> Difference:
    """Return the worst value of each field over several inputs, at least one."""
    choices = [each.same_choices for each in differences if each.same_choices is not None]
    return Difference(
        max(each.largest for each in differences),
        max(each.relative for each in differences),
        min(choices) if choices else None,
    )


def compare_texts(provider: str, measured: Measured, reference: Measured) -> Outcome:
    """Compare a provider's tokens and texts with those of the reference, file by file."""
    pairs = list(zip(measured.tokens, reference.tokens, strict=True))
    firsts = [index for ours, theirs in pairs if (index := first_difference(ours, theirs)) is not None]
    texts = zip(measured.texts, reference.texts, strict=True)
    units = [(_UNIT.findall(theirs), _UNIT.findall(ours)) for ours, theirs in texts]
    count = sum(len(theirs) for theirs, _ in units)
    return Outcome(
        provider,
        measured,
        first_difference=min(firsts, default=None),
        identical=len(pairs) - len(firsts),
        word_errors=sum(edits(theirs, ours) for theirs, ours in units) / count if count else None,
    )


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Return the index of the first token that differs, counted from 0; None if all are equal."""
    for index, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            return index
    return None if len(ours) == len(theirs) else min(len(ours), len(theirs))


def edits(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Return the Levenshtein distance: the least number of substitutions, deletions and insertions."""
    row = list(range(len(hypothesis) + 1))
    for index, unit in enumerate(reference, start=1):
        above, row[0] = row[0], index
        for column, other in enumerate(hypothesis, start=1):
            above, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, above + (unit != other))
    return row[-1]
