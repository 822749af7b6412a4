"""Quantizers of weights and activations in numpy, and the same arithmetic simulated in floats.

Integer products in the graphs compute with exactly these integers, so the simulation equals their results up to the
order of summation. Weight-only kernels also round activations internally, which is not simulated; tests compare the
two.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantize.compensation import Compensation
from runtime.ort.threads import usable_cores

Floats = npt.NDArray[np.float32]

UINT8_ZERO_POINT = 128
#: Zero points of activations that are tried: 128 spans positive and negative values alike, the others leave more of the
#: 255 steps to positive ones.
ZERO_POINTS = (128, 96, 64, 48, 32, 24, 16)
MAX_UINT8 = 255
#: Outputs of GELU are never below this: the minimum of x·Φ(x) is -0.16997, at x = -0.7518.
GELU_MINIMUM = np.float32(-0.17)
# Lower limit of activation scales, since a row of zeros must not be divided by zero. It is far below any activation and
# far above the smallest normal float32.
TINY = np.float32(1e-20)
# Factors by which the range of a 4-bit block is shrunk in the search for the least squared error: rounding gets finer
# for most weights while the outermost one is clipped. Factors below 0.8 always gave a larger error.
_SHRINK_FACTORS = (1.0, 0.95, 0.9, 0.85, 0.8)
_COLUMNS_PER_TASK = 256


@dataclass(frozen=True, slots=True)
class Columns:
    """int8 weights [K, N] with one float32 scale a column, [N]."""

    values: npt.NDArray[np.int8]
    scales: Floats

    def dequantized(self) -> Floats:
        """Return the float32 matrix [K, N] that these columns represent."""
        return self.values * self.scales


def quantize_columns(
    weight: Floats, *, reduce_range: bool = False, compensation: Compensation | None = None
) -> Columns:
    """Quantize ``weight`` [K, N] symmetrically with one scale a column.

    With ``compensation`` rounding is compensated for real inputs.

    Values are from -127 to 127, or from -63 to 63 (7 bits) with ``reduce_range``: x86 without VNNI adds pairs of u8×s8
    products in 16 bits with saturation, where 255·127·2 does not fit and 255·63·2 does.
    """
    max_value = 63 if reduce_range else 127
    peak = np.abs(weight).max(0)
    # At least the smallest normal number: subnormal scales lose precision.
    scales = np.maximum(np.where(peak > 0, peak, 1) / max_value, np.finfo(np.float32).tiny).astype(np.float32)
    if compensation is None:
        return Columns(np.rint(weight / scales).astype(np.int8), scales)
    zeros = np.zeros_like(scales[None])
    rounded = compensation.round(weight, scales[None], zeros, len(weight), (-max_value, max_value))
    return Columns(rounded.astype(np.int8), scales)


def row_spans(x: Floats, zero_point: int = 128, lowest: Floats | np.float32 | None = None) -> Floats:
    """Return the value of each row of ``x`` [..., K] that becomes the largest level, [..., 1].

    Levels above the zero point span values up to the row's largest, levels below it those down to the row's smallest.
    Both have the same step, the larger of the two that are needed.

    Args:
        x: Activations, float32.
        zero_point: Level that represents 0, from 1 to 254.
        lowest: Lower limit of the values, known beforehand; by default the smallest value of each row.
    """
    low = x.min(-1, keepdims=True) if lowest is None else lowest
    span: Floats = np.maximum(np.maximum(x.max(-1, keepdims=True), low * low_factor(zero_point)), TINY)
    return span


def low_factor(zero_point: int) -> np.float32:
    """Return the (negative) ratio of the largest to the smallest value that 8 bits with ``zero_point`` represent."""
    return np.float32(-(MAX_UINT8 - zero_point) / zero_point)


def round_rows(x: Floats, spans: Floats | None = None, zero_point: int = 128) -> Floats:
    """Simulate rounding of activations ``x`` [..., K] to 8 bits with one scale a row.

    Args:
        x: Activations, float32.
        spans: Values [..., 1] that become the largest level; by default :func:`row_spans`.
        zero_point: Level that represents 0, from 1 to 254.

    Returns:
        The rounded activations as float32, [..., K].
    """
    steps = np.float32(MAX_UINT8 - zero_point)
    span: Floats = row_spans(x, zero_point) if spans is None else np.maximum(spans, TINY)
    levels = np.clip(np.rint(x / span * steps), -zero_point, steps)
    rounded: Floats = levels * (span / steps)
    return rounded


@dataclass(frozen=True, slots=True)
class Blocks:
    """A matrix [K, N] quantized in blocks along K, in the layout that ``MatMulNBits`` reads.

    Attributes:
        values: uint8 [N, blocks, block·bits/8]; with 4 bits the even element is in the low half of a byte.
        scales: float32 [N, blocks].
        zeros: Zero points, uint8 [N, blocks], one a byte; None if every zero point is the middle, 2^(bits - 1).
        bits: 4 or 8.
        block: Weights in a block.
        inner: K, without the padding of the last block.
    """

    values: npt.NDArray[np.uint8]
    scales: Floats
    zeros: npt.NDArray[np.uint8] | None
    bits: int
    block: int
    inner: int

    @property
    def levels(self) -> npt.NDArray[np.uint8]:
        """Quantized levels, uint8 [N, blocks, block], one a byte."""
        if self.bits == 8:
            return self.values
        return np.stack([self.values & 15, self.values >> 4], -1).reshape(*self.values.shape[:2], self.block)

    def dequantized(self) -> Floats:
        """Return the float32 matrix [K, N] that these blocks represent."""
        levels = self.levels
        zeros = np.float32(2 ** (self.bits - 1)) if self.zeros is None else self.zeros[..., None].astype(np.float32)
        floats = (levels.astype(np.float32) - zeros) * self.scales[..., None]
        return floats.reshape(len(floats), -1)[:, : self.inner].T

    def packed_zeros(self) -> npt.NDArray[np.uint8] | None:
        """Return the zero points for ``MatMulNBits``: uint8 [N, ⌈blocks·bits/8⌉], the even block in the low half."""
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
    compensation: Compensation | None = None,
) -> Blocks:
    """Quantize ``weight`` [K, N] in blocks of ``block`` along K.

    Args:
        weight: The float32 matrix.
        bits: 4 or 8.
        block: Weights that share a scale; the last block is padded with zeros.
        symmetric: Use one zero point for all blocks; otherwise each block has its own.
        importance: Mean square of the inputs, [K]. The search for the range of 4-bit blocks weights squared errors with
            it.
        search: Search the range of 4-bit blocks for the least squared error; otherwise it is that of the weights.
        compensation: Rounding that is compensated for real inputs; by default weights get the nearest level.
    """
    inner, outer = weight.shape
    blocks = -(-inner // block)
    values = np.empty((outer, blocks, block * bits // 8), np.uint8)
    scales = np.empty((outer, blocks), np.float32)
    zeros = np.empty((outer, blocks), np.uint8)
    weights = None
    if importance is not None:
        weights = np.pad(importance, (0, blocks * block - inner)).reshape(blocks, block).astype(np.float32)
    shrink_factors = _SHRINK_FACTORS if bits == 4 and search else _SHRINK_FACTORS[:1]

    def quantize_columns_from(start: int) -> None:
        part = np.ascontiguousarray(weight[:, start : start + _COLUMNS_PER_TASK].T)
        part = np.pad(part, ((0, 0), (0, blocks * block - inner))).reshape(len(part), blocks, block)
        levels, scale, zero = _best_range(part, bits, shrink_factors, weights, symmetric=symmetric)
        columns = slice(start, start + len(part))
        values[columns] = levels[..., 0::2] | (levels[..., 1::2] << 4) if bits == 4 else levels
        scales[columns], zeros[columns] = scale, zero

    with ThreadPoolExecutor(usable_cores()) as pool:  # numpy releases the interpreter lock
        list(pool.map(quantize_columns_from, range(0, outer, _COLUMNS_PER_TASK)))
    if compensation is not None:
        # Symmetric blocks leave the lowest level unused, as rounding to the nearest level does.
        limits = (int(symmetric), 2**bits - 1)
        rounded = compensation.round(weight, scales.T, zeros.T.astype(np.float32), block, limits)
        levels = np.pad(rounded, ((0, blocks * block - inner), (0, 0))).T.reshape(outer, blocks, block).astype(np.uint8)
        if inner % block:
            levels[:, -1, inner % block :] = zeros[:, -1:]  # padding represents zero
        values = levels[..., 0::2] | (levels[..., 1::2] << 4) if bits == 4 else levels
    return Blocks(values, scales, None if symmetric else zeros, bits, block, inner)


def _best_range(
    part: Floats, bits: int, shrink_factors: tuple[float, ...], weights: Floats | None, *, symmetric: bool
) -> tuple[npt.NDArray[np.uint8], Floats, npt.NDArray[np.uint8]]:
    """Find the range of each block that gives the least squared error, weighted with ``weights`` if given.

    Args:
        part: Weights, float32 [n, blocks, block].
        bits: 4 or 8.
        shrink_factors: Factors of the full range to try; the first must be 1.
        weights: Weights of the squared errors, float32 [blocks, block].
        symmetric: Use the middle level as the zero point.

    Returns:
        Levels, uint8 [n, blocks, block]; scales, float32 [n, blocks]; zero points, uint8 [n, blocks].
    """
    max_level = 2**bits - 1
    best_error: Floats | None = None
    for shrink in shrink_factors:
        if symmetric:
            peak = np.abs(part).max(-1, keepdims=True) * np.float32(shrink)
            scale = peak / np.float32(2 ** (bits - 1) - 1)
            scale[scale == 0] = 1
            zero = np.full_like(scale, 2 ** (bits - 1))
        else:
            low = np.minimum(part.min(-1, keepdims=True), 0) * np.float32(shrink)
            high = np.maximum(part.max(-1, keepdims=True), 0) * np.float32(shrink)
            scale = (high - low) / np.float32(max_level)
            scale[scale == 0] = 1
            zero = np.rint(-low / scale)
        levels = part / scale
        np.rint(levels, out=levels)
        levels += zero
        np.clip(levels, 0, max_level, out=levels)
        if len(shrink_factors) == 1:
            return levels.astype(np.uint8), scale[..., 0], zero[..., 0].astype(np.uint8)
        error = (levels - zero) * scale
        error -= part
        error *= error
        if weights is not None:
            error *= weights
        block_error = error.sum(-1, keepdims=True)
        if best_error is None:
            best_error, best = block_error, (levels.astype(np.uint8), scale, zero)
            continue
        better = block_error < best_error
        best_error = np.where(better, block_error, best_error)
        best = (
            np.where(better, levels.astype(np.uint8), best[0]),
            np.where(better, scale, best[1]),
            np.where(better, zero, best[2]),
        )
    levels, scale, zero = best
    return levels, scale[..., 0], zero[..., 0].astype(np.uint8)


def relative_error(actual: Floats, expected: Floats) -> float:
    """Return the Euclidean norm of ``actual - expected`` divided by that of ``expected``."""
    return float(np.linalg.norm(actual - expected)) / max(float(np.linalg.norm(expected)), 1e-30)
