"""Whisper's rules on the next token, and the timed parts of its text; pure functions of logits and tokens.

The rules are those of the paper's decoding (arXiv 2212.04356, section 4.5) as ``WhisperTimeStampLogitsProcessor``,
``SuppressTokensLogitsProcessor`` and ``SuppressTokensAtBeginLogitsProcessor`` of transformers apply them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_NEVER = np.float32(-np.inf)


class Phrase(msgspec.Struct, frozen=True):
    """A part of a text; times in seconds from the start of the decoded audio."""

    start: float
    end: float
    tokens: list[int]


class TimestampRules(msgspec.Struct, frozen=True):
    """Rules on the order of timestamps.

    Text ids are below ``stop_id``, timestamp ids above ``no_timestamps_id``. ``max_initial`` bounds the first
    timestamp, counted in steps from 0.
    """

    stop_id: int
    no_timestamps_id: int
    max_initial: int | None = None

    @property
    def first_id(self) -> int:
        """Id of the timestamp of 0 s."""
        return self.no_timestamps_id + 1

    def apply(self, logits: Floats, tokens: Sequence[int]) -> None:
        """Set ``logits`` [vocab] of ids that must not follow ``tokens`` to -inf.

        A text starts with a timestamp. Timestamps come in pairs, an end and the next start, except for the last one
        before the stop; they never decrease, and a phrase is longer than 0. If all timestamps together are more
        probable than any other token, only timestamps remain.
        """
        first = self.first_id
        logits[self.no_timestamps_id] = _NEVER
        if not tokens:
            logits[:first] = _NEVER
            if self.max_initial is not None:
                logits[first + self.max_initial + 1 :] = _NEVER
        else:
            opened = tokens[-1] >= first
            paired = len(tokens) < 2 or tokens[-2] >= first
            if opened and paired:
                logits[first:] = _NEVER
            elif opened:
                logits[: self.stop_id] = _NEVER
            last = next((token for token in reversed(tokens) if token >= first), None)
            if last is not None:
                logits[first : last if opened and not paired else last + 1] = _NEVER
        text, times = logits[:first], logits[first:]
        peak = times.max()
        if peak > _NEVER and peak + np.log(np.exp(times - peak).sum()) > text.max():
            text[:] = _NEVER


class NextTokenRules(msgspec.Struct, frozen=True):
    """All rules on the next token: ids that are never chosen, ids that are not chosen first, timestamp order."""

    suppress: npt.NDArray[np.int64]
    begin_suppress: npt.NDArray[np.int64]
    timestamps: TimestampRules | None = None

    def __call__(self, logits: Floats, tokens: Sequence[int]) -> None:
        """Change ``logits`` [vocab] in place, given the tokens so far."""
        if not tokens:
            logits[self.begin_suppress] = _NEVER
        logits[self.suppress] = _NEVER
        if self.timestamps:
            self.timestamps.apply(logits, tokens)


def phrases(tokens: Sequence[int], rules: TimestampRules, step: float, duration: float) -> list[Phrase]:
    """Split a text into its timed parts.

    A part ends at two consecutive timestamps and at the end of the text. A part without a start begins where the
    previous one ends; a part without an end ends with the audio.

    Args:
        tokens: a text with its timestamps, without the stop token.
        rules: which tokens are timestamps.
        step: seconds between timestamps.
        duration: seconds of the audio; no time is later.

    Returns:
        Parts that have text, in order, with ``start`` ≤ ``end`` ≤ ``duration``.
    """
    parts: list[Phrase] = []
    start, text = 0.0, list[int]()
    for token in tokens:
        if token < rules.first_id:
            if token < rules.stop_id:
                text.append(token)
            continue
        time = min((token - rules.first_id) * step, duration)
        if text:
            parts.append(Phrase(start, max(start, time), text))
            text = []
        start = max(start, time)
    if text:
        parts.append(Phrase(start, duration, text))
    return parts


def advance(tokens: Sequence[int], rules: TimestampRules, frames: int, frames_per_step: int) -> tuple[int, int]:
    """Decide how much of a window's text is final, and where the next window starts.

    A last part without an end may be cut in the middle of a word: the next window starts at the end of the part before
    it. A text that ends with a single timestamp has no speech after it, and a text without pairs of timestamps is taken
    whole: in both cases the next window starts at the end of this one.

    Args:
        tokens: the text of a window.
        rules: which tokens are timestamps.
        frames: mel frames of the window.
        frames_per_step: mel frames between timestamps.

    Returns:
        (number of final tokens, frames to the next window, at least 1)
    """
    is_time = [token >= rules.first_id for token in tokens]
    pairs = [index for index in range(1, len(tokens)) if is_time[index - 1] and is_time[index]]
    if not pairs or is_time[-2:] == [False, True]:
        return len(tokens), max(1, frames)
    end = (tokens[pairs[-1] - 1] - rules.first_id) * frames_per_step
    return pairs[-1] + 1, max(1, min(end, frames))
