"""Tests of the quantization methods on tiny graphs: ONNX Runtime computes what the numpy quantizers simulate."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from quantize.errors import QuantizationError
from quantize.graph import array, drop_unused_initializers
from quantize.methods import fp16, w8a8, weight_only
from quantize.numerics import Floats, quantize_blocks, quantize_columns, relative_error, round_rows
from quantize.products import Product, Weights, find_products
from quantize.recipe import WeightOnly
from runtime.host.cpu import lacks_vnni

# Where u8×s8 products may saturate, only 7-bit weights give exact results.
SATURATES = lacks_vnni() is not False
REDUCED = [True] if SATURATES else [False, True]


def build(text: str, **weights: Any) -> ir.Model:
    """Parse a graph in ONNX text notation and add initializers by name."""
    opsets = '<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]>'
    proto = onnx.parser.parse_model(f"{opsets} tiny {text}")
    for name, weight in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    return ir.from_proto(proto)


def run(model: ir.Model, **feeds: Any) -> list[Any]:
    model.graph.sort()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    data = ir.to_proto(model).SerializeToString()
    outputs: list[Any] = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, feeds)
    return outputs


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def weight_only_everywhere(
    model: ir.Model, bits: Any, block: Any, *, symmetric: bool, arithmetic: Any = "int8"
) -> None:
    """Quantize all products like a recipe with one rule: those that share a weight together."""
    rule = WeightOnly(graph="*", bits=bits, block=block, symmetric=symmetric, arithmetic=arithmetic)
    parts = weight_only.InputParts(model.graph)
    by_weight: dict[str | None, list[Product]] = {}
    for product in find_products(model.graph):
        by_weight.setdefault(product.weight.name, []).append(product)
    for products in by_weight.values():
        weight_only.quantize(model.graph, products, Weights(), rule, parts)
    drop_unused_initializers(model.graph)


def w8a8_everywhere(model: ir.Model, *, reduce_range: bool = SATURATES, zero_point: int = 128) -> None:
    rounding, weights = w8a8.ActivationRounding(model.graph), Weights()
    for product in find_products(model.graph):
        if product.operator == "Conv" and product.patch <= w8a8.FLOAT_PATCH:
            w8a8.quantize_float(model.graph, rounding, product, weights)
            continue
        columns = quantize_columns(weights.matrix(product), reduce_range=reduce_range)
        w8a8.quantize(model.graph, rounding, product, columns, 128 if product.shares_scale else zero_point)
    drop_unused_initializers(model.graph)


def normal(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape).astype(np.float32)


# Weight-only products


@pytest.mark.parametrize("inner", [256, 200])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("bits", [4, 8])
def test_matmul_over_blocks(bits: int, block: int, symmetric: bool, inner: int, rng: np.random.Generator) -> None:
    """All block sizes, for one row and for several; the kernel rounds activations to 8 bits in blocks."""
    weight = normal(rng, inner, 24)
    model = build(f"(float[M, {inner}] x) => (float[M, 24] y) {{ [p] t = MatMul(x, w) y = Identity(t) }}", w=weight)
    weight_only_everywhere(model, bits, block, symmetric=symmetric)
    assert operators(model) == {"MatMulNBits": 1, "Identity": 1}
    dequantized = quantize_blocks(weight, bits, block, symmetric=symmetric).dequantized()
    x = normal(rng, 33, inner)
    expected = x @ dequantized
    for rows in (1, 2, 8, 33):
        (actual,) = run(model, x=x[:rows])
        assert relative_error(actual, expected[:rows]) < 0.015


@pytest.mark.parametrize("bias", [(24,), (1, 24), (1,), None])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gemm_with_a_transposed_weight(bias: tuple[int, ...] | None, symmetric: bool, rng: np.random.Generator) -> None:
    """The bias has each shape that the operator allows."""
    weight, offset = normal(rng, 24, 64), 100 * normal(rng, *(bias or (1,)))
    inputs = "x, w, b" if bias else "x, w"
    text = f"(float[M, 64] x) => (float[M, 24] y) {{ [p] t = Gemm<transB = 1>({inputs}) y = Identity(t) }}"
    x = normal(rng, 5, 64)
    expected = x @ quantize_blocks(weight.T, 8, 32, symmetric=symmetric).dequantized() + (offset if bias else 0)
    model = build(text, w=weight, b=offset)
    weight_only_everywhere(model, 8, 32, symmetric=symmetric)
    np.testing.assert_allclose(run(model, x=x)[0], expected, atol=0.5)
    model = build(text, w=weight, b=offset)
    w8a8_everywhere(model)
    expected = round_rows(x) @ quantize_columns(weight.T, reduce_range=SATURATES).dequantized()
    np.testing.assert_allclose(run(model, x=x)[0], expected + (offset if bias else 0), atol=1e-3)


TIED = """(int64[B, S] ids, float[M, 96] x) => (float[B, S, 96] rows, float[M, 40] logits)
    { [look] r = Gather(w, ids) rows = Identity(r) [head] l = Gemm<transB = 1>(x, w) logits = Identity(l) }"""


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_tied_embeddings_are_stored_once(bits: int, symmetric: bool, rng: np.random.Generator) -> None:
    table, x = normal(rng, 40, 96), normal(rng, 3, 96)
    ids = np.array([[0, 39, 7], [7, 7, 20]])
    model = build(TIED, w=table)
    weight_only_everywhere(model, bits, 32, symmetric=symmetric)
    dequantized = quantize_blocks(table.T, bits, 32, symmetric=symmetric).dequantized().T
    rows, logits = run(model, ids=ids, x=x)
    np.testing.assert_allclose(rows, dequantized[ids], atol=1e-6)
    assert relative_error(logits, x @ dequantized.T) < 0.015
    stored = [value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value]
    assert sum(size >= table.size * bits // 8 for size in stored) == 1
    scales = 40 * 3 * 4
    assert sum(stored) <= table.size * bits // 8 + 2 * scales + 4 * 40 * 3 + 100  # scales twice, zeros twice, a shape


def test_ids_of_any_rank_are_looked_up(rng: np.random.Generator) -> None:
    """Positions come without a batch."""
    table, ids = normal(rng, 40, 64), np.array([3, 1, 4, 1])
    model = build("(int64[S] ids) => (float[S, 64] rows) { [look] r = Gather(w, ids) rows = Identity(r) }", w=table)
    weight_only_everywhere(model, 8, 32, symmetric=True)
    dequantized = quantize_blocks(table.T, 8, 32, symmetric=True).dequantized().T
    np.testing.assert_allclose(run(model, ids=ids)[0], dequantized[ids], atol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
def test_table_rows_with_a_partial_block(bits: int, rng: np.random.Generator) -> None:
    """96 weights in two blocks of 64: the padding of the second block is cut."""
    table, x, ids = normal(rng, 40, 96), normal(rng, 3, 96), np.array([[0, 39, 7], [7, 7, 20]])
    model = build(TIED, w=table)
    weight_only_everywhere(model, bits, 64, symmetric=False)
    dequantized = quantize_blocks(table.T, bits, 64, symmetric=False).dequantized().T
    rows, logits = run(model, ids=ids, x=x)
    np.testing.assert_allclose(rows, dequantized[ids], atol=1e-6)
    assert relative_error(logits, x @ dequantized.T) < 0.015


CONV = """(float[B, 5, H, W] x) => (float[B, 7, H2, W2] y)
    { [c] t = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(x, w, b) y = Identity(t) }"""


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_weight_only_convolution_gets_dequantized_weights(bits: int, symmetric: bool, rng: np.random.Generator) -> None:
    weight, bias, x = normal(rng, 7, 5, 3, 3), normal(rng, 7), normal(rng, 2, 5, 11, 8)
    model = build(CONV, w=weight, b=bias)
    matrix = Weights().matrix(find_products(model.graph)[0])
    assert matrix.shape == (45, 7)  # not a multiple of the block
    dequantized = quantize_blocks(matrix, bits, 32, symmetric=symmetric).dequantized()
    weight_only_everywhere(model, bits, 32, symmetric=symmetric)
    exact = build(CONV, w=np.ascontiguousarray(dequantized.reshape(3, 3, 5, 7).transpose(3, 2, 0, 1)), b=bias)
    np.testing.assert_allclose(run(model, x=x)[0], run(exact, x=x)[0], atol=1e-5)
    assert weight.nbytes not in [value.const_value.nbytes for value in model.graph.initializers.values()]  # type: ignore[union-attr]


# Integer products


@pytest.mark.parametrize("reduce_range", REDUCED)
@pytest.mark.parametrize("shape", [(33, 160), (4, 9, 160)])
def test_integer_product_equals_the_numpy_simulation(
    shape: tuple[int, ...], reduce_range: bool, rng: np.random.Generator
) -> None:
    """Includes a row of zeros, and a row with an outlier that does not change other rows."""
    weight, x = normal(rng, 160, 48), normal(rng, *shape)
    dims = ", ".join("ABC"[: len(shape) - 1])
    text = f"(float[{dims}, 160] x) => (float[{dims}, 48] y) {{ [p] t = MatMul(x, w) y = Identity(t) }}"
    model = build(text, w=weight)
    w8a8_everywhere(model, reduce_range=reduce_range)
    assert "MatMul" not in operators(model)
    columns = quantize_columns(weight, reduce_range=reduce_range)
    (without_outlier,) = run(model, x=x)
    np.testing.assert_allclose(without_outlier, round_rows(x) @ columns.dequantized(), rtol=1e-4, atol=1e-4)
    assert relative_error(without_outlier, x @ weight) < (0.02 if reduce_range else 0.01)
    with_outlier = x.copy()
    with_outlier[..., 2, :], with_outlier[..., 3, 5] = 0, 1e4
    (actual,) = run(model, x=with_outlier)
    expected = round_rows(with_outlier) @ columns.dequantized()
    assert relative_error(actual, expected) < 1e-4
    assert not actual[..., 2, :].any()
    others = [row for row in range(shape[-2]) if row not in (2, 3)]
    np.testing.assert_array_equal(actual[..., others, :], without_outlier[..., others, :])


@pytest.mark.parametrize("zero_point", [128, 48, 16])
def test_integer_products_with_other_zero_points(zero_point: int, rng: np.random.Generator) -> None:
    """The graph computes what the simulation does, for values of both signs and for rows of one sign."""
    weight, x = normal(rng, 160, 48), normal(rng, 6, 160)
    x[1], x[2] = np.abs(x[1]), -np.abs(x[2])
    model = build("(float[A, 160] x) => (float[A, 48] y) { [p] t = MatMul(x, w) y = Identity(t) }", w=weight)
    w8a8_everywhere(model, zero_point=zero_point)
    expected = round_rows(x, zero_point=zero_point) @ quantize_columns(weight, reduce_range=SATURATES).dequantized()
    np.testing.assert_allclose(run(model, x=x)[0], expected, rtol=1e-3, atol=2e-3)


def test_outputs_of_gelu_are_rounded_more_finely_with_a_low_zero_point(rng: np.random.Generator) -> None:
    """Without the search for the smallest value, which GELU bounds; rows in which all values are tiny included."""
    weight, x = normal(rng, 160, 48), normal(rng, 40, 160)
    x[3] *= 1e-3
    text = "(float[A, 160] x) => (float[A, 48] y) { g = Gelu(x) [p] t = MatMul(g, w) y = Identity(t) }"
    (exact,) = run(build(text, w=weight), x=x)
    errors = {}
    for zero_point in (128, 32):
        model = build(text, w=weight)
        w8a8_everywhere(model, reduce_range=False, zero_point=zero_point)
        assert {"ReduceMax": 1, "ReduceMin": 0, "Abs": 0}.items() <= {
            name: operators(model)[name] for name in ("ReduceMax", "ReduceMin", "Abs")
        }.items()
        errors[zero_point] = relative_error(run(model, x=x)[0], exact)
    if not SATURATES:
        assert errors[32] < 0.8 * errors[128]


@pytest.mark.parametrize("outlier", [False, True])
def test_arithmetic_of_weight_only_products(outlier: bool, rng: np.random.Generator) -> None:
    """Against the float product with the same rounded weights: exact, a hundredth of the kernel's error, its error."""
    weight, x = normal(rng, 160, 48), normal(rng, 2, 5, 160)
    x[0, 2] = 0
    if outlier:
        x[..., 7] = 100
    text = "(float[A, B, 160] x) => (float[A, B, 48] y) { [p] t = MatMul(x, w) y = Identity(t) }"
    expected = x @ quantize_blocks(weight, 8, 32, symmetric=True).dequantized()
    errors = {}
    for arithmetic in ("float32", "twice_int8", "int8"):
        model = build(text, w=weight)
        weight_only_everywhere(model, 8, 32, symmetric=True, arithmetic=arithmetic)
        errors[arithmetic] = relative_error(run(model, x=x)[0], expected)
    assert errors["float32"] < 1e-6
    assert errors["twice_int8"] < max(errors["int8"] / 50, 1e-6)
    assert 1e-3 < errors["int8"] < 2e-2


