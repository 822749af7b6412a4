"""Whisper's long-form decoding: window after window, each starting where the text of the previous one ends.

Source: arXiv 2212.04356, section 3.8 (long-form transcription), as transformers' ``generate`` does it: features are
computed over the whole audio, a window that ends before its 30 s is padded with zeros, and the language is that of the
first speech. Instead of decoding again at a temperature, a text that repeats itself is decoded once more with a
repetition penalty, and a text that is too short for its speech (:mod:`runtime.decoding.short_text`) in shorter windows
whose language is detected again.
"""

from __future__ import annotations

import time

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.audio.speech import clear_speech
from runtime.audio.vad import SAMPLE_RATE
from runtime.decoding.loops import REPETITION_PENALTY
from runtime.decoding.short_text import has_more, is_short, stop_margin
from runtime.engines.base import SegmentJob, SegmentOptions, SegmentResult, Span
from runtime.features.log_mel import LogMelConfig, log_mel
from runtime.results import DecodedAgain, Timings

Floats = npt.NDArray[np.float32]


# Share of a window that is decoded at once where the text of the whole window was too short.
_PART_SHARE = 0.6
# Shorter windows, in seconds, are not divided.
_SHORTEST_WINDOW = 2.0


class _ShortText(msgspec.Struct):
    """A window whose text was too short: what it gave, and the spans and the language before it.

    ``limit`` is the largest number of mel frames of the windows that replace it; ``end`` the frame at which it ended.
    """

    span: Span
    before: int
    language: str | None
    end: int
    limit: int


class WhisperLongForm:
    """One audio decoded window by window; implements :class:`runtime.engines.base.LongForm`."""

    def __init__(self, samples: Floats, front_end: LogMelConfig, options: SegmentOptions, timings: Timings) -> None:
        """Compute the features of the whole audio.

        Args:
            samples: mono float32 [n].
            front_end: front end of one window: its ``min_samples`` are a window's length.
            options: options of every window; timestamps are always on.
            timings: collects stage times.
        """
        self._samples, self._hop, self._rate = samples, front_end.hop_length, front_end.sample_rate
        self._window = front_end.min_samples // front_end.hop_length
        self._options = msgspec.structs.replace(options, timestamps=True)
        self._timings, self._began = timings, time.perf_counter()
        with timings.measure("features"):
            self._features = log_mel(samples, msgspec.structs.replace(front_end, min_samples=front_end.n_fft))
        self._seek = 0
        self._waiting = self._retrying = False
        self._spans: list[Span] = []
        self._language = options.language  # that of the first speech, unless it was given
        self._short: _ShortText | None = None

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
        left = int(self._features.shape[1]) - self._seek
        return min(left, self._window, *((self._short.limit, self._short.end - self._seek) if self._short else ()))

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
            msgspec.structs.replace(
                self._options,
                repetition_penalty=penalty,
                language=self._options.language if self._short else self._language,
            ),
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
        decoded_again: DecodedAgain | None = "repetition" if self._retrying else None
        self._retrying = False
        frames = self._frames
        if result.dropped_text:
            self._spans.append(Span(self._seek * self._hop, frames * self._hop, result, decoded_again))
        if result.text:  # otherwise the window has no speech
            text = result
            if result.head:
                text, frames = result.head.result, result.head.samples // self._hop
            text = msgspec.structs.replace(text, head=None)
            span = Span(self._seek * self._hop, frames * self._hop, text, decoded_again)
            if not self._short and self._is_short(span):
                limit = max(int(_PART_SHARE * frames), round(_SHORTEST_WINDOW * self._rate / self._hop))
                self._short = _ShortText(span, len(self._spans), self._language, self._seek + frames, limit)
                return
            self._spans.append(span)
            self._language = self._language or result.language
        self._seek += frames
        if self._short and self._seek >= self._short.end:
            self._choose(self._short)

    def _is_short(self, span: Span) -> bool:
        log_probability = span.result.stop_log_probability
        if log_probability is None or self._options.max_new_tokens or self._rate != SAMPLE_RATE:
            return False
        samples = self._samples[span.start : span.start + span.length]
        margin = stop_margin(log_probability)
        tokens = span.result.text_tokens
        return is_short(tokens, len(samples) / self._rate, margin) and is_short(tokens, clear_speech(samples), margin)

    def _choose(self, short: _ShortText) -> None:
        """Keep the texts of the shorter windows if they have more than that of the whole window, and say so."""
        self._short = None
        spans = self._spans[short.before :]
        has_ended = all(span.result.finish_reason == "stop" for span in spans)
        if not has_ended or not has_more(sum(span.result.text_tokens for span in spans), short.span.result.text_tokens):
            spans, self._language = [short.span], short.language or short.span.result.language
        self._spans[short.before :] = [msgspec.structs.replace(span, decoded_again="short") for span in spans]
