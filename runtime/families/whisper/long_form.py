"""Whisper's long-form decoding: window after window, each starting where the text of the previous one ends.

Source: arXiv 2212.04356, section 3.8 (long-form transcription), as transformers' ``generate`` does it: features are
computed over the whole audio, a window that ends before its 30 s is padded with zeros, and the language is that of the
first speech. Instead of decoding again at a temperature, a text that repeats itself is decoded once more with a
repetition penalty.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.decoding.loops import REPETITION_PENALTY
from runtime.engines.base import SegmentJob, SegmentOptions, SegmentResult, Span
from runtime.families.whisper.timestamps import TimestampRules, advance
from runtime.features.log_mel import LogMelConfig, log_mel
from runtime.results import FinishReason, TimedText, Timings

Floats = npt.NDArray[np.float32]


class TextReader(msgspec.Struct, frozen=True):
    """How to read a window's tokens: timestamp rules, tokens → text, (tokens, samples) → timed parts."""

    rules: TimestampRules
    frames_per_step: int
    text: Callable[[Sequence[int]], str]
    phrases: Callable[[Sequence[int], int], list[TimedText]]


class WhisperLongForm:
    """One audio decoded window by window; implements :class:`runtime.engines.base.LongForm`."""

    def __init__(
        self, samples: Floats, front_end: LogMelConfig, reader: TextReader, options: SegmentOptions, timings: Timings
    ) -> None:
        """Compute the features of the whole audio.

        Args:
            samples: mono float32 [n].
            front_end: front end of one window: its ``min_samples`` are a window's length.
            reader: how to read tokens.
            options: options of every window; timestamps are always on.
            timings: collects stage times.
        """
        self._samples, self._hop, self._reader = samples, front_end.hop_length, reader
        self._window = front_end.min_samples // front_end.hop_length
        self._options = msgspec.structs.replace(options, timestamps=True)
        self._timings, self._began = timings, time.perf_counter()
        with timings.measure("features"):
            self._features = log_mel(samples, msgspec.structs.replace(front_end, min_samples=front_end.n_fft))
        self._seek = 0
        self._waiting = self._retrying = False
        self._spans: list[Span] = []

    @property
    def spans(self) -> list[Span]:
        """Decoded spans so far, in order."""
        return self._spans

    @property
    def done(self) -> int:
        """Samples that are decoded."""
        return min(self._seek * self._hop, len(self._samples))

    @property
    def _frames(self) -> int:
        """Mel frames of the current window that are audio."""
        return min(int(self._features.shape[1]) - self._seek, self._window)

    def next_job(self) -> SegmentJob | None:
        """Return the next window; None while one is being decoded, and after the last."""
        if self._waiting or self._frames <= 0:
            return None
        self._waiting = True
        end = self._seek + self._frames
        features = np.pad(self._features[:, self._seek : end], ((0, 0), (0, self._window - self._frames)))
        penalty = REPETITION_PENALTY if self._retrying else self._options.repetition_penalty
        return SegmentJob(
            self,
            self._samples[self._seek * self._hop : end * self._hop],
            msgspec.structs.replace(self._options, repetition_penalty=penalty),
            self._timings,
            self._began,
            features=features,
        )

    def take(self, result: SegmentResult) -> None:
        """Take the result of the window that was being decoded, and move to the next one."""
        self._waiting = False
        if result.finish_reason == "repetition" and not self._retrying and not self._options.max_new_tokens:
            self._retrying = True
            return
        decoded_again: FinishReason | None = "repetition" if self._retrying else None
        self._retrying = False
        frames = self._frames
        if result.dropped_text:
            self._spans.append(Span(self._seek * self._hop, frames * self._hop, result, decoded_again))
        if result.text:  # otherwise the window has no speech
            count, frames = advance(result.tokens, self._reader.rules, frames, self._reader.frames_per_step)
            tokens, samples = result.tokens[:count], self._frames * self._hop
            final = msgspec.structs.replace(
                result,
                text=self._reader.text(tokens),
                tokens=tokens,
                phrases=self._reader.phrases(tokens, samples),
            )
            self._spans.append(Span(self._seek * self._hop, frames * self._hop, final, decoded_again))
            language = self._options.language or result.language
            self._options = msgspec.structs.replace(self._options, language=language)
        self._seek += frames
