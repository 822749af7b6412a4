"""Quantizers in numpy: how weights and activations are rounded, and the same computation simulated in floats.

Integer products in the graphs compute with exactly these integers, so what is simulated here is what they give, up to
the order of their sums; weight-only kernels also round activations inside, which is left out (tests hold both
together).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.ort.threads import usable_cores

Floats = npt.NDArray[np.float32]

UINT8_ZERO = 128
ACTIVATION_STEPS = 127  # on each side of the zero point
# A row of zeros must not be divided by zero. Far below any activation, far above the smallest normal float.
TINY = np.float32(1e-20)
# How far the range of a 4-bit block is shrunk in the search for the least squared error: rounding gets finer for most
# weights while the outermost one is clipped. Below 0.8 the clipping always lost.
_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8)
_COLUMNS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Columns:
    """int8 weights [K, N] with one scale [N] a column."""

    values: npt.NDArray[np.int8]
    scales: Floats

    def dequantized(self) -> Floats:
        return self.values * self.scales


def quantize_columns(weight: Floats, *, reduce_range: bool = False) -> Columns:
    """One symmetric scale a column; 7-bit values with ``reduce_range``.

    x86 without VNNI adds pairs of u8×s8 products in 16 bits with saturation: 255·127·2 does not fit, 255·63·2 does.
    """
    most = 63 if reduce_range else 127
    peak = np.abs(weight).max(0)
    # Not below the smallest normal number, where a scale has no digits left.
    scales = np.maximum(np.where(peak > 0, peak, 1) / most, np.finfo(np.float32).tiny).astype(np.float32)
    return Columns(np.rint(weight / scales).astype(np.int8), scales)


def round_rows(x: Floats, peaks: Floats | None = None) -> Floats:
    """Activations [..., K] as the graph sees them after rounding each row to 8 bits.

    ``peaks`` [..., 1] are the magnitudes that span the steps, each row's own by default.
    """
    span: Floats = np.maximum(np.abs(x).max(-1, keepdims=True) if peaks is None else peaks, TINY)
    rounded: Floats = np.rint(x / span * ACTIVATION_STEPS) * (span / ACTIVATION_STEPS)
    return rounded


@dataclass(frozen=True, slots=True)
class Blocks:
    """Weights in blocks along the inner axis, as ``MatMulNBits`` reads them, for a matrix [K, N].

    ``values`` uint8 [N, blocks, block·bits/8] (4 bits: the even element in the low half), ``scales`` [N, blocks],
    ``zeros`` uint8 [N, blocks], one a byte, or None where every zero point is the middle, 2^(bits - 1).
    """

    values: npt.NDArray[np.uint8]
    scales: Floats
    zeros: npt.NDArray[np.uint8] | None
    bits: int
    block: int
    inner: int

    @property
    def levels(self) -> npt.NDArray[np.uint8]:
        """``values`` with one level a byte, [N, blocks, block]."""
        if self.bits == 8:
            return self.values
        return np.stack([self.values & 15, self.values >> 4], -1).reshape(*self.values.shape[:2], self.block)

    def dequantized(self) -> Floats:
        """The matrix [K, N] that these blocks stand for."""
        levels = self.levels
        zero = np.float32(2 ** (self.bits - 1)) if self.zeros is None else self.zeros[..., None].astype(np.float32)
        floats = (levels.astype(np.float32) - zero) * self.scales[..., None]
        return floats.reshape(len(floats), -1)[:, : self.inner].T

    def packed_zeros(self) -> npt.NDArray[np.uint8] | None:
        """Zero points as ``MatMulNBits`` takes them: [N, blocks·bits/8 rounded up], the even block in the low half."""
        if self.zeros is None or self.bits == 8:
            return self.zeros
        zeros = np.pad(self.zeros, ((0, 0), (0, self.zeros.shape[1] % 2)))
        return (zeros[:, 0::2] | (zeros[:, 1::2] << 4)).astype(np.uint8)


def quantize_blocks(
    weight: Floats,
    bits: int,
    block: int,
    *,
    symmetric: bool,
    importance: Floats | None = None,
    search: bool = True,
) -> Blocks:
    """Quantize ``weight`` [K, N] in blocks of ``block`` along K.

    Args:
        weight: the matrix.
        bits: 4 or 8.
        block: weights that share a scale; the last block is padded with zeros.
        symmetric: one zero point for all; otherwise each block has its own.
        importance: [K], mean square of the inputs: squared errors are weighted with it where the range of 4-bit blocks
            is searched.
        search: whether it is; without, the range is that of the block's weights.
    """
    inner, outer = weight.shape
    blocks = -(-inner // block)
    values = np.empty((outer, blocks, block * bits // 8), np.uint8)
    scales = np.empty((outer, blocks), np.float32)
    zeros = np.empty((outer, blocks), np.uint8)
    weights = None
    if importance is not None:
        weights = np.pad(importance, (0, blocks * block - inner)).reshape(blocks, block).astype(np.float32)
    shrinks = _SHRINK if bits == 4 and search else _SHRINK[:1]

    def fill(start: int) -> None:
        part = np.ascontiguousarray(weight[:, start : start + _COLUMNS_AT_ONCE].T)
        part = np.pad(part, ((0, 0), (0, blocks * block - inner))).reshape(len(part), blocks, block)
        levels, scale, zero = _best_range(part, bits, shrinks, weights, symmetric=symmetric)
        here = slice(start, start + len(part))
        values[here] = levels[..., 0::2] | (levels[..., 1::2] << 4) if bits == 4 else levels
        scales[here], zeros[here] = scale, zero

    with ThreadPoolExecutor(usable_cores()) as pool:  # numpy computes outside the interpreter's lock
        list(pool.map(fill, range(0, outer, _COLUMNS_AT_ONCE)))
    return Blocks(values, scales, None if symmetric else zeros, bits, block, inner)


def _best_range(
    part: Floats, bits: int, shrinks: tuple[float, ...], weights: Floats | None, *, symmetric: bool
) -> tuple[npt.NDArray[np.uint8], Floats, npt.NDArray[np.uint8]]:
    """Levels [n, blocks, block], scales and zero points [n, blocks] with the least (weighted) squared error."""
    top = 2**bits - 1
    best_error: Floats | None = None
    for shrink in shrinks:
        if symmetric:
            peak = np.abs(part).max(-1, keepdims=True) * np.float32(shrink)
            scale = peak / np.float32(2 ** (bits - 1) - 1)
            scale[scale == 0] = 1
            zero = np.full_like(scale, 2 ** (bits - 1))
        else:
            low = np.minimum(part.min(-1, keepdims=True), 0) * np.float32(shrink)
            high = np.maximum(part.max(-1, keepdims=True), 0) * np.float32(shrink)
            scale = (high - low) / np.float32(top)
            scale[scale == 0] = 1
            zero = np.rint(-low / scale)
        levels = part / scale
        np.rint(levels, out=levels)
        levels += zero
        np.clip(levels, 0, top, out=levels)
        if len(shrinks) == 1:
            return levels.astype(np.uint8), scale[..., 0], zero[..., 0].astype(np.uint8)
        error = (levels - zero) * scale
        error -= part
        error *= error
        if weights is not None:
            error *= weights
        total = error.sum(-1, keepdims=True)
        if best_error is None:
            best_error, best = total, (levels.astype(np.uint8), scale, zero)
            continue
        better = total < best_error
        best_error = np.where(better, total, best_error)
        best = (
            np.where(better, levels.astype(np.uint8), best[0]),
            np.where(better, scale, best[1]),
            np.where(better, zero, best[2]),
        )
    levels, scale, zero = best
    return levels, scale[..., 0], zero[..., 0].astype(np.uint8)


def relative_error(found: Floats, expected: Floats) -> float:
    """Euclidean norm of the difference over that of ``expected``."""
    return float(np.linalg.norm(found - expected)) / max(float(np.linalg.norm(expected)), 1e-30)
