"""What every family's parity checks need: speech, a difference that is an error when it is too large, rows of text."""

from __future__ import annotations

import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from export.errors import ParityError
from quantize.audio_sets import samples_folder
from runtime.decoding.kv_rows import RowDecoder
from runtime.model.manifest import Parity

Floats = npt.NDArray[np.float32]

RATE = 16_000


def speech(seconds: float) -> Floats:
    """Speech at 16 kHz from the sample recordings, repeated as needed."""
    clips = []
    for path in sorted(samples_folder().glob("*.wav"))[:6]:
        with wave.open(str(path)) as stream:
            clips.append(np.frombuffer(stream.readframes(stream.getnframes()), "<i2").astype(np.float32) / 32768)
    samples = np.concatenate(clips)
    return np.resize(samples, int(seconds * RATE))


def difference(ours: Floats, reference: Floats, what: str, tolerance: float) -> float:
    """The largest absolute difference of two arrays.

    Raises:
        ParityError: their shapes differ, or it is over ``tolerance``; ``what`` says of what.
    """
    if ours.shape != reference.shape:
        raise ParityError(
            f"{what}: the graph gives {list(ours.shape)} where the reference gives {list(reference.shape)}"
        )
    difference = float(np.abs(ours - reference).max())
    if not difference <= tolerance:  # also when it is NaN
        raise ParityError(
            f"{what}: the graph differs from the reference by {difference:.2e}, more than {tolerance:.0e}"
        )
    return difference


@dataclass(frozen=True, slots=True)
class DecoderRow:
    """A prompt, its audio as the decoder takes it, greedy tokens after it, the reference's logits [both, vocab]."""

    prompt: list[int]
    audio: Any
    tokens: list[int]
    logits: Floats


def longest(rows: Sequence[DecoderRow]) -> int:
    """Positions that a decoder needs for any of ``rows``."""
    return max(len(row.prompt) + len(row.tokens) for row in rows)


def check_rows(
    decoder: RowDecoder, rows: Sequence[DecoderRow], together: Callable[[list[Any]], Any], tolerance: float
) -> Parity:
    """``decoder.onnx`` through the runtime's buffers against the reference's logits: each row alone, all as a ragged
    batch, and the text of each once more, in one pass over what the row still holds.

    Args:
        decoder: the opened graph.
        rows: with as many tokens each.
        together: the audio of several rows as :meth:`runtime.decoding.kv_rows.RowDecoder.prefill` takes it.
        tolerance: of each logit.

    Raises:
        ParityError: the graph differs by more.
    """
    steps = len(rows[0].tokens)
    cases, worst = [], 0.0
    for batch in [*([row] for row in rows), list(rows)]:
        name = f"prompt of {len(batch[0].prompt)}" if len(batch) == 1 else f"batch of {len(batch)}"
        audio = together([row.audio for row in batch])
        logits = decoder.prefill([row.prompt for row in batch], audio, steps, all_rows=True)
        found = [[logits[index, : len(row.prompt)]] for index, row in enumerate(batch)]
        for step in range(steps):
            stepped = decoder.step([row.tokens[step] for row in batch])
            for index in range(len(batch)):
                found[index].append(stepped[index : index + 1].copy())
        for ours, row in zip(found, batch, strict=True):
            worst = max(worst, difference(np.concatenate(ours), row.logits, f"decoder, {name}", tolerance))
        cases.append(name)
    for index, row in enumerate(rows):
        decoder.cut_row(index, len(row.prompt))
        again = decoder.extend_row(index, row.tokens, None, steps)
        worst = max(worst, difference(again, row.logits[-steps:], "decoder, a second pass", tolerance))
    return Parity(worst, tolerance, [*cases, "a second pass"])