def test_inputs_are_divided_once_for_all_products_that_read_them(rng: np.random.Generator) -> None:
    """Also inputs with an incomplete last block; a bias is added once."""
    text = """(float[M, 200] x) => (float[M, 24] u, float[M, 24] v)
        { [pa] u = Gemm<transB = 1>(x, a, p) [pb] q = MatMul(x, b) v = Identity(q) }"""
    weights = {"a": normal(rng, 24, 200), "b": normal(rng, 200, 24), "p": normal(rng, 24)}
    x = normal(rng, 6, 200)
    model = build(text, **weights)
    weight_only_everywhere(model, 8, 32, symmetric=True, arithmetic="twice_int8")
    assert (operators(model)["Round"], operators(model)["MatMulNBits"]) == (1, 4)
    with_bias, without_bias = run(model, x=x)
    for actual, matrix in ((with_bias - weights["p"], weights["a"].T), (without_bias, weights["b"])):
        expected = x @ quantize_blocks(matrix, 8, 32, symmetric=True).dequantized()
        np.testing.assert_allclose(actual, expected, atol=2e-3)


def test_shared_input_of_products_is_rounded_once(rng: np.random.Generator) -> None:
    weights = {name: normal(rng, 64, 24) for name in "abc"}
    text = """(float[M, 64] x) => (float[M, 24] u, float[M, 24] v, float[M, 24] w)
        { [pa] p = MatMul(x, a) u = Identity(p) [pb] q = MatMul(x, b) v = Identity(q)
          [pc] r = MatMul(x, c) w = Identity(r) }"""
    model = build(text, **weights)
    w8a8_everywhere(model)
    assert operators(model)["QuantizeLinear"] == 1
    assert operators(model)["MatMulIntegerToFloat"] == 3
    x = normal(rng, 6, 64)
    for actual, weight in zip(run(model, x=x), weights.values(), strict=True):
        columns = quantize_columns(weight, reduce_range=SATURATES)
        np.testing.assert_allclose(actual, round_rows(x) @ columns.dequantized(), atol=1e-4)


