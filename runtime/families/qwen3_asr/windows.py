"""Qwen3-ASR's encoder geometry: independent windows of many clips in one call, and clips that grow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnxruntime import InferenceSession

from runtime.features.log_mel import RANGE, LogMelConfig, log_power, normalized

Floats = npt.NDArray[np.float32]

# Largest number of full windows in one call: more are no faster on a CPU, and each takes 200 MB of activations in
# float32 at 0.6B.
_WINDOWS_PER_CALL = 2
# Encode a finished window of a growing clip again when the clip's maximum, which normalizes all of it, has risen by
# more than this (log10 of power: 3 dB). docs/streaming.md compares other values.
RISE = 0.3


@dataclass(frozen=True, slots=True)
class Geometry:
    """Mel frames of a chunk and of a window, and the encoder rows of a full chunk."""

    chunk_frames: int
    chunk_tokens: int
    window_frames: int

    def tokens(self, frames: int) -> int:
        """Return the encoder rows of ``frames`` mel frames; the last chunk is halved three times (rounded up)."""
        full, rest = divmod(frames, self.chunk_frames)
        for _ in range(3):
            rest = -(-rest // 2)
        return full * self.chunk_tokens + rest


class WindowEncoder:
    """A session whose graph takes windows ``features[W, mels, width]`` and ``lengths[W]``."""

    def __init__(self, session: InferenceSession, geometry: Geometry, *, fixed: bool) -> None:
        """``fixed``: the graph takes one window of full width at a time."""
        self.session, self._geometry, self._fixed = session, geometry, fixed

    def encode_many(self, features: Sequence[Floats]) -> list[Floats]:
        """Encode the features [mels, frames] of each clip to its audio rows [tokens, hidden].

        Windows of all clips share the encoder's batches. The last, shorter window of a clip is only as wide as its
        chunks need and joins others of that width: a padded chunk takes as long as a full one.
        """
        rows: list[list[Floats]] = [[] for _ in features]
        for clips, windows, lengths in self.windows(features):
            output = self.run(windows, lengths)
            for clip, row, frames in zip(clips, output, lengths, strict=True):
                rows[clip].append(row[: self._geometry.tokens(frames)])
        return [np.concatenate(each) for each in rows]

    def windows(self, features: Sequence[Floats]) -> Iterator[tuple[list[int], Floats, list[int]]]:
        """Yield batches of windows of one width: clip indices, features [W, mels, width], valid frames.

        Windows of one clip come in order, because the widest come first.
        """
        full, chunk = self._geometry.window_frames, self._geometry.chunk_frames
        by_width: dict[int, list[tuple[int, Floats]]] = {}
        for clip, each in enumerate(features):
            for start in range(0, each.shape[1], full):
                window = each[:, start : start + full]
                by_width.setdefault(-(-window.shape[1] // chunk) * chunk, []).append((clip, window))
        for width in sorted(by_width, reverse=True):
            same, count = by_width[width], max(1, _WINDOWS_PER_CALL * full // width)
            for first in range(0, len(same), count):
                batch = same[first : first + count]
                lengths = [window.shape[1] for _, window in batch]
                padded = [np.pad(window, ((0, 0), (0, width - window.shape[1]))) for _, window in batch]
                yield [clip for clip, _ in batch], np.stack(padded), lengths

    def run(self, windows: Floats, lengths: Sequence[int]) -> Floats:
        """Encode windows [W, mels, width] to rows [W, tokens, hidden]; windows of fixed size go one by one."""
        valid = np.array(lengths, np.int64)
        if not self._fixed:
            output: Floats = self.session.run(["audio_embeds"], {"features": windows, "lengths": valid})[0]
            return output
        width, geometry = windows.shape[2], self._geometry
        padded = np.pad(windows, ((0, 0), (0, 0), (0, geometry.window_frames - width)))
        rows: list[Floats] = [
            self.session.run(["audio_embeds"], {"features": padded[[index]], "lengths": valid[[index]]})[0]
            for index in range(len(windows))
        ]
        return np.concatenate(rows)[:, : width // geometry.chunk_frames * geometry.chunk_tokens]


@dataclass(slots=True, eq=False)
class _Window:
    """A window's log power, its minimum, the clip maximum that it was normalized to, and its encoder rows."""

    power: Floats
    minimum: np.float32
    maximum: float = -np.inf
    rows: Floats | None = None

    def is_stale(self, maximum: float) -> bool:
        """Return whether normalizing to another clip maximum changes the features that were encoded."""
        if self.rows is None:
            return True
        return maximum != self.maximum and bool(self.minimum < np.float32(max(maximum, self.maximum)) - RANGE)


class GrowingClip:
    """Encoder rows of a growing clip: finished windows are kept, the last one is encoded each time.

    Features are normalized to the clip's maximum, which is known only at its end. Until then the maximum so far is
    used; a finished window is encoded again only when the maximum has risen by more than ``rise``, or at the end, if
    that changes the window's features at all.
    """

    def __init__(self, config: LogMelConfig, window_frames: int, rise: float = RISE) -> None:
        """``rise``: increase of the maximum, in log10 of power, from which finished windows are encoded again."""
        self._config, self._frames, self._rise = config, window_frames, rise
        self._windows: list[_Window] = []
        self._pending: list[_Window] = []
        self.finished = 0
        """Windows that get no more audio."""
        self.unchanged = 0
        """Leading finished windows whose rows did not change in the last call."""
        self.encoded_again = 0
        """Total number of finished windows that were encoded again."""

    @property
    def settled(self) -> int:
        """Samples of the finished windows."""
        return self.finished * self._frames * self._config.hop_length

    def pending(self, samples: Floats, *, final: bool) -> list[Floats]:
        """Return the features [mels, frames] of the windows to encode, given all ``samples`` [n] of the clip so far.

        With ``final`` all rows become those of the whole clip encoded at once. The clip may then be shorter than
        before: continuous speech is cut after a part that was already decoded.
        """
        # The last half of an FFT window depends on the clip's end, which moves.
        whole = max(0, len(samples) - self._config.n_fft // 2) // self._config.hop_length // self._frames
        known = self._windows[: min(self.finished, whole)]
        first = len(known) * self._frames
        power = log_power(samples, self._config, first)
        parts = [power[:, start : start + self._frames] for start in range(0, power.shape[1], self._frames)]
        new = [_Window(part, part.min()) for part in parts]
        if len(self._windows) > len(known) and new:  # the window that was unfinished before
            last = self._windows[len(known)]
            if np.array_equal(last.power, new[0].power):
                new[0] = last
        self._windows = [*known, *new]
        finished = min(whole, len(self._windows))
        maximum = max(float(window.power.max()) for window in self._windows)
        self._pending = [
            window
            for index, window in enumerate(self._windows)
            if window.is_stale(maximum) and (final or index >= self.finished or maximum - window.maximum > self._rise)
        ]
        self.encoded_again += sum(window in known for window in self._pending)
        is_unchanged = [window.rows is not None and window not in self._pending for window in self._windows[:finished]]
        self.unchanged = is_unchanged.index(False) if False in is_unchanged else len(is_unchanged)
        self.finished = finished
        for window in self._pending:
            window.maximum = maximum
        return [normalized(window.power, maximum) for window in self._pending]

    def encoded(self, rows: Sequence[Floats]) -> Floats:
        """Take the encoder rows of the pending windows; return all rows of the clip [tokens, hidden]."""
        for window, encoded in zip(self._pending, rows, strict=True):
            window.rows = encoded
        self._pending = []
        return np.concatenate([window.rows for window in self._windows if window.rows is not None])
