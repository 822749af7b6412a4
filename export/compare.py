"""Comparison of written graphs with the reference implementation, on sample speech."""

from __future__ import annotations

import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from export.errors import ParityError
from quantize.audio_sets import samples_folder
from runtime.decoding.kv_rows import RowDecoder
from runtime.model.manifest import Parity
from runtime.ort.providers import ProviderSpec
from runtime.ort.session import make_session

Floats = npt.NDArray[np.float32]

RATE = 16_000
# Bound of the relative difference: the largest absolute difference in an output, divided by the output's largest value
# in the reference. With the published Whisper base, the encoder's rounding differs by 2e-5 to 4e-5, depending on the
# clip (values reach 8.5; float32 in torch differs from float64 by 2.3e-5), and the decoder's by 6e-6. One of 14 random
# weights of its encoder raised by its matrix's standard deviation changed less than that (2.5e-5), the others 1.8e-4 to
# 1.1e-2; a transposed head or a missing bias changed 7e-2 and more.
TOLERANCE = 1e-4
# Outputs whose largest value is below this are compared with it instead, so that no difference below 1e-5 is refused:
# it comes from rounding in layers with larger values, not from the size of this output.
SMALLEST_SCALE = 0.1


def speech(seconds: float) -> Floats:
    """Speech at 16 kHz from the sample recordings, repeated to the length ``seconds``: float32 [samples]."""
    clips = []
    for path in sorted(samples_folder().glob("*.wav"))[:6]:
        with wave.open(str(path)) as stream:
            clips.append(np.frombuffer(stream.readframes(stream.getnframes()), "<i2").astype(np.float32) / 32768)
    samples = np.concatenate(clips)
    return np.resize(samples, int(seconds * RATE))


def clip_batches(lengths: Sequence[float]) -> list[tuple[str, list[Floats]]]:
    """Batches of sample speech to compare: one for each length in seconds, then one of the first three clips.

    Returns:
        Name of each batch, and its clips.
    """
    clips = [speech(seconds) for seconds in lengths]
    return [*((f"{len(clip) / RATE:.1f} s", [clip]) for clip in clips), ("batch of 3", clips[:3])]


def open_graph(path: Path) -> onnxruntime.InferenceSession:
    """Open a graph as the runtime does by default."""
    return make_session(path, ProviderSpec())


class Comparison:
    """Compare outputs of one graph with the reference, and collect the largest differences.

    Attributes:
        tolerance: largest relative difference that is accepted.
        absolute: largest absolute difference so far.
        relative: largest relative difference so far.
    """

    def __init__(self) -> None:
        """Start a comparison with :data:`TOLERANCE`."""
        self.tolerance = TOLERANCE
        self.absolute = 0.0
        self.relative = 0.0

    def add(self, actual: Floats, expected: Floats, label: str) -> None:
        """Compare an output with the reference's.

        The scale of the relative difference is the largest absolute value of ``expected``, at least
        :data:`SMALLEST_SCALE`: rounding errors grow with the values that are summed, and a fixed bound refuses correct
        graphs of models with large activations and accepts wrong ones of models with small activations.

        Args:
            actual: output of the graph.
            expected: output of the reference, of the same shape.
            label: names the output in messages.

        Raises:
            ParityError: the shapes differ.
            ParityError: the relative difference is greater than :attr:`tolerance`, or NaN.
        """
        if actual.shape != expected.shape:
            raise ParityError(
                f"{label}: the graph gives {list(actual.shape)} where the reference gives {list(expected.shape)}"
            )
        absolute = float(np.abs(actual - expected).max())
        scale = float(np.abs(expected).max())
        relative = absolute / max(scale, SMALLEST_SCALE)
        if not relative <= self.tolerance:  # also when it is NaN
            raise ParityError(
                f"{label}: the graph differs from the reference by {absolute:.2e} where values reach {scale:.2e}; "
                f"relative to that by {relative:.2e}, more than {self.tolerance:.0e}"
            )
        self.absolute, self.relative = max(self.absolute, absolute), max(self.relative, relative)

    def result(self, cases: Sequence[str]) -> Parity:
        """Largest differences for the manifest, with the names of the compared inputs."""
        return Parity(self.absolute, self.tolerance, list(cases), self.relative)