GEOMETRIES = ["pads = [1, 1, 1, 1], strides = [2, 2]", "pads = [1, 0, 2, 1]", "strides = [2, 1]"]


def convolution_chain(geometry: str, channels: int, rng: np.random.Generator) -> ir.Model:
    """Two convolutions with activations and a transpose, like the stem of an encoder."""
    conv = f"Conv<kernel_shape = [3, 3], {geometry}>"
    text = f"""(float[B, {channels}, H, W] x) => (float[B, W2, 40, H2] y)
        {{ [c1] a = {conv}(x, u, p) g = Gelu(a) [c2] b = {conv}(g, v, q) h = Gelu(b)
           y = Transpose<perm = [0, 3, 1, 2]>(h) }}"""
    u, v = normal(rng, 48, channels, 3, 3) / 3, normal(rng, 40, 48, 3, 3) / 20
    return build(text, u=u, v=v, p=normal(rng, 48) / 2, q=normal(rng, 40) / 2)


@pytest.mark.parametrize("channels", [1, 6])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_integer_convolution_chain(geometry: str, channels: int, rng: np.random.Generator) -> None:
    """The result is close to the float graph, equal for batch elements run alone, and few transposes remain."""
    x = normal(rng, 3, channels, 37, 23) * np.array([1, 10, 0.1], np.float32).reshape(3, 1, 1, 1)
    (exact,) = run(convolution_chain(geometry, channels, np.random.default_rng(5)), x=x)
    model = convolution_chain(geometry, channels, np.random.default_rng(5))
    w8a8_everywhere(model)
    assert "Conv" not in operators(model)
    # The first convolution over one channel stays float.
    assert operators(model)["QuantizeLinear"] == (1 if channels == 1 else 2)
    before = operators(model)["Transpose"]
    (before_cancelling,) = run(model, x=x)
    w8a8.cancel_transposes(model.graph)
    assert (before, operators(model)["Transpose"]) == (5, 2)
    (actual,) = run(model, x=x)
    np.testing.assert_array_equal(actual, before_cancelling)
    assert actual.shape == exact.shape
    for element in range(3):  # the third is small: one scale for the batch would not resolve it
        assert relative_error(actual[element], exact[element]) < 0.03
        np.testing.assert_array_equal(run(model, x=x[element : element + 1])[0][0], actual[element])


