"""Long form without a model: windows of a fixed length."""

from __future__ import annotations

import numpy as np

from runtime.engines.base import SegmentJob, SegmentOptions, SegmentResult, Span
from runtime.results import Timings


class FixedWindows:
    """Implements :class:`runtime.engines.base.LongForm`; texts come from the engine."""

    def __init__(self, samples: np.ndarray, options: SegmentOptions, timings: Timings, window: int) -> None:
        """``window``: samples of a window."""
        self._samples, self._options, self._timings, self._window = samples, options, timings, window
        self._seek = 0
        self.spans: list[Span] = []

    @property
    def done(self) -> int:
        return min(self._seek, len(self._samples))

    def next_job(self) -> SegmentJob | None:
        if self._seek >= len(self._samples):
            return None
        window = self._samples[self._seek : self._seek + self._window]
        return SegmentJob(self, window, self._options, self._timings, 0.0)

    def take(self, result: SegmentResult) -> None:
        self.spans.append(Span(self._seek, min(self._window, len(self._samples) - self._seek), result, None))
        self._seek += self._window
