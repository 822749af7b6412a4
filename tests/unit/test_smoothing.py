"""Outlier channels: found on calibration rows, folded where that helps, and only there."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from quantize.calibration import SAMPLE_ROWS, Calibration, Inputs
from quantize.graph import array
from quantize.methods import w8a8
from quantize.numerics import Floats, relative_error, round_rows
from quantize.products import Product, Weights, find_products
from quantize.recipe import W8A8, AnyRule, Keep, Smoothing, WeightOnly
from quantize.smoothing import Smoothed, product_error, smooth
from quantize.smoothing_sites import find_smoothing_sites
from runtime.host.cpu import lacks_vnni

INTEGERS = W8A8(graph="*", error_bound=1.0)
BLIND = W8A8(graph="*", error_bound=1.0, smoothing=None)
FOUR_BITS = WeightOnly(graph="*", bits=4, block=64, smoothing=Smoothing())
WIDTH = 128
OUTLIERS = [3, 40, 77, 121]

TEXT = f"""<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]>
tiny (float[M, {WIDTH}] x) => (float[M, 64] y, float[M, 64] z)
    {{ n = LayerNormalization(x, gain) [a] t = MatMul(n, u) y = Identity(t) [b] s = MatMul(n, v) z = Identity(s) }}"""


class Setup:
    """Two products behind a norm whose gain is ``loud`` times larger in four channels."""

    def __init__(self, rng: np.random.Generator, loud: float = 1.0, silent: bool = False) -> None:
        gain = rng.uniform(0.8, 1.2, WIDTH).astype(np.float32)
        gain[OUTLIERS] *= loud
        gain *= not silent
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
        self.inputs = calibration.finish()

    def smooth(self, *rules: AnyRule | None) -> list[Smoothed]:
        chosen = dict(zip("ab", rules, strict=True))
        sites = find_smoothing_sites(self.products)
        return smooth(sites, self.weights, self.inputs, lambda p: chosen[p.name], np.random.default_rng(0))

    def error(self, product: Product, rule: AnyRule) -> float:
        error, norm = product_error(product, rule, self.inputs["n"], self.weights.matrix(product))
        return float(np.sqrt(error / norm))

    def run(self) -> list[Floats]:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.model.graph.sort()
        data = ir.to_proto(self.model).SerializeToString()
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        outputs: list[Floats] = session.run(None, {"x": self.x})
        return outputs


def test_four_loud_channels_are_smoothed_away(rng: np.random.Generator) -> None:
    """The error falls at least to a third, as promised and in the graph itself; the float graph stays the same."""
    setup = Setup(rng, loud=50)
    exact = setup.run()
    rule = msgspec.structs.replace(INTEGERS, reduce_range=lacks_vnni() is not False)
    before = [setup.error(product, rule) for product in setup.products]
    (done,) = setup.smooth(rule, rule)
    assert done.products == ["a", "b"]
    after = [setup.error(product, rule) for product in setup.products]
    assert all(new < old / 3 for new, old in zip(after, before, strict=True))
    assert done.after < done.before / 3
    assert done.alpha in Smoothing().alphas
    rounding = w8a8.ActivationRounding(setup.model.graph)
    for product in setup.products:
        w8a8.quantize(setup.model.graph, rounding, product, setup.weights, reduce_range=rule.reduce_range)
    for found, expected, estimated in zip(setup.run(), exact, after, strict=True):
        assert relative_error(found, expected) == pytest.approx(estimated, rel=0.1)


def test_what_was_folded_is_the_same_function(rng: np.random.Generator) -> None:
    setup = Setup(rng, loud=50)
    exact = setup.run()
    gain = array(setup.model.graph.initializers["gain"]).copy()
    setup.smooth(INTEGERS, INTEGERS)
    for product in setup.products:
        setup.weights.write_back(product)
    changed = gain / array(setup.model.graph.initializers["gain"])
    calm = np.delete(changed, OUTLIERS)
    assert changed[OUTLIERS].min() > 3 * calm.max()
    for found, expected in zip(setup.run(), exact, strict=True):
        assert relative_error(found, expected) < 1e-5


def test_four_bits_gain_too(rng: np.random.Generator) -> None:
    """Weights that meet loud inputs are rounded more finely."""
    setup = Setup(rng, loud=50)
    before = setup.error(setup.products[0], FOUR_BITS)
    (done,) = setup.smooth(FOUR_BITS, FOUR_BITS)
    assert setup.error(setup.products[0], FOUR_BITS) < 0.8 * before
    assert done.after < 0.9 * done.before


def test_without_outliers_nothing_is_touched(rng: np.random.Generator) -> None:
    setup = Setup(rng)
    gain = array(setup.model.graph.initializers["gain"]).copy()
    rows = setup.inputs["n"].rows.copy()
    assert setup.smooth(INTEGERS, INTEGERS) == []
    np.testing.assert_array_equal(array(setup.model.graph.initializers["gain"]), gain)
    np.testing.assert_array_equal(setup.inputs["n"].rows, rows)
    assert list(setup.weights.scaled(setup.products)) == []


@pytest.mark.parametrize("other", [BLIND, Keep(graph="*"), None, WeightOnly(graph="*", bits=8, block=32)])
def test_every_reader_must_want_it(other: AnyRule | None, rng: np.random.Generator) -> None:
    setup = Setup(rng, loud=50)
    assert setup.smooth(INTEGERS, other) == []
    assert list(setup.weights.scaled(setup.products)) == []


def test_readers_may_have_different_methods(rng: np.random.Generator) -> None:
    (done,) = Setup(rng, loud=50).smooth(INTEGERS, FOUR_BITS)
    assert done.after < 0.6 * done.before


def test_dead_channels_and_dead_inputs_do_no_harm(rng: np.random.Generator) -> None:
    setup = Setup(rng, loud=50)
    setup.inputs["n"].rows[:, :10] = 0
    setup.inputs["n"].channel_peak[:10] = 0
    (done,) = setup.smooth(INTEGERS, INTEGERS)
    assert done.after < done.before / 3
    scale = setup.weights.row_scale(setup.products[0])
    np.testing.assert_array_equal(np.asarray(scale)[:10], 1)
    assert np.isfinite(scale).all()


@pytest.mark.filterwarnings("error")
def test_an_input_that_is_always_zero_is_not_smoothed(rng: np.random.Generator) -> None:
    setup = Setup(rng, silent=True)
    assert setup.smooth(INTEGERS, INTEGERS) == []


def test_many_columns_are_tried_in_part(rng: np.random.Generator) -> None:
    """What is chosen on a thousand of them holds for all."""
    setup = Setup(rng, loud=50)
    for product in setup.products:
        product.weight.const_value = ir.tensor(rng.standard_normal((WIDTH, 1500)).astype(np.float32))
    before = setup.error(setup.products[0], INTEGERS)
    (done,) = setup.smooth(INTEGERS, INTEGERS)
    assert setup.error(setup.products[0], INTEGERS) == pytest.approx(done.after, rel=0.1)
    assert done.after < before / 3


# What is measured


def of(rows: Floats, most: int = 10_000) -> Inputs:
    inputs = Inputs()
    for part in np.array_split(rows, 3):
        inputs.add(part, np.abs(part).max(1, keepdims=True), most)
    inputs.finish()
    return inputs


def test_statistics_of_several_runs(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((900, 20)).astype(np.float32)
    inputs = of(rows)
    np.testing.assert_array_equal(inputs.channel_peak, np.abs(rows).max(0))
    np.testing.assert_allclose(inputs.mean_square, np.square(rows).mean(0), rtol=1e-5)
    assert inputs.rows.shape == (SAMPLE_ROWS, 20)
    np.testing.assert_array_equal(inputs.peaks[:, 0], np.abs(inputs.rows).max(1))
    np.testing.assert_allclose(inputs.rounded(), round_rows(inputs.rows), rtol=1e-5, atol=1e-7)
    part = inputs.head(10)
    assert part.rows.shape == (10, 20)
    np.testing.assert_array_equal(part.mean_square, inputs.mean_square)
    assert len(of(rows, most=50).rows) == 150


def test_divided_statistics_are_those_of_the_divided_value(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((100, 20)).astype(np.float32)
    scale = (10 ** rng.uniform(-1, 1, 20)).astype(np.float32)
    inputs, expected = of(rows), of(rows / scale)
    np.testing.assert_allclose(inputs.rounded(scale), expected.rounded(), rtol=1e-4, atol=1e-6)
    inputs.divide(scale)
    for name in ("rows", "peaks", "channel_peak", "mean_square"):
        np.testing.assert_allclose(getattr(inputs, name), getattr(expected, name), rtol=1e-5, err_msg=name)


def test_patches_of_a_convolution_times_its_matrix_are_its_result(rng: np.random.Generator) -> None:
    """Every position, with pads and strides that differ by side; peaks are those of the batch element."""
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
    inputs: Any = calibration.finish()["x"]
    expected = y.transpose(0, 2, 3, 1).reshape(-1, 4)
    assert len(expected) < SAMPLE_ROWS  # so that none is left out
    np.testing.assert_allclose(inputs.rows @ Weights().matrix(products[0]), expected, rtol=1e-4, atol=1e-4)
    element = np.repeat(np.abs(x).max((1, 2, 3)), len(expected) // 2)
    np.testing.assert_array_equal(inputs.peaks[:, 0], element)