ALONG = {
    "one axis": ("float[B, 12, T] x", "float[B, 40, T2] y", (40, 12, 5), "pads = [2, 2], strides = [2]"),
    "one of two": ("float[B, 12, 1, T] x", "float[B, 40, 1, T2] y", (40, 12, 1, 5), "pads = [0, 2, 0, 2]"),
    "single positions": ("float[B, 48, H, W] x", "float[B, 40, H, W] y", (40, 48, 1, 1), "strides = [1, 1]"),
}


@pytest.mark.parametrize("geometry", ALONG)
def test_convolution_along_one_axis_has_one_scale_a_row(geometry: str, rng: np.random.Generator) -> None:
    """Large values elsewhere in a clip, or in padding after it, do not change a position at all."""
    x_type, y_type, shape, attributes = ALONG[geometry]
    weight, bias = normal(rng, *shape), normal(rng, 40)
    text = f"({x_type}) => ({y_type}) {{ [c] t = Conv<{attributes}>(x, w, b) y = Identity(t) }}"
    sizes = {"one axis": (2, 12, 60), "one of two": (2, 12, 1, 60), "single positions": (2, 48, 3, 60)}
    x = normal(rng, *sizes[geometry])
    (exact,) = run(build(text, w=weight, b=bias), x=x)
    model = build(text, w=weight, b=bias)
    (product,) = find_products(model.graph)
    assert (product.pointwise, product.shares_scale) == (geometry == "single positions", False)
    w8a8_everywhere(model)
    assert operators(model)["MatMulIntegerToFloat"] == 1
    (actual,) = run(model, x=x)
    assert relative_error(actual, exact) < 0.02
    large = x.copy()
    large[1], large[0, ..., 50:] = 1e3, 1e3
    near = 20 if exact.shape[-1] < 60 else 45  # positions whose patches end before the large values
    np.testing.assert_array_equal(run(model, x=large)[0][0, ..., :near], actual[0, ..., :near])


