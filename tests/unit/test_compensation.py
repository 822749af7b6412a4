"""Tests of compensated rounding: the error of products, its limits, and how levels are stored."""

from __future__ import annotations

import numpy as np
import pytest

from quantize.calibration import ActivationStatistics
from quantize.compensation import Compensation
from quantize.numerics import (
    GELU_MINIMUM,
    ZERO_POINTS,
    Floats,
    quantize_blocks,
    quantize_columns,
    relative_error,
    round_rows,
)


def correlated(rng: np.random.Generator, rows: int, channels: int) -> Floats:
    """Rows [rows, channels] that vary mostly in a quarter of the dimensions, as activations do."""
    basis = rng.standard_normal((channels // 4, channels))
    noise = 0.1 * rng.standard_normal((rows, channels))
    return (rng.standard_normal((rows, channels // 4)) @ basis / 8 + noise).astype(np.float32)


@pytest.mark.parametrize(("channels", "columns"), [(160, 48), (100, 1100)])
def test_compensation_lowers_the_error_on_other_rows(channels: int, columns: int) -> None:
    """More rows than channels, or fewer: it is the error on rows that rounding did not see."""
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((channels, columns)).astype(np.float32)
    inputs = correlated(rng, 1200, channels)
    seen, unseen = inputs[:600], inputs[600:]
    compensation, exact = Compensation(seen), unseen @ weight
    for bits, bound in ((4, 0.75), (8, 0.75)):
        nearest = quantize_blocks(weight, bits, 32, symmetric=bits == 8)
        compensated = quantize_blocks(weight, bits, 32, symmetric=bits == 8, compensation=compensation)
        assert relative_error(unseen @ compensated.dequantized(), exact) < bound * relative_error(
            unseen @ nearest.dequantized(), exact
        )
    nearest_columns = quantize_columns(weight).dequantized()
    columns_error = relative_error(unseen @ quantize_columns(weight, compensation=compensation).dequantized(), exact)
    assert columns_error < 0.75 * relative_error(unseen @ nearest_columns, exact)


def test_independent_channels_get_the_nearest_levels() -> None:
    """There is nothing to compensate: the Gram matrix is diagonal, also with channels that are always zero."""
    weight = np.random.default_rng(4).standard_normal((64, 20)).astype(np.float32)
    inputs = np.diag(np.linspace(0, 3, 64)).astype(np.float32)
    compensated = quantize_columns(weight, compensation=Compensation(inputs))
    np.testing.assert_array_equal(compensated.values, quantize_columns(weight).values)


def test_inputs_of_zeros_get_the_nearest_levels() -> None:
    weight = np.random.default_rng(5).standard_normal((32, 8)).astype(np.float32)
    compensated = quantize_columns(weight, compensation=Compensation(np.zeros((4, 32), np.float32)))
    np.testing.assert_array_equal(compensated.values, quantize_columns(weight).values)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_levels_stay_in_range_with_an_incomplete_last_block(bits: int, *, symmetric: bool) -> None:
    """The last block is filled with levels that represent zero."""
    rng = np.random.default_rng(6)
    weight = (rng.standard_normal((70, 12)) * 5).astype(np.float32)
    blocks = quantize_blocks(weight, bits, 32, symmetric=symmetric, compensation=Compensation(correlated(rng, 300, 70)))
    levels = blocks.levels.reshape(12, -1)
    assert levels.shape == (12, 96)
    assert levels.min() >= (1 if symmetric else 0)
    zeros = np.full((12, 3), 2 ** (bits - 1)) if blocks.zeros is None else blocks.zeros
    np.testing.assert_array_equal(levels[:, 70:], np.repeat(zeros[:, 2:], 26, 1))
    step = blocks.scales.repeat(32, 1)[:, :70].T
    # Compensation moves a weight by more than half a step, but not far.
    assert np.abs(blocks.dequantized() - weight).max() < 8 * step.max()


def statistics_of(rows: Floats) -> ActivationStatistics:
    statistics = ActivationStatistics()
    statistics.add(rows, np.abs(rows).max(-1, keepdims=True), len(rows))
    statistics.finish(len(rows))
    return statistics


def gelu(x: Floats) -> Floats:
    """GELU by its tanh approximation, which is as far below zero as the exact one."""
    y: Floats = (x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))).astype(np.float32)
    return y


def test_zero_point_follows_the_signs_of_the_values() -> None:
    rng = np.random.default_rng(7)
    normal = rng.standard_normal((300, 512)).astype(np.float32)
    assert statistics_of(normal).best_zero_point() == 128
    statistics = statistics_of(gelu(normal))
    zero_point = statistics.best_zero_point(GELU_MINIMUM)
    assert zero_point < 64
    errors = {
        tried: relative_error(statistics.rounded(zero_point=tried, lowest=GELU_MINIMUM), statistics.rows)
        for tried in ZERO_POINTS
    }
    assert min(errors, key=errors.__getitem__) == zero_point
    assert errors[zero_point] < 0.7 * errors[128]


def test_rows_with_enormous_values_do_not_choose_the_zero_point() -> None:
    """One row in a hundred has values of 1,000, for which a low zero point would be best."""
    normal = np.random.default_rng(8).standard_normal((200, 64)).astype(np.float32)
    normal[::100] = np.abs(normal[::100]) * 1000
    assert statistics_of(normal).best_zero_point() == 128


@pytest.mark.parametrize("zero_point", ZERO_POINTS)
def test_rounded_rows_are_within_half_a_step(zero_point: int) -> None:
    x = np.random.default_rng(9).standard_normal((50, 40)).astype(np.float32)
    x[0], x[1], x[2] = 0, np.abs(x[1]), -np.abs(x[2])
    span = np.maximum(x.max(-1), -x.min(-1) * (255 - zero_point) / zero_point)
    step = span / (255 - zero_point)
    assert (np.abs(round_rows(x, zero_point=zero_point) - x).max(-1) <= step * 0.501 + 1e-12).all()
