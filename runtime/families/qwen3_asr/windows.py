"""Encoders whose windows are independent of one another: many clips at once, and clips that grow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnxruntime import InferenceSession

from runtime.features.log_mel import RANGE, LogMelConfig, log_power, normalized

Floats = npt.NDArray[np.float32]

# Bound on one call of the encoder: more windows at once are no faster on a CPU, and each takes 200 MB of activations in
# float32 at 0.6B.
_WINDOWS_PER_CALL = 2
# A finished window of a growing clip is encoded again when the clip's maximum, to which all of it is normalized, has
# risen by this much since (log10 of power: 3 dB). docs/streaming.md has what other values cost and give.
RISE = 0.3


@dataclass(frozen=True, slots=True)
class Geometry:
    """Frames of a chunk and of a window, and the rows that a full chunk gives."""

    chunk_frames: int
    chunk_tokens: int
    window_frames: int

    def tokens(self, frames: int) -> int:
        """Rows of ``frames`` mel frames: so many a chunk, and three halvings (rounded up) for the rest."""
        full, rest = divmod(frames, self.chunk_frames)
        for _ in range(3):
            rest = -(-rest // 2)
        return full * self.chunk_tokens + rest


class WindowEncoder:
    """A session whose graph takes windows ``features[W, mels, width]`` and ``lengths[W]``."""

    def __init__(self, session: InferenceSession, geometry: Geometry, *, fixed: bool) -> None:
        """``fixed``: the graph takes one window at a time, of full width."""
        self.session, self._geometry, self._fixed = session, geometry, fixed

    def encode_many(self, features: Sequence[Floats]) -> list[Floats]:
        """Features [mels, frames] of each clip → its audio rows [tokens, hidden].

        Windows of all clips go through the encoder side by side. The last, shorter one of a clip is only as wide as its
        chunks need, and joins others of that width: a padded chunk costs as much as a full one.
        """
        rows: list[list[Floats]] = [[] for _ in features]
        for owners, windows, lengths in self.windows(features):
            output = self.run(windows, lengths)
            for owner, row, frames in zip(owners, output, lengths, strict=True):
                rows[owner].append(row[: self._geometry.tokens(frames)])
        return [np.concatenate(each) for each in rows]

    def windows(self, features: Sequence[Floats]) -> Iterator[tuple[list[int], Floats, list[int]]]:
        """Batches of windows of one width: whose each is, features [W, mels, width], valid frames.

        Those of one clip come in their order, for the widest come first.
        """
        full, chunk = self._geometry.window_frames, self._geometry.chunk_frames
        by_width: dict[int, list[tuple[int, Floats]]] = {}
        for owner, each in enumerate(features):
            for start in range(0, each.shape[1], full):
                window = each[:, start : start + full]
                by_width.setdefault(-(-window.shape[1] // chunk) * chunk, []).append((owner, window))
        for width in sorted(by_width, reverse=True):
            same, most = by_width[width], max(1, _WINDOWS_PER_CALL * full // width)
            for first in range(0, len(same), most):
                batch = same[first : first + most]
                lengths = [window.shape[1] for _, window in batch]
                padded = [np.pad(window, ((0, 0), (0, width - window.shape[1]))) for _, window in batch]
                yield [owner for owner, _ in batch], np.stack(padded), lengths

    def run(self, windows: Floats, lengths: Sequence[int]) -> Floats:
        """Windows [W, mels, width] → rows [W, tokens, hidden]; of fixed size, they go one by one and of full width."""
        valid = np.array(lengths, np.int64)
        if not self._fixed:
            output: Floats = self.session.run(["audio_embeds"], {"features": windows, "lengths": valid})[0]
            return output
        width, geometry = windows.shape[2], self._geometry
        padded = np.pad(windows, ((0, 0), (0, 0), (0, geometry.window_frames - width)))
        rows: list[Floats] = [
            self.session.run(["audio_embeds"], {"features": padded[[at]], "lengths": valid[[at]]})[0]
            for at in range(len(windows))
        ]
        return np.concatenate(rows)[:, : width // geometry.chunk_frames * geometry.chunk_tokens]


@dataclass(slots=True, eq=False)
class _Window:
    """A window: its log power, the clip's maximum that it was normalized to, and its encoder rows."""

    power: Floats
    lowest: np.float32
    loudest: float = -np.inf
    rows: Floats | None = None

    def differs(self, loudest: float) -> bool:
        """Whether another maximum gives other features than those that were encoded."""
        if self.rows is None:
            return True
        return loudest != self.loudest and bool(self.lowest < np.float32(max(loudest, self.loudest)) - RANGE)


class GrowingClip:
    """The encoder rows of a clip that grows: finished windows are kept, the last one is encoded each time.

    A clip's features are normalized to its maximum, which is not known before its end. Until then it is the maximum so
    far; a finished window is encoded again only when that has risen enough to matter, or at the end, when it has
    changed the window's features at all.
    """

    def __init__(self, config: LogMelConfig, window_frames: int, rise: float = RISE) -> None:
        """``rise`` of the maximum, in log10 of power, from which on finished windows are encoded again."""
        self._config, self._frames, self._rise = config, window_frames, rise
        self._windows: list[_Window] = []
        self._wanted: list[_Window] = []
        self.finished = 0
        """Windows that get no more audio."""
        self.unchanged = 0
        """Of them, those at the beginning whose rows are what they were the time before."""
        self.again = 0
        """Finished windows that were encoded once more, in all."""

    @property
    def settled(self) -> int:
        """Samples of the finished windows."""
        return self.finished * self._frames * self._config.hop_length

    def wanted(self, samples: Floats, *, final: bool) -> list[Floats]:
        """Features [mels, frames] that are to be encoded, now that the clip is ``samples`` (all of them).

        With ``final`` they are those of the whole clip, so that all rows will be what it gives when it is encoded at
        once. It may be shorter than it was: speech that goes on is cut behind a part of what was heard.
        """
        # The last half of a transform's window sees the clip's end, which moves.
        whole = max(0, len(samples) - self._config.n_fft // 2) // self._config.hop_length // self._frames
        known = self._windows[: min(self.finished, whole)]
        first = len(known) * self._frames
        power = log_power(samples, self._config, first)
        parts = [power[:, start : start + self._frames] for start in range(0, power.shape[1], self._frames)]
        made = [_Window(part, part.min()) for part in parts]
        if len(self._windows) > len(known) and made:  # the one that was not finished, once more
            last = self._windows[len(known)]
            if np.array_equal(last.power, made[0].power):
                made[0] = last
        self._windows = [*known, *made]
        finished = min(whole, len(self._windows))
        loudest = max(float(window.power.max()) for window in self._windows)
        self._wanted = [
            window
            for index, window in enumerate(self._windows)
            if window.differs(loudest) and (final or index >= self.finished or loudest - window.loudest > self._rise)
        ]
        self.again += sum(window in known for window in self._wanted)
        known_rows = [window.rows is not None and window not in self._wanted for window in self._windows[:finished]]
        self.unchanged = known_rows.index(False) if False in known_rows else len(known_rows)
        self.finished = finished
        for window in self._wanted:
            window.loudest = loudest
        return [normalized(window.power, loudest) for window in self._wanted]

    def encoded(self, rows: Sequence[Floats]) -> Floats:
        """All rows of the clip [tokens, hidden], given those of the windows that were wanted."""
        for window, made in zip(self._wanted, rows, strict=True):
            window.rows = made
        self._wanted = []
        return np.concatenate([window.rows for window in self._windows if window.rows is not None])