@pytest.mark.parametrize("bits", [4, 8])
def test_weight_only_convolution_along_one_axis(bits: int, rng: np.random.Generator) -> None:
    weight, x = normal(rng, 7, 12, 3), normal(rng, 2, 12, 20)
    text = "(float[B, 12, T] x) => (float[B, 7, T2] y) { [c] t = Conv<strides = [2]>(x, w) y = Identity(t) }"
    model = build(text, w=weight)
    dequantized = quantize_blocks(
        Weights().matrix(find_products(model.graph)[0]), bits, 32, symmetric=True
    ).dequantized()
    weight_only_everywhere(model, bits, 32, symmetric=True)
    exact = build(text, w=np.ascontiguousarray(dequantized.reshape(3, 12, 7).transpose(2, 1, 0)))
    np.testing.assert_allclose(run(model, x=x)[0], run(exact, x=x)[0], atol=1e-5)


def test_convolution_without_kernel_shape_attribute(rng: np.random.Generator) -> None:
    """The attribute is optional: the kernel size is that of the weight."""
    weight, x = normal(rng, 8, 40, 1, 2), normal(rng, 1, 40, 6, 7)
    text = "(float[B, 40, H, W] x) => (float[B, 8, H, W2] y) { [c] t = Conv(x, w) y = Identity(t) }"
    (exact,) = run(build(text, w=weight), x=x)
    model = build(text, w=weight)
    weight_only_everywhere(model, 8, 16, symmetric=True)
    assert relative_error(run(model, x=x)[0], exact) < 0.02
    model = build(text, w=weight)
    w8a8_everywhere(model)
    assert relative_error(run(model, x=x)[0], exact) < 0.02


