"""Statistics of the activations that weighted nodes read when real audio is transcribed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from quantize.numerics import round_rows
from quantize.products import Product

Floats = npt.NDArray[np.float32]

#: Rows kept of each activation tensor. Errors of products are measured on them; more rows change the third digit.
SAMPLE_ROWS = 256


@dataclass(slots=True)
class ActivationStatistics:
    """Statistics of one activation tensor [..., K] over all rows seen. For a convolution, a row is one patch."""

    #: Sampled rows [n, K] float32, n ≤ SAMPLE_ROWS after :meth:`finish`.
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

    def finish(self) -> None:
        """Join the samples of all calls of :meth:`add` and keep at most SAMPLE_ROWS rows."""
        rows, peaks = (np.concatenate(parts) for parts in zip(*self._samples, strict=True))
        indices = _spread_indices(len(rows), SAMPLE_ROWS)
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

    def rounded(self, scale: Floats | float = 1.0) -> Floats:
        """Return the sampled rows divided by ``scale`` [K] and rounded to 8 bits with one activation scale a row."""
        return round_rows(self.rows / scale, self.peaks if np.isscalar(scale) else None)


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
        self._max_rows = -(-4 * SAMPLE_ROWS // max(clip_count, 1))
        for product in products:
            if product.operator != "Gather":
                self._products.setdefault(product.x.name or "", product)

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
            statistics.finish()
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
