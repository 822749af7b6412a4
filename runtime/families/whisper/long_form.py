"""Whisper's own way through long audio: window after window, each from where the text before it ended.

Source: arXiv 2212.04356, section 3.8 (long-form transcription), as transformers' ``generate`` does it: features are of
the whole audio, a window that ends before its 30 s is filled with zeros, the language is that of the first speech. In
place of decoding again at a temperature, a text that repeats itself is decoded once more with a penalty on repetitions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.decoding.greedy import REPETITION_PENALTY
from runtime.engines.base import SegmentJob, SegmentOptions, SegmentResult, Span
from runtime.families.whisper.timestamps import TimestampRules, advance
from runtime.features.log_mel import LogMelConfig, log_mel
from runtime.results import FinishReason, TimedText, Timings

Floats = npt.NDArray[np.float32]


class Reading(msgspec.Struct, frozen=True):
    """What an engine knows of its texts: which tokens are timestamps, text of tokens, parts of tokens and samples."""

    rules: TimestampRules
    frames_per_step: int
    text: Callable[[Sequence[int]], str]
    phrases: Callable[[Sequence[int], int], list[TimedText]]


class LongForm:
    """One audio on its way, without the engine: see :class:`runtime.engines.base.LongWork`."""

    def __init__(
        self, samples: Floats, front_end: LogMelConfig, reading: Reading, options: SegmentOptions, timings: Timings
    ) -> None:
        """``front_end`` is that of a window, whose samples are the least that it takes."""
        self._samples, self._hop, self._reading = samples, front_end.hop_length, reading
        self._window = front_end.min_samples // front_end.hop_length
        self._options = msgspec.structs.replace(options, timestamps=True)
        self._timings, self._began = timings, time.perf_counter()
        with timings.measure("features"):
            self._features = log_mel(samples, msgspec.structs.replace(front_end, min_samples=front_end.n_fft))
        self._seek = 0
        self._waiting = self._again = False
        self._spans: list[Span] = []

    @property
    def spans(self) -> list[Span]:
        """What was heard so far, in order."""
        return self._spans

    @property
    def done(self) -> int:
        """Samples that are done."""
        return min(self._seek * self._hop, len(self._samples))

    @property
    def _frames(self) -> int:
        """Frames of this window that are audio."""
        return min(int(self._features.shape[1]) - self._seek, self._window)

    def next_job(self) -> SegmentJob | None:
        """The next window; None while one is on its way, and after the last."""
        if self._waiting or self._frames <= 0:
            return None
        self._waiting = True
        end = self._seek + self._frames
        features = np.pad(self._features[:, self._seek : end], ((0, 0), (0, self._window - self._frames)))
        penalty = REPETITION_PENALTY if self._again else self._options.repetition_penalty
        return SegmentJob(
            self,
            self._samples[self._seek * self._hop : end * self._hop],
            msgspec.structs.replace(self._options, repetition_penalty=penalty),
            self._timings,
            self._began,
            features=features,
        )

    def take(self, result: SegmentResult) -> None:
        """What the window that was on its way says."""
        self._waiting = False
        if result.finish_reason == "repetition" and not self._again and not self._options.max_new_tokens:
            self._again = True
            return
        decoded_again: FinishReason | None = "repetition" if self._again else None
        self._again = False
        frames = self._frames
        if result.text:  # and else nobody spoke
            kept, frames = advance(result.tokens, self._reading.rules, frames, self._reading.frames_per_step)
            tokens, samples = result.tokens[:kept], self._frames * self._hop
            said = msgspec.structs.replace(
                result,
                text=self._reading.text(tokens),
                tokens=tokens,
                phrases=self._reading.phrases(tokens, samples),
            )
            self._spans.append(Span(self._seek * self._hop, frames * self._hop, said, decoded_again))
            language = self._options.language or result.language
            self._options = msgspec.structs.replace(self._options, language=language)
        self._seek += frames
