"""Tests of the numpy quantizers: rounding errors, exact values, kernel layouts, and the search for block ranges."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from quantize.numerics import TINY, Blocks, Floats, quantize_blocks, quantize_columns, relative_error, round_rows

BLOCKS = [16, 32, 64, 128, 256]


@st.composite
def matrices(draw: st.DrawFn, rows: int = 70, columns: int = 4) -> Floats:
    """Small float32 matrices [K, N] of any magnitude, some with zeros."""
    shape = (draw(st.integers(1, rows)), draw(st.integers(1, columns)))
    elements = st.floats(-8, 8, width=32, allow_subnormal=False)
    values: Floats = draw(arrays.arrays(np.float32, shape, elements=elements))
    values[np.abs(values) < 1e-6] = 0
    return values * np.float32(10.0 ** draw(st.integers(-12, 12)))


def half_steps(actual: Floats, weight: Floats, step: Floats) -> Floats:
    """Errors in units of half a step."""
    errors: Floats = np.abs(actual - weight) / (step / 2)
    return errors


def levels(blocks: Blocks) -> npt.NDArray[np.uint8]:
    """The integers [K, N] of a matrix, without padding."""
    packed = blocks.values
    if blocks.bits == 4:
        packed = np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:2], blocks.block)
    return packed.reshape(len(packed), -1)[:, : blocks.inner].T


def steps(blocks: Blocks) -> Floats:
    """The scale of every weight, [K, N]."""
    return np.repeat(blocks.scales, blocks.block, 1)[:, : blocks.inner].T


@given(matrices(), st.booleans())
def test_columns_are_exact_to_half_a_step(weight: Floats, reduce_range: bool) -> None:
    columns = quantize_columns(weight, reduce_range=reduce_range)
    max_value = 63 if reduce_range else 127
    assert columns.values.dtype == np.int8
    assert int(np.abs(columns.values.astype(int)).max()) <= max_value
    assert half_steps(columns.dequantized(), weight, columns.scales).max() <= 1 + 1e-4
    assert not columns.dequantized()[weight == 0].any()
    nonzero = np.abs(weight).max(0) > 0
    assert (np.abs(columns.values).max(0)[nonzero] == max_value).all()  # the whole range is used
    np.testing.assert_allclose(columns.scales[nonzero] * max_value, np.abs(weight).max(0)[nonzero], rtol=1e-6)


@pytest.mark.parametrize("smallest", [1, 136, 1000])
def test_column_of_subnormal_weights(smallest: int) -> None:
    """Weight decay can leave weights below the smallest normal number."""
    peak = smallest * float(np.finfo(np.float32).smallest_subnormal)
    weight = np.array([[peak, 1], [-peak / 2, 2]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        columns = quantize_columns(weight)
    assert (np.abs(columns.dequantized() - weight)[:, 0] <= peak).all()


@given(matrices(), st.sampled_from(BLOCKS), st.sampled_from([4, 8]), st.booleans(), st.booleans())
def test_blocks_are_exact_to_half_a_step(
    weight: Floats, block: int, bits: int, symmetric: bool, weighted: bool
) -> None:
    """Within the range of the block; with 4 bits the search may clip the outermost weights."""
    importance = np.linspace(0, 3, len(weight), dtype=np.float32) if weighted else None
    blocks = quantize_blocks(weight, bits, block, symmetric=symmetric, importance=importance)
    inner, outer = weight.shape
    count = -(-inner // block)
    assert blocks.values.shape == (outer, count, block * bits // 8)
    assert blocks.scales.shape == (outer, count)
    assert (blocks.zeros is None) == symmetric
    actual = blocks.dequantized()
    assert actual.shape == weight.shape
    errors = half_steps(actual, weight, steps(blocks))
    inside = (levels(blocks) > 0) & (levels(blocks) < 2**bits - 1)
    assert errors[inside].max(initial=0) <= 1 + 1e-4
    if bits == 8:
        assert errors.max() <= 1 + 1e-4
    else:  # without the search nothing is clipped
        plain = quantize_blocks(weight, bits, block, symmetric=symmetric, search=False)
        assert half_steps(plain.dequantized(), weight, steps(plain)).max() <= 1 + 1e-4
    assert not actual[weight == 0].any()


@given(st.floats(-9, 9), st.sampled_from([1, -1]), st.sampled_from([4, 8]), st.booleans())
def test_constant_blocks_are_exact(exponent: float, sign: int, bits: int, symmetric: bool) -> None:
    weight = np.full((40, 2), sign * 10**exponent, np.float32)
    actual = quantize_blocks(weight, bits, 32, symmetric=symmetric).dequantized()
    np.testing.assert_allclose(actual, weight, rtol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_padding_of_the_last_block_has_no_effect(bits: int, symmetric: bool, rng: np.random.Generator) -> None:
    weight = rng.standard_normal((50, 3)).astype(np.float32)
    importance = rng.random(50).astype(np.float32)
    short = quantize_blocks(weight, bits, 32, symmetric=symmetric, importance=importance)
    whole = quantize_blocks(
        np.pad(weight, ((0, 14), (0, 0))), bits, 32, symmetric=symmetric, importance=np.pad(importance, (0, 14))
    )
    np.testing.assert_array_equal(short.values, whole.values)
    np.testing.assert_array_equal(short.scales, whole.scales)
    assert (short.inner, whole.inner) == (50, 64)
    np.testing.assert_array_equal(short.dequantized(), whole.dequantized()[:50])
    assert not whole.dequantized()[50:].any()


def test_four_bit_layout() -> None:
    """Element 2j is in the low half of byte j and 2j + 1 in the high half; level 8 is zero."""
    column = np.array([-7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7, 0], np.float32)
    blocks = quantize_blocks(column[:, None], 4, 16, symmetric=True)
    assert blocks.scales.tolist() == [[1.0]]
    expected = [0x21, 0x43, 0x65, 0x87, 0xA9, 0xCB, 0xED, 0x8F]
    assert blocks.values.tolist() == [[expected]]
    np.testing.assert_array_equal(blocks.dequantized()[:, 0], column)
    assert blocks.packed_zeros() is None
    eight = quantize_blocks(column[:, None] * np.float32(127 / 7), 8, 16, symmetric=True)
    assert eight.values.shape == (1, 1, 16)
    assert (int(eight.values[0, 0, 0]), int(eight.values[0, 0, 7])) == (1, 128)


def test_packed_zero_points_of_an_odd_number_of_blocks() -> None:
    """Two zero points a byte, the even block in the low half; the last byte is half empty."""
    zeros = [3, 0, 15]
    parts = [np.arange(16, dtype=np.float32) - zero for zero in zeros]
    weight = np.stack([np.concatenate(parts), np.concatenate(parts[::-1])], 1)
    four = quantize_blocks(weight, 4, 16, symmetric=False)
    assert four.zeros is not None
    assert four.zeros.tolist() == [[3, 0, 15], [15, 0, 3]]
    packed = four.packed_zeros()
    assert packed is not None
    assert packed.tolist() == [[0x03, 0x0F], [0x0F, 0x03]]
    np.testing.assert_array_equal(four.dequantized(), weight)
    eight = quantize_blocks(weight, 8, 16, symmetric=False)
    assert eight.zeros is not None
    np.testing.assert_array_equal(eight.packed_zeros(), eight.zeros)


def weighted_error(blocks: Blocks, weight: Floats, importance: Floats) -> float:
    return float((np.square(blocks.dequantized() - weight) * importance[:, None]).astype(np.float64).sum())


@given(st.integers(0, 2**32 - 1), st.sampled_from([16, 32, 64]), st.booleans(), st.sampled_from([1.0, 3.0, 9.0]))
def test_range_search_never_increases_the_error(seed: int, block: int, symmetric: bool, tail: float) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((75, 3)) * tail ** rng.random((75, 3))).astype(np.float32)
    importance = (10 ** rng.uniform(-3, 3, 75)).astype(np.float32)
    searched = quantize_blocks(weight, 4, block, symmetric=symmetric, importance=importance)
    plain = quantize_blocks(weight, 4, block, symmetric=symmetric, search=False)
    assert weighted_error(searched, weight, importance) <= weighted_error(plain, weight, importance) * (1 + 1e-5)


@pytest.mark.parametrize("symmetric", [True, False])
def test_range_search_follows_importance(symmetric: bool, rng: np.random.Generator) -> None:
    """Unimportant outermost weights are clipped, so that others get finer steps; important ones are not."""
    weight = rng.uniform(-1, 1, (64, 40)).astype(np.float32)
    weight[0], weight[1] = 1.6, -1.6
    unimportant, important = np.ones(64, np.float32), np.ones(64, np.float32)
    unimportant[:2], important[:2] = 1e-3, 1e3
    for_others, for_outermost = (
        quantize_blocks(weight, 4, 64, symmetric=symmetric, importance=importance)
        for importance in (unimportant, important)
    )
    unweighted = quantize_blocks(weight, 4, 64, symmetric=symmetric)
    assert (for_others.scales < for_outermost.scales * 0.9).mean() > 0.9
    assert weighted_error(for_others, weight, unimportant) < 0.9 * weighted_error(unweighted, weight, unimportant)
    assert weighted_error(for_outermost, weight, important) < 0.9 * weighted_error(for_others, weight, important)


def test_many_columns_equal_single_columns(rng: np.random.Generator) -> None:
    weight = rng.standard_normal((32, 1030)).astype(np.float32)  # more than one task quantizes
    whole = quantize_blocks(weight, 4, 32, symmetric=False)
    assert whole.zeros is not None
    for column in (0, 255, 256, 1029):
        alone = quantize_blocks(weight[:, column : column + 1], 4, 32, symmetric=False)
        np.testing.assert_array_equal(alone.values[0], whole.values[column])
        np.testing.assert_array_equal(alone.scales[0], whole.scales[column])
        assert alone.zeros is not None
        np.testing.assert_array_equal(alone.zeros[0], whole.zeros[column])


@given(matrices(rows=6, columns=30))
def test_rows_are_rounded_independently_to_half_a_step(x: Floats) -> None:
    peaks = np.abs(x).max(-1, keepdims=True)
    actual = round_rows(x)
    assert (np.abs(actual - x) <= np.maximum(peaks, TINY) / 127 / 2 * (1 + 1e-4)).all()
    assert not actual[x == 0].any()
    for row, alone in zip(x, actual, strict=True):
        np.testing.assert_array_equal(round_rows(row), alone)
    np.testing.assert_array_equal(round_rows(x[None, :, None]), actual[None, :, None])


def test_relative_error() -> None:
    expected = np.array([[3.0, 4.0]], np.float32)
    assert relative_error(expected, expected) == 0
    assert relative_error(np.array([[3.0, 5.0]], np.float32), expected) == pytest.approx(0.2)
    assert relative_error(expected, np.zeros((1, 2), np.float32)) > 1e6