def test_convolution_with_auto_pad(rng: np.random.Generator) -> None:
    weight, x = normal(rng, 8, 40, 3, 3), normal(rng, 1, 40, 6, 7)
    text = """(float[B, 40, H, W] x) => (float[B, 8, H, W] y)
        { [c] t = Conv<kernel_shape = [3, 3], auto_pad = "SAME_UPPER">(x, w) y = Identity(t) }"""
    (exact,) = run(build(text, w=weight), x=x)
    model = build(text, w=weight)
    w8a8_everywhere(model)
    (actual,) = run(model, x=x)
    assert actual.shape == exact.shape
    assert relative_error(actual, exact) < 0.02


# Transposes

IN, OUT = "Transpose<perm = [0, 2, 3, 1]>", "Transpose<perm = [0, 3, 1, 2]>"
IMAGE = "(float[B, 3, 4, 5] x)"


@pytest.mark.parametrize(
    ("text", "max_transposes"),
    [
        (f"=> (float[B, 3, 4, 5] y) {{ a = Relu(x) b = {IN}(a) c = {OUT}(b) y = Relu(c) }}", 0),
        (f"=> (float[B, 3, 4, 5] y) {{ a = {IN}(x) b = Gelu(a) c = Gelu(b) d = {OUT}(c) y = Relu(d) }}", 0),
        (f"=> (float[B, 5, 3, 4] y) {{ a = {IN}(x) b = Gelu(a) c = {IN}(b) y = Relu(c) }}", 1),  # merged
        (f"=> (float[B, 3, 4, 5] y) {{ a = {IN}(x) b = Relu(a) c = {OUT}(b) y = Gelu(c) }}", 0),
        (f"=> (float[B, 3, 4, 5] y) {{ a = {IN}(x) b = Sqrt(a) c = {OUT}(b) y = Relu(c) }}", 2),  # not across Sqrt
        (f"=> (float[B, 3, 4, 5] y, float[B, 4, 5, 3] z) {{ a = {IN}(x) b = {OUT}(a) y = Relu(b) z = Relu(a) }}", 2),
        (f"=> (float[B, 3, 4, 5] y, float[B, 4, 5, 3] b) {{ a = {IN}(x) b = Gelu(a) c = {OUT}(b) y = Relu(c) }}", 2),
        (f"=> (float[B, 3, 4, 5] y, float[B, 4, 5, 3] a) {{ a = {IN}(x) c = {OUT}(a) y = Relu(c) }}", 2),
        (f"=> (float[B, 3, 4, 5] y) {{ a = Relu(x) b = {IN}(a) y = {OUT}(b) }}", 1),  # the graph output keeps its name
    ],
)
def test_cancel_transposes(text: str, max_transposes: int, rng: np.random.Generator) -> None:
    x = normal(rng, 2, 3, 4, 5)
    expected, model = run(build(f"{IMAGE} {text}"), x=x), build(f"{IMAGE} {text}")
    names = [value.name for value in model.graph.outputs]
    w8a8.cancel_transposes(model.graph)
    for actual, exact in zip(run(model, x=x), expected, strict=True):
        np.testing.assert_array_equal(actual, exact)
    assert operators(model)["Transpose"] <= max_transposes
    assert [value.name for value in model.graph.outputs] == names