@dataclass(frozen=True, slots=True)
class FrameCase:
    """Inputs of an encoder graph, and the reference's output for them.

    Attributes:
        name: names the case in messages and in the manifest.
        features: float32, clips padded to the longest along the time axis.
        lengths: int64 [clips], valid feature frames.
        expected: float32 [encoded frames, width] for each clip, valid frames only.
    """

    name: str
    features: Floats
    lengths: npt.NDArray[np.int64]
    expected: list[Floats]


def check_frames(cases: Sequence[FrameCase], graph: Path, output: str) -> Parity:
    """Compare an encoder graph with the reference on the valid frames of each clip.

    Args:
        cases: inputs and expected outputs.
        graph: a graph with the inputs ``features`` and ``lengths`` and the outputs ``output`` and ``encoded_lengths``.
        output: name of the output that is compared.

    Raises:
        ParityError: values differ by more than :data:`TOLERANCE`, or the numbers of valid frames differ.
    """
    session = open_graph(graph)
    comparison = Comparison()
    for case in cases:
        encoded, lengths = session.run(
            [output, "encoded_lengths"], {"features": case.features, "lengths": case.lengths}
        )
        for frames, length, expected in zip(encoded, lengths.tolist(), case.expected, strict=True):
            comparison.add(frames[:length], expected, f"encoder, {case.name}")
    return comparison.result([case.name for case in cases])


@dataclass(frozen=True, slots=True)
class DecoderRow:
    """One row of the decoder's batch, and the reference's logits for it.

    Attributes:
        prompt: token ids.
        audio: the row's audio in the form that the decoder takes.
        tokens: greedy tokens after the prompt.
        logits: float32 [len(prompt) + len(tokens), vocab].
    """

    prompt: list[int]
    audio: Any
    tokens: list[int]
    logits: Floats


def longest(rows: Sequence[DecoderRow]) -> int:
    """Positions that a decoder needs to hold any of ``rows``."""
    return max(len(row.prompt) + len(row.tokens) for row in rows)


def check_rows(decoder: RowDecoder, rows: Sequence[DecoderRow], concatenate: Callable[[list[Any]], Any]) -> Parity:
    """Compare ``decoder.onnx`` with the reference's logits, through the runtime's buffers.

    Each row is decoded alone, then all rows as a ragged batch, then the tokens of each row again in one pass after its
    cached prompt.

    Args:
        decoder: the opened graph.
        rows: rows with equal numbers of tokens.
        concatenate: joins the audio of several rows as :meth:`runtime.decoding.kv_rows.RowDecoder.prefill` takes it.

    Raises:
        ParityError: logits differ by more than :data:`TOLERANCE`.
    """
    steps = len(rows[0].tokens)
    cases, comparison = [], Comparison()
    for batch in [*([row] for row in rows), list(rows)]:
        name = f"prompt of {len(batch[0].prompt)}" if len(batch) == 1 else f"batch of {len(batch)}"
        audio = concatenate([row.audio for row in batch])
        prefilled = decoder.prefill([row.prompt for row in batch], audio, steps, all_positions=True)
        logits = [[prefilled[index, : len(row.prompt)]] for index, row in enumerate(batch)]
        for step in range(steps):
            stepped = decoder.step([row.tokens[step] for row in batch])
            for index in range(len(batch)):
                logits[index].append(stepped[index : index + 1].copy())
        for actual, row in zip(logits, batch, strict=True):
            comparison.add(np.concatenate(actual), row.logits, f"decoder, {name}")
        cases.append(name)
    for index, row in enumerate(rows):
        decoder.truncate_row(index, len(row.prompt))
        again = decoder.extend_row(index, row.tokens, None, steps)
        comparison.add(again, row.logits[-steps:], "decoder, a second pass")
    return comparison.result([*cases, "a second pass"])
