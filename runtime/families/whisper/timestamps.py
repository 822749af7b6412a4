"""Whisper's rules on the next token, as pure functions of logits, and the times that its text says.

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
    """A part of a text with its times, in seconds from the beginning of the audio that was decoded."""

    start: float
    end: float
    tokens: list[int]


class TimestampRules(msgspec.Struct, frozen=True):
    """What timestamps may follow what.

    Text ids are below ``stop_id``, and timestamps the ids behind ``no_timestamps_id``. ``max_initial`` bounds the first
    one, counted from 0.
    """

    stop_id: int
    no_timestamps_id: int
    max_initial: int | None = None

    @property
    def first_id(self) -> int:
        """The timestamp of 0 s."""
        return self.no_timestamps_id + 1

    def apply(self, logits: Floats, tokens: Sequence[int]) -> None:
        """Set the logits [vocab] of what must not follow ``tokens`` to -inf.

        A text begins with a timestamp. They come in pairs, an end and the next beginning, but for a last one before the
        stop; none is earlier than the one before, and a phrase has some length. Where all timestamps together are more
        probable than any other token, one is taken.
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
        loudest = times.max()
        if loudest > _NEVER and loudest + np.log(np.exp(times - loudest).sum()) > text.max():
            text[:] = _NEVER


class NextTokenRules(msgspec.Struct, frozen=True):
    """All rules on the next token of a text: ids that are never chosen, not as the first one, and timestamps'."""

    suppress: npt.NDArray[np.int64]
    begin_suppress: npt.NDArray[np.int64]
    timestamps: TimestampRules | None = None

    def __call__(self, logits: Floats, tokens: Sequence[int]) -> None:
        """Change ``logits`` [vocab] in place, given the text so far."""
        if not tokens:
            logits[self.begin_suppress] = _NEVER
        logits[self.suppress] = _NEVER
        if self.timestamps:
            self.timestamps.apply(logits, tokens)


def phrases(tokens: Sequence[int], rules: TimestampRules, step: float, duration: float) -> list[Phrase]:
    """The parts of a text by its timestamps.

    A part ends where two timestamps follow one another, and at the text's end. What has no beginning of its own begins
    where the part before it ends; what has no end ends with the audio.

    Args:
        tokens: a text, timestamps included, without the stop token.
        rules: which tokens are timestamps.
        step: seconds between timestamps.
        duration: seconds of the audio: no time is later.

    Returns:
        Parts that have text, in order, ``start`` ≤ ``end`` ≤ ``duration``.
    """
    found: list[Phrase] = []
    begun, text = 0.0, list[int]()
    for token in tokens:
        if token < rules.first_id:
            if token < rules.stop_id:
                text.append(token)
            continue
        time = min((token - rules.first_id) * step, duration)
        if text:
            found.append(Phrase(begun, max(begun, time), text))
            text = []
        begun = max(begun, time)
    if text:
        found.append(Phrase(begun, duration, text))
    return found


def advance(tokens: Sequence[int], rules: TimestampRules, frames: int, frames_per_step: int) -> tuple[int, int]:
    """How much of a window's text stays, and where the next window begins.

    A text whose last part has no end may have been cut in the middle of a word: it is heard again, from the end of the
    part before. One that ends with a single timestamp has nobody speaking after it, and one without parts is taken as
    it is.

    Args:
        tokens: the text of a window.
        rules: which tokens are timestamps.
        frames: of the window.
        frames_per_step: frames between timestamps.

    Returns:
        (tokens that stay, frames until the next window, at least one)
    """
    stamps = [token >= rules.first_id for token in tokens]
    pairs = [index for index in range(1, len(tokens)) if stamps[index - 1] and stamps[index]]
    if not pairs or stamps[-2:] == [False, True]:
        return len(tokens), max(1, frames)
    ended = (tokens[pairs[-1] - 1] - rules.first_id) * frames_per_step
    return pairs[-1] + 1, max(1, min(ended, frames))
