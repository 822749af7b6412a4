"""What flows into the products when real audio is transcribed: peaks, mean squares and a sample of rows."""

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

#: Rows kept of each input. Errors of products are measured on them; more change the third digit.
SAMPLE_ROWS = 256


@dataclass(slots=True)
class Inputs:
    """Statistics of one value [..., K], over all rows seen; for a convolution a row is a patch under the kernel."""

    #: [n, K], n ≤ SAMPLE_ROWS once :meth:`finish` was called.
    rows: Floats = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    #: [n, 1], the largest magnitude in the tensor a row is quantized with: its own, or that of its batch element.
    peaks: Floats = field(default_factory=lambda: np.zeros((0, 1), np.float32))
    #: [K]
    channel_peak: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    _squares: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    _count: int = 0
    _parts: list[tuple[Floats, Floats]] = field(default_factory=list)

    @property
    def mean_square(self) -> Floats:
        """Of each channel, [K]."""
        return self._squares / np.float32(max(self._count, 1))

    def add(self, rows: Floats, peaks: Floats, most: int) -> None:
        """Take in ``rows`` [n, K], of which at most ``most``, evenly spread, are kept."""
        if not self._count:
            self.channel_peak = np.zeros(rows.shape[1], np.float32)
            self._squares = np.zeros(rows.shape[1], np.float32)
        np.maximum(self.channel_peak, np.abs(rows).max(0), out=self.channel_peak)
        self._squares += np.square(rows).sum(0)
        self._count += len(rows)
        keep = np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)
        self._parts.append((rows[keep].copy(), peaks[keep].copy()))

    def finish(self) -> None:
        """Join what was kept."""
        rows, peaks = (np.concatenate(parts) for parts in zip(*self._parts, strict=True))
        keep = np.linspace(0, len(rows) - 1, min(SAMPLE_ROWS, len(rows))).astype(np.int64)
        self.rows, self.peaks, self._parts = rows[keep], peaks[keep], []

    def divide(self, scale: Floats) -> None:
        """Become the statistics of the value divided by ``scale`` [K]."""
        self.rows = self.rows / scale
        self.peaks = np.abs(self.rows).max(-1, keepdims=True)
        self.channel_peak = self.channel_peak / scale
        self._squares = (self._squares / np.square(scale)).astype(np.float32)

    def head(self, most: int) -> Inputs:
        """The same statistics with at most ``most`` rows, evenly spread."""
        keep = np.linspace(0, len(self.rows) - 1, min(most, len(self.rows))).astype(np.int64)
        return Inputs(self.rows[keep], self.peaks[keep], self.channel_peak, self._squares, self._count)

    def rounded(self, scale: Floats | float = 1.0) -> Floats:
        """The sample's rows divided by ``scale`` [K] and rounded to 8 bits with one scale a row."""
        return round_rows(self.rows / scale, self.peaks if np.isscalar(scale) else None)


class Calibration:
    """Collects :class:`Inputs` of the products of one graph by the name of the value they read."""

    def __init__(self, products: list[Product], clips: int, others: Iterable[str] = ()) -> None:
        """``others`` are names of further values, whose rows are their last axis."""
        self.inputs: dict[str, Inputs] = {}
        self._others = list(dict.fromkeys(others))
        self._products: dict[str, Product] = {}
        self._most = -(-4 * SAMPLE_ROWS // max(clips, 1))
        for product in products:
            if product.operator != "Gather":
                self._products.setdefault(product.x.name or "", product)

    @property
    def taps(self) -> list[str]:
        """Names of the values to be read."""
        return [*self._products, *(name for name in self._others if name not in self._products)]

    def add(self, values: dict[str, npt.NDArray[Any]]) -> None:
        """Take in the taps of one run."""
        for name in self.taps:
            product, value = self._products.get(name), values[name]
            if product is not None and product.operator == "Conv":
                rows, peaks = _patches(product, value, self._most)
            else:
                rows = value.reshape(-1, value.shape[-1])
                peaks = np.abs(rows).max(-1, keepdims=True)
            self.inputs.setdefault(name, Inputs()).add(rows, peaks, self._most)

    def finish(self) -> dict[str, Inputs]:
        """The statistics by value name."""
        for inputs in self.inputs.values():
            inputs.finish()
        return self.inputs


def _patches(product: Product, x: Floats, most: int) -> tuple[Floats, Floats]:
    """Rows [n, kernel·C] under the kernel at n positions of ``x`` [B, C, …], and what spans each one's scale [n, 1]."""
    kernel, axes = product.kernel, tuple(range(2, x.ndim))
    padded = np.pad(x, ((0, 0), (0, 0), *product.pads))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=axes)
    windows = windows[:, :, *(slice(None, None, step) for step in product.strides)]
    sizes = (len(x), *windows.shape[2 : x.ndim])
    indices = np.linspace(0, math.prod(sizes) - 1, min(most, math.prod(sizes))).astype(np.int64)
    element, *index = np.unravel_index(indices, sizes)
    picked = np.moveaxis(windows, 1, -1)[element, *index]  # [n, kernel, C]
    rows = picked.reshape(len(indices), -1)
    if product.shares_scale:
        return rows, np.abs(x).max((1, *axes))[element][:, None]
    return rows, np.abs(rows).max(-1, keepdims=True)
