"""Statistics of the activations that weighted nodes read when real audio is transcribed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from quantize.numerics import ZERO_POINTS, round_rows, row_spans
from quantize.products import Product

Floats = npt.NDArray[np.float32]

#: Rows of an activation tensor on which errors of products are measured; more rows change the third digit.
ERROR_ROWS = 256
#: Limits for the rows kept of each activation tensor. Compensated rounding needs about as many as there are channels.
MIN_ROWS, MAX_ROWS = 512, 4096
#: Memory that the rows of a graph may take in bytes, which decides between these limits.
_ROWS_MEMORY = 1 << 30


@dataclass(slots=True)
class ActivationStatistics:
    """Statistics of one activation tensor [..., K] over all rows seen. For a convolution, a row is one patch."""

    #: Sampled rows [n, K], float32.
    rows: Floats = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    #: Largest magnitude [n, 1] over the values that share a row's activation scale: the row or its batch element.
    peaks: Floats = field(default_factory=lambda: np.zeros((0, 1), np.float32))
    #: Largest magnitude of each channel, [K].
    channel_peak: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    _square_sums: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    _row_count: int = 0
    _samples: list[tuple[Floats, Floats]] = field(default_factory=list)

    @property
    def mean_square(self) -> Floats:
        """Mean square of each channel, [K]."""
        return self._square_sums / np.float32(max(self._row_count, 1))

    def add(self, rows: Floats, peaks: Floats, max_rows: int) -> None:
        """Add ``rows`` [n, K] with their ``peaks`` [n, 1], and sample at most ``max_rows`` of them, evenly spread."""
        if not self._row_count:
            self.channel_peak = np.zeros(rows.shape[1], np.float32)
            self._square_sums = np.zeros(rows.shape[1], np.float32)
        np.maximum(self.channel_peak, np.abs(rows).max(0), out=self.channel_peak)
        self._square_sums += np.square(rows).sum(0)
        self._row_count += len(rows)
        indices = _spread_indices(len(rows), max_rows)
        self._samples.append((rows[indices].copy(), peaks[indices].copy()))

    def finish(self, max_rows: int = ERROR_ROWS) -> None:
        """Join the samples of all calls of :meth:`add` and keep at most ``max_rows`` rows."""
        rows, peaks = (np.concatenate(parts) for parts in zip(*self._samples, strict=True))
        indices = _spread_indices(len(rows), max_rows)
        self.rows, self.peaks, self._samples = rows[indices], peaks[indices], []

    def divide(self, scale: Floats) -> None:
        """Update the statistics in place to those of the tensor divided by ``scale`` [K]."""
        self.rows = self.rows / scale
        self.peaks = np.abs(self.rows).max(-1, keepdims=True)
        self.channel_peak = self.channel_peak / scale
        self._square_sums = (self._square_sums / np.square(scale)).astype(np.float32)

    def head(self, max_rows: int) -> ActivationStatistics:
        """Return the same statistics with at most ``max_rows`` sampled rows, evenly spread."""
        indices = _spread_indices(len(self.rows), max_rows)
        return ActivationStatistics(
            self.rows[indices], self.peaks[indices], self.channel_peak, self._square_sums, self._row_count
        )

    def rounded(
        self, scale: Floats | float = 1.0, *, zero_point: int = 128, lowest: np.float32 | None = None
    ) -> Floats:
        """Return the sampled rows divided by ``scale`` [K] and rounded to 8 bits with one activation scale a row.

        Args:
            scale: Divisor of each channel.
            zero_point: Level that represents 0.
            lowest: Lower limit of the values, where it is known (:data:`quantize.numerics.GELU_MINIMUM`).
        """
        rows = self.rows / scale
        spans = row_spans(rows, zero_point, lowest)
        if np.isscalar(scale):  # a whole batch element may share a scale
            spans = np.where(self.peaks > np.abs(rows).max(-1, keepdims=True), self.peaks, spans)
        return round_rows(rows, spans, zero_point)

    def best_zero_point(self, lowest: np.float32 | None = None) -> int:
        """Return the zero point, one of :data:`quantize.numerics.ZERO_POINTS`, that rounds the rows most finely.

        It minimizes the mean over rows of the squared step divided by the row's mean square. Rows count alike, so that
        a few rows with enormous values do not decide for all others.

        Args:
            lowest: Lower limit of the values, where it is known.
        """
        rows = self.rows[_spread_indices(len(self.rows), ERROR_ROWS)]
        power = np.maximum(np.square(rows).mean(-1), np.float32(1e-30))

        def step_size(zero_point: int) -> float:
            steps = row_spans(rows, zero_point, lowest)[:, 0] / (255 - zero_point)
            return float((np.square(steps) / power).mean())

        return min(ZERO_POINTS, key=step_size)


class Calibration:
    """Collect :class:`ActivationStatistics` of one graph by the name of the value that products read."""

    def __init__(self, products: list[Product], clip_count: int, extra_values: Iterable[str] = ()) -> None:
        """Prepare calibration.

        Args:
            products: Products whose inputs are measured; those of ``Gather`` are skipped.
            clip_count: Number of calls of :meth:`add`, which determines the rows sampled in each.
            extra_values: Names of further values to measure; their rows are along the last axis.
        """
        self.statistics: dict[str, ActivationStatistics] = {}
        self._extra_values = list(dict.fromkeys(extra_values))
        self._products: dict[str, Product] = {}
        for product in products:
            if product.operator != "Gather":
                self._products.setdefault(product.x.name or "", product)
        channels = sum(product.input_channels for product in self._products.values())
        self._kept_rows = int(np.clip(_ROWS_MEMORY // (4 * max(channels, 1)), MIN_ROWS, MAX_ROWS))
        # Clips have different lengths: half of the rows may come from short ones.
        self._max_rows = -(-2 * self._kept_rows // max(clip_count, 1))

    @property
    def taps(self) -> list[str]:
        """Names of the values to read from the graph."""
        return [*self._products, *(name for name in self._extra_values if name not in self._products)]

    def add(self, values: dict[str, npt.NDArray[Any]]) -> None:
        """Add the values of one run of the graph, by the names in :attr:`taps`."""
        for name in self.taps:
            product, value = self._products.get(name), values[name]
            if product is not None and product.operator == "Conv":
                rows, peaks = _patches(product, value, self._max_rows)
            else:
                rows = value.reshape(-1, value.shape[-1])
                peaks = np.abs(rows).max(-1, keepdims=True)
            self.statistics.setdefault(name, ActivationStatistics()).add(rows, peaks, self._max_rows)

    def finish(self) -> dict[str, ActivationStatistics]:
        """Return the statistics by value name."""
        for statistics in self.statistics.values():
            statistics.finish(self._kept_rows)
        return self.statistics


def _spread_indices(count: int, max_count: int) -> npt.NDArray[np.int64]:
    """At most ``max_count`` indices below ``count``, evenly spread."""
    return np.linspace(0, count - 1, min(max_count, count)).astype(np.int64)


def _patches(product: Product, x: Floats, max_rows: int) -> tuple[Floats, Floats]:
    """Extract patches [n, kernel·C] at n ≤ ``max_rows`` positions of ``x`` [B, C, …], and their peaks [n, 1]."""
    kernel, axes = product.kernel, tuple(range(2, x.ndim))
    padded = np.pad(x, ((0, 0), (0, 0), *product.pads))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=axes)
    windows = windows[:, :, *(slice(None, None, stride) for stride in product.strides)]
    sizes = (len(x), *windows.shape[2 : x.ndim])
    indices = _spread_indices(math.prod(sizes), max_rows)
    element, *position = np.unravel_index(indices, sizes)
    patches = np.moveaxis(windows, 1, -1)[element, *position]  # [n, kernel, C]
    rows = patches.reshape(len(indices), -1)
    if product.shares_scale:
        return rows, np.abs(x).max((1, *axes))[element][:, None]
    return rows, np.abs(rows).max(-1, keepdims=True)