@pytest.mark.parametrize("method", ["weight_only", "w8a8"])
def test_graph_output_keeps_its_name(method: str, rng: np.random.Generator) -> None:
    model = build("(float[M, 64] x) => (float[M, 24] y) { [p] y = MatMul(x, w) }", w=normal(rng, 64, 24))
    if method == "w8a8":
        w8a8_everywhere(model)
    else:
        weight_only_everywhere(model, 8, 32, symmetric=True)
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert run(model, x=normal(rng, 2, 64))[0].shape == (2, 24)


# Half precision

HALF = """(float[M, 16] x, float[M, 16] mask) => (float[M, 16] y, float[M, 16] h)
    { [up] a = MatMul(x, u) [act] h = Gelu(a) [norm] n = LayerNormalization(h, gain)
      [masked] m = Add(n, mask) [soft] s = Softmax(m) [hidden] c = Where(keep, s, low) [down] y = MatMul(c, v) }"""


def half(rng: np.random.Generator, largest: float = 1.0) -> ir.Model:
    u, v = normal(rng, 16, 16), normal(rng, 16, 16)
    u[0, 0] = largest
    gain, low = np.full(16, 1.5, np.float32), np.array(-1e4, np.float32)
    return build(HALF, u=u, v=v, gain=gain, low=low, keep=np.arange(16) != 3)


def test_float16_for_the_named_nodes_only(rng: np.random.Generator) -> None:
    """Graph inputs and outputs and other nodes stay float32; a mask value of -10,000 fits."""
    feeds = {"x": normal(rng, 5, 16), "mask": np.where(rng.random((5, 16)) < 0.3, np.float32(-1e4), np.float32(0))}
    expected = run(half(np.random.default_rng(3)), **feeds)
    model = half(np.random.default_rng(3))
    assert fp16.convert(model, {"up", "act", "hidden", "down"}) == 4
    for actual, exact in zip(run(model, **feeds), expected, strict=True):
        assert actual.dtype == np.float32
        assert 0 < relative_error(actual, exact) < 2e-3
    assert [(value.name, value.dtype) for value in (*model.graph.inputs, *model.graph.outputs)] == [
        (name, ir.DataType.FLOAT) for name in ("x", "mask", "y", "h")
    ]
    nodes = {node.name: node for node in model.graph}
    for name in ("norm", "masked", "soft"):
        values = [*nodes[name].inputs, *nodes[name].outputs]
        assert {value.dtype for value in values if value is not None} == {ir.DataType.FLOAT}
    for name in ("up", "act", "down"):
        values = [*nodes[name].inputs, *nodes[name].outputs]
        assert {value.dtype for value in values if value is not None} == {ir.DataType.FLOAT16}
    assert float(array(next(v for v in nodes["hidden"].inputs if v and (v.name or "").startswith("low")))) == -1e4
    assert fp16.convert(model, set()) == 0


def test_weight_beyond_the_range_of_float16_is_refused(rng: np.random.Generator) -> None:
    assert fp16.convert(half(rng, 65504.0), {"up"}) == 1
    for largest in (-65536.0, float("inf"), float("nan")):
        with pytest.raises(QuantizationError, match=r"'u' .*±65504.* keep its node in float32"):
            fp16.convert(half(rng, largest), {"up"})
        assert fp16.convert(half(rng, largest), {"down"}) == 1  # the weight of 'up' stays float32


def test_operator_with_a_type_attribute_stays_float32(rng: np.random.Generator) -> None:
    text = """(float[M, 8] x) => (float[M, 8] y)
        { [s] s = Shape(x) [c] c = ConstantOfShape<value = float[1] {0.25}>(s) [a] y = Max(x, c) }"""
    model, x = build(text), normal(rng, 3, 8)
    fp16.convert(model, {"s", "c", "a"})
    np.testing.assert_allclose(run(model, x=x)[0], np.maximum(x, np.float32(0.25)), rtol=1e-3)


def test_constant_node_beyond_the_range_of_float16_is_refused() -> None:
    """As for an initializer: the value must not become infinite without an error."""
    text = "(float[M, 8] x) => (float[M, 8] y) { [c] c = Constant<value = float {-1e9}>() [a] y = Add(x, c) }"
    with pytest.raises(QuantizationError, match="beyond ±65504"):
        fp16.convert(build(text), {"c", "a"})
