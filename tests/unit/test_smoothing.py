"""Tests of smoothing: scales that reduce outlier channels, and the calibration statistics they are computed from."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from quantize.calibration import ERROR_ROWS, MAX_ROWS, ActivationStatistics, Calibration
from quantize.graph import array
from quantize.methods import w8a8
from quantize.numerics import Floats, quantize_columns, relative_error, round_rows
from quantize.products import Product, Weights, find_products
from quantize.recipe import W8A8, AnyRule, Keep, Smoothing, WeightOnly
from quantize.smoothing import SmoothingResult, product_error, smooth
from quantize.smoothing_sites import find_smoothing_sites
from runtime.host.cpu import lacks_vnni

INTEGERS = W8A8(graph="*", error_bound=1.0)
WITHOUT_SMOOTHING = W8A8(graph="*", error_bound=1.0, smoothing=None)
FOUR_BITS = WeightOnly(graph="*", bits=4, block=64, smoothing=Smoothing())
WIDTH = 128
OUTLIERS = [3, 40, 77, 121]

TEXT = f"""<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]>
tiny (float[M, {WIDTH}] x) => (float[M, 64] y, float[M, 64] z)
    {{ n = LayerNormalization(x, gain) [a] t = MatMul(n, u) y = Identity(t) [b] s = MatMul(n, v) z = Identity(s) }}"""


class Setup:
    """Two products after a normalization whose gain is ``outlier_factor`` times larger in four channels."""

    def __init__(self, rng: np.random.Generator, outlier_factor: float = 1.0, zero_gain: bool = False) -> None:
        gain = rng.uniform(0.8, 1.2, WIDTH).astype(np.float32)
        gain[OUTLIERS] *= outlier_factor
        gain *= not zero_gain
        proto = onnx.parser.parse_model(TEXT)
        weights = {name: rng.standard_normal((WIDTH, 64)).astype(np.float32) for name in "uv"}
        for name, value in ({"gain": gain} | weights).items():
            proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        self.model = ir.from_proto(proto)
        self.products = find_products(self.model.graph)
        self.weights = Weights()
        self.x = rng.standard_normal((200, WIDTH)).astype(np.float32)
        self.normed = (self.x - self.x.mean(1, keepdims=True)) / np.sqrt(self.x.var(1, keepdims=True) + 1e-5) * gain
        calibration = Calibration(self.products, 1)
        assert calibration.taps == ["n"]
        calibration.add({"n": self.normed})
        self.statistics = calibration.finish()

    def smooth(self, *rules: AnyRule | None) -> list[SmoothingResult]:
        by_name = dict(zip("ab", rules, strict=True))
        sites = find_smoothing_sites(self.products)
        return smooth(
            sites, self.weights, self.statistics, lambda product: by_name[product.name], np.random.default_rng(0)
        )

    def error(self, product: Product, rule: AnyRule) -> float:
        error, norm = product_error(product, rule, self.statistics["n"], self.weights.matrix(product))
        return float(np.sqrt(error / norm))

    def run(self) -> list[Floats]:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.model.graph.sort()
        data = ir.to_proto(self.model).SerializeToString()
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        outputs: list[Floats] = session.run(None, {"x": self.x})
        return outputs


def test_smoothing_reduces_the_error_of_four_outlier_channels(rng: np.random.Generator) -> None:
    """The error falls to less than a third, both in the estimate and in the quantized graph."""
    setup = Setup(rng, outlier_factor=50)
    exact = setup.run()
    rule = msgspec.structs.replace(INTEGERS, reduce_range=lacks_vnni() is not False)
    before = [setup.error(product, rule) for product in setup.products]
    (result,) = setup.smooth(rule, rule)
    assert result.products == ["a", "b"]
    after = [setup.error(product, rule) for product in setup.products]
    assert all(new < old / 3 for new, old in zip(after, before, strict=True))
    assert result.after < result.before / 3
    assert result.alpha in Smoothing().alphas
    rounding = w8a8.ActivationRounding(setup.model.graph)
    for product in setup.products:
        columns = quantize_columns(setup.weights.matrix(product), reduce_range=rule.reduce_range)
        w8a8.quantize(setup.model.graph, rounding, product, columns, 128)
    for actual, expected, estimated in zip(setup.run(), exact, after, strict=True):
        assert relative_error(actual, expected) == pytest.approx(estimated, rel=0.1)


def test_folded_graph_computes_the_same_function(rng: np.random.Generator) -> None:
    setup = Setup(rng, outlier_factor=50)
    exact = setup.run()
    gain = array(setup.model.graph.initializers["gain"]).copy()
    setup.smooth(INTEGERS, INTEGERS)
    for product in setup.products:
        setup.weights.write_back(product)
    changed = gain / array(setup.model.graph.initializers["gain"])
    others = np.delete(changed, OUTLIERS)
    assert changed[OUTLIERS].min() > 3 * others.max()
    for actual, expected in zip(setup.run(), exact, strict=True):
        assert relative_error(actual, expected) < 1e-5


def test_smoothing_reduces_the_error_of_four_bit_weights(rng: np.random.Generator) -> None:
    """Weights that multiply outlier channels are rounded more finely."""
    setup = Setup(rng, outlier_factor=50)
    before = setup.error(setup.products[0], FOUR_BITS)
    (result,) = setup.smooth(FOUR_BITS, FOUR_BITS)
    assert setup.error(setup.products[0], FOUR_BITS) < 0.8 * before
    assert result.after < 0.9 * result.before


def test_without_outliers_nothing_changes(rng: np.random.Generator) -> None:
    setup = Setup(rng)
    gain = array(setup.model.graph.initializers["gain"]).copy()
    rows = setup.statistics["n"].rows.copy()
    assert setup.smooth(INTEGERS, INTEGERS) == []
    np.testing.assert_array_equal(array(setup.model.graph.initializers["gain"]), gain)
    np.testing.assert_array_equal(setup.statistics["n"].rows, rows)
    assert list(setup.weights.scaled(setup.products)) == []


@pytest.mark.parametrize("other", [WITHOUT_SMOOTHING, Keep(graph="*"), None, WeightOnly(graph="*", bits=8, block=32)])
def test_every_reader_must_have_smoothing(other: AnyRule | None, rng: np.random.Generator) -> None:
    setup = Setup(rng, outlier_factor=50)
    assert setup.smooth(INTEGERS, other) == []
    assert list(setup.weights.scaled(setup.products)) == []


def test_readers_may_have_different_methods(rng: np.random.Generator) -> None:
    (result,) = Setup(rng, outlier_factor=50).smooth(INTEGERS, FOUR_BITS)
    assert result.after < 0.6 * result.before


def test_channels_that_are_always_zero_get_scale_one(rng: np.random.Generator) -> None:
    setup = Setup(rng, outlier_factor=50)
    setup.statistics["n"].rows[:, :10] = 0
    setup.statistics["n"].channel_peak[:10] = 0
    (result,) = setup.smooth(INTEGERS, INTEGERS)
    assert result.after < result.before / 3
    scale = setup.weights.row_scale(setup.products[0])
    np.testing.assert_array_equal(np.asarray(scale)[:10], 1)
    assert np.isfinite(scale).all()


@pytest.mark.filterwarnings("error")
def test_input_that_is_always_zero_is_not_smoothed(rng: np.random.Generator) -> None:
    setup = Setup(rng, zero_gain=True)
    assert setup.smooth(INTEGERS, INTEGERS) == []


def test_search_on_a_part_of_the_columns(rng: np.random.Generator) -> None:
    """The error on a thousand columns is close to that on all."""
    setup = Setup(rng, outlier_factor=50)
    for product in setup.products:
        product.weight.const_value = ir.tensor(rng.standard_normal((WIDTH, 1500)).astype(np.float32))
    before = setup.error(setup.products[0], INTEGERS)
    (result,) = setup.smooth(INTEGERS, INTEGERS)
    assert setup.error(setup.products[0], INTEGERS) == pytest.approx(result.after, rel=0.1)
    assert result.after < before / 3


# Calibration statistics


def statistics_of(rows: Floats, max_rows: int = 10_000) -> ActivationStatistics:
    statistics = ActivationStatistics()
    for part in np.array_split(rows, 3):
        statistics.add(part, np.abs(part).max(1, keepdims=True), max_rows)
    statistics.finish()
    return statistics


def test_statistics_of_several_runs(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((900, 20)).astype(np.float32)
    statistics = statistics_of(rows)
    np.testing.assert_array_equal(statistics.channel_peak, np.abs(rows).max(0))
    np.testing.assert_allclose(statistics.mean_square, np.square(rows).mean(0), rtol=1e-5)
    assert statistics.rows.shape == (ERROR_ROWS, 20)
    np.testing.assert_array_equal(statistics.peaks[:, 0], np.abs(statistics.rows).max(1))
    np.testing.assert_allclose(statistics.rounded(), round_rows(statistics.rows), rtol=1e-5, atol=1e-7)
    part = statistics.head(10)
    assert part.rows.shape == (10, 20)
    np.testing.assert_array_equal(part.mean_square, statistics.mean_square)
    assert len(statistics_of(rows, max_rows=50).rows) == 150


def test_divided_statistics_equal_those_of_the_divided_values(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((100, 20)).astype(np.float32)
    scale = (10 ** rng.uniform(-1, 1, 20)).astype(np.float32)
    statistics, expected = statistics_of(rows), statistics_of(rows / scale)
    np.testing.assert_allclose(statistics.rounded(scale), expected.rounded(), rtol=1e-4, atol=1e-6)
    statistics.divide(scale)
    for name in ("rows", "peaks", "channel_peak", "mean_square"):
        np.testing.assert_allclose(getattr(statistics, name), getattr(expected, name), rtol=1e-5, err_msg=name)


def test_patches_times_the_matrix_equal_the_convolution(rng: np.random.Generator) -> None:
    """All positions, with asymmetric pads and strides; peaks are those of the batch element."""
    text = """<ir_version: 10, opset_import: ["": 20]>
    tiny (float[B, 3, H, W] x) => (float[B, 4, H2, W2] y)
        { [c] y = Conv<kernel_shape = [3, 2], pads = [1, 0, 2, 1], strides = [2, 1]>(x, w) }"""
    proto = onnx.parser.parse_model(text)
    weight = rng.standard_normal((4, 3, 3, 2)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    x = rng.standard_normal((2, 3, 7, 5)).astype(np.float32) * np.array([1, 100], np.float32).reshape(2, 1, 1, 1)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    products = find_products(ir.from_proto(proto).graph)
    calibration = Calibration(products, 1)
    calibration.add({"x": x})
    statistics: Any = calibration.finish()["x"]
    expected = y.transpose(0, 2, 3, 1).reshape(-1, 4)
    assert len(expected) < MAX_ROWS  # so that all rows are sampled
    np.testing.assert_allclose(statistics.rows @ Weights().matrix(products[0]), expected, rtol=1e-4, atol=1e-4)
    element = np.repeat(np.abs(x).max((1, 2, 3)), len(expected) // 2)
    np.testing.assert_array_equal(statistics.peaks[:, 0], element)
