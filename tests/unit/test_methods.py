"""The methods on tiny graphs: what ONNX Runtime computes is what the quantizers say, and nothing else changes."""

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
from runtime.host.cpu import lacks_vnni

# Where u8×s8 products may saturate, only weights of 7 bits are right.
SATURATES = lacks_vnni() is not False
REDUCED = [True] if SATURATES else [False, True]


def build(text: str, **weights: Any) -> ir.Model:
    """A graph in ONNX's own notation, with initializers by name."""
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


def weight_only_everywhere(model: ir.Model, bits: int, block: int, *, symmetric: bool) -> None:
    """As a recipe with one rule does it: products that share a weight together."""
    by_weight: dict[str | None, list[Product]] = {}
    for product in find_products(model.graph):
        by_weight.setdefault(product.weight.name, []).append(product)
    for products in by_weight.values():
        weight_only.quantize(model.graph, products, Weights(), bits, block, symmetric=symmetric)
    drop_unused_initializers(model.graph)


def w8a8_everywhere(model: ir.Model, *, reduce_range: bool = SATURATES) -> None:
    rounding = w8a8.ActivationRounding(model.graph)
    for product in find_products(model.graph):
        w8a8.quantize(model.graph, rounding, product, Weights(), reduce_range=reduce_range)
    drop_unused_initializers(model.graph)


def normal(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape).astype(np.float32)


# Weights alone


@pytest.mark.parametrize("inner", [256, 200])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_product_over_blocks(bits: int, block: int, symmetric: bool, inner: int, rng: np.random.Generator) -> None:
    """Every shape of block, for one row and for more; the kernel rounds activations to 8 bits a block."""
    weight = normal(rng, inner, 24)
    model = build(f"(float[M, {inner}] x) => (float[M, 24] y) {{ [p] t = MatMul(x, w) y = Identity(t) }}", w=weight)
    weight_only_everywhere(model, bits, block, symmetric=symmetric)
    assert operators(model) == {"MatMulNBits": 1, "Identity": 1}
    meant = quantize_blocks(weight, bits, block, symmetric=symmetric).dequantized()
    x = normal(rng, 33, inner)
    whole = x @ meant
    for rows in (1, 2, 8, 33):
        (found,) = run(model, x=x[:rows])
        assert relative_error(found, whole[:rows]) < 0.015


@pytest.mark.parametrize("bias", [(24,), (1, 24), (1,), None])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_gemm_with_a_transposed_weight(
    bias: tuple[int, ...] | None, symmetric: bool, rng: np.random.Generator
) -> None:
    """The bias in every form that the operator allows."""
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
def test_a_table_that_is_looked_up_and_multiplied_with_is_stored_once(
    bits: int, symmetric: bool, rng: np.random.Generator
) -> None:
    table, x = normal(rng, 40, 96), normal(rng, 3, 96)
    ids = np.array([[0, 39, 7], [7, 7, 20]])
    model = build(TIED, w=table)
    weight_only_everywhere(model, bits, 32, symmetric=symmetric)
    meant = quantize_blocks(table.T, bits, 32, symmetric=symmetric).dequantized().T
    rows, logits = run(model, ids=ids, x=x)
    np.testing.assert_allclose(rows, meant[ids], atol=1e-6)
    assert relative_error(logits, x @ meant.T) < 0.015
    stored = [value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value]
    assert sum(size >= table.size * bits // 8 for size in stored) == 1
    scales = 40 * 3 * 4
    assert sum(stored) <= table.size * bits // 8 + 2 * scales + 4 * 40 * 3 + 100  # scales twice, zeros twice, a shape


def test_ids_of_any_rank_are_looked_up(rng: np.random.Generator) -> None:
    """Positions come without a batch."""
    table, ids = normal(rng, 40, 64), np.array([3, 1, 4, 1])
    model = build("(int64[S] ids) => (float[S, 64] rows) { [look] r = Gather(w, ids) rows = Identity(r) }", w=table)
    weight_only_everywhere(model, 8, 32, symmetric=True)
    meant = quantize_blocks(table.T, 8, 32, symmetric=True).dequantized().T
    np.testing.assert_allclose(run(model, ids=ids)[0], meant[ids], atol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_of_a_table_need_not_be_whole_blocks(bits: int, rng: np.random.Generator) -> None:
    """96 weights in two blocks of 64: what the second one lacks is not seen."""
    table, x, ids = normal(rng, 40, 96), normal(rng, 3, 96), np.array([[0, 39, 7], [7, 7, 20]])
    model = build(TIED, w=table)
    weight_only_everywhere(model, bits, 64, symmetric=False)
    meant = quantize_blocks(table.T, bits, 64, symmetric=False).dequantized().T
    rows, logits = run(model, ids=ids, x=x)
    np.testing.assert_allclose(rows, meant[ids], atol=1e-6)
    assert relative_error(logits, x @ meant.T) < 0.015


CONV = """(float[B, 5, H, W] x) => (float[B, 7, H2, W2] y)
    { [c] t = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(x, w, b) y = Identity(t) }"""


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_convolution_keeps_its_operator_and_gets_the_dequantized_weights(
    bits: int, symmetric: bool, rng: np.random.Generator
) -> None:
    weight, bias, x = normal(rng, 7, 5, 3, 3), normal(rng, 7), normal(rng, 2, 5, 11, 8)
    model = build(CONV, w=weight, b=bias)
    matrix = Weights().matrix(find_products(model.graph)[0])
    assert matrix.shape == (45, 7)  # no multiple of the block
    meant = quantize_blocks(matrix, bits, 32, symmetric=symmetric).dequantized()
    weight_only_everywhere(model, bits, 32, symmetric=symmetric)
    exact = build(CONV, w=np.ascontiguousarray(meant.reshape(3, 3, 5, 7).transpose(3, 2, 0, 1)), b=bias)
    np.testing.assert_allclose(run(model, x=x)[0], run(exact, x=x)[0], atol=1e-5)
    assert weight.nbytes not in [value.const_value.nbytes for value in model.graph.initializers.values()]  # type: ignore[union-attr]


# Integer products


@pytest.mark.parametrize("reduce_range", REDUCED)
@pytest.mark.parametrize("shape", [(33, 160), (4, 9, 160)])
def test_an_integer_product_is_what_numpy_simulates(
    shape: tuple[int, ...], reduce_range: bool, rng: np.random.Generator
) -> None:
    """With a row of zeros, and a row whose outlier changes nothing in the others."""
    weight, x = normal(rng, 160, 48), normal(rng, *shape)
    dims = ", ".join("ABC"[: len(shape) - 1])
    text = f"(float[{dims}, 160] x) => (float[{dims}, 48] y) {{ [p] t = MatMul(x, w) y = Identity(t) }}"
    model = build(text, w=weight)
    w8a8_everywhere(model, reduce_range=reduce_range)
    assert "MatMul" not in operators(model)
    columns = quantize_columns(weight, reduce_range=reduce_range)
    (calm,) = run(model, x=x)
    np.testing.assert_allclose(calm, round_rows(x) @ columns.dequantized(), rtol=1e-4, atol=1e-4)
    assert relative_error(calm, x @ weight) < (0.02 if reduce_range else 0.01)
    wild = x.copy()
    wild[..., 2, :], wild[..., 3, 5] = 0, 1e4
    (found,) = run(model, x=wild)
    expected = round_rows(wild) @ columns.dequantized()
    assert relative_error(found, expected) < 1e-4
    assert not found[..., 2, :].any()
    others = [row for row in range(shape[-2]) if row not in (2, 3)]
    np.testing.assert_array_equal(found[..., others, :], calm[..., others, :])


def test_an_input_of_three_products_is_rounded_once(rng: np.random.Generator) -> None:
    weights = {name: normal(rng, 64, 24) for name in "abc"}
    text = """(float[M, 64] x) => (float[M, 24] u, float[M, 24] v, float[M, 24] w)
        { [pa] p = MatMul(x, a) u = Identity(p) [pb] q = MatMul(x, b) v = Identity(q)
          [pc] r = MatMul(x, c) w = Identity(r) }"""
    model = build(text, **weights)
    w8a8_everywhere(model)
    assert operators(model)["QuantizeLinear"] == 1
    assert operators(model)["MatMulIntegerToFloat"] == 3
    x = normal(rng, 6, 64)
    for found, weight in zip(run(model, x=x), weights.values(), strict=True):
        columns = quantize_columns(weight, reduce_range=SATURATES)
        np.testing.assert_allclose(found, round_rows(x) @ columns.dequantized(), atol=1e-4)


GEOMETRIES = ["pads = [1, 1, 1, 1], strides = [2, 2]", "pads = [1, 0, 2, 1]", "strides = [2, 1]"]


def chain(geometry: str, channels: int, rng: np.random.Generator) -> ir.Model:
    """Convolutions as an encoder has them in front, with what lies between and behind."""
    conv = f"Conv<kernel_shape = [3, 3], {geometry}>"
    text = f"""(float[B, {channels}, H, W] x) => (float[B, W2, 40, H2] y)
        {{ [c1] a = {conv}(x, u, p) g = Gelu(a) [c2] b = {conv}(g, v, q) h = Gelu(b)
           y = Transpose<perm = [0, 3, 1, 2]>(h) }}"""
    u, v = normal(rng, 48, channels, 3, 3) / 3, normal(rng, 40, 48, 3, 3) / 20
    return build(text, u=u, v=v, p=normal(rng, 48) / 2, q=normal(rng, 40) / 2)


@pytest.mark.parametrize("channels", [1, 6])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_chain_of_convolutions_in_integers(geometry: str, channels: int, rng: np.random.Generator) -> None:
    """Near the float graph, equal for batch elements run alone, and with few transposes left."""
    x = normal(rng, 3, channels, 37, 23) * np.array([1, 10, 0.1], np.float32).reshape(3, 1, 1, 1)
    (exact,) = run(chain(geometry, channels, np.random.default_rng(5)), x=x)
    model = chain(geometry, channels, np.random.default_rng(5))
    w8a8_everywhere(model)
    assert "Conv" not in operators(model)
    assert operators(model)["QuantizeLinear"] == (1 if channels == 1 else 2)  # nothing to gain over one channel
    before = operators(model)["Transpose"]
    (long,) = run(model, x=x)
    w8a8.cancel_transposes(model.graph)
    assert (before, operators(model)["Transpose"]) == (5, 2)
    (found,) = run(model, x=x)
    np.testing.assert_array_equal(found, long)
    assert found.shape == exact.shape
    for element in range(3):  # a scale of the whole batch would drown the third
        assert relative_error(found[element], exact[element]) < 0.03
        np.testing.assert_array_equal(run(model, x=x[element : element + 1])[0][0], found[element])


ALONG = {
    "one axis": ("float[B, 12, T] x", "float[B, 40, T2] y", (40, 12, 5), "pads = [2, 2], strides = [2]"),
    "one of two": ("float[B, 12, 1, T] x", "float[B, 40, 1, T2] y", (40, 12, 1, 5), "pads = [0, 2, 0, 2]"),
    "single positions": ("float[B, 48, H, W] x", "float[B, 40, H, W] y", (40, 48, 1, 1), "strides = [1, 1]"),
}


@pytest.mark.parametrize("geometry", ALONG)
def test_a_convolution_along_one_axis_has_a_scale_a_row(geometry: str, rng: np.random.Generator) -> None:
    """What is loud elsewhere in a clip, or in padding behind it, changes nothing: to the bit."""
    taken, given, shape, attributes = ALONG[geometry]
    weight, bias = normal(rng, *shape), normal(rng, 40)
    text = f"({taken}) => ({given}) {{ [c] t = Conv<{attributes}>(x, w, b) y = Identity(t) }}"
    sizes = {"one axis": (2, 12, 60), "one of two": (2, 12, 1, 60), "single positions": (2, 48, 3, 60)}
    x = normal(rng, *sizes[geometry])
    (exact,) = run(build(text, w=weight, b=bias), x=x)
    model = build(text, w=weight, b=bias)
    (product,) = find_products(model.graph)
    assert (product.pointwise, product.shares_scale) == (geometry == "single positions", False)
    w8a8_everywhere(model)
    assert operators(model)["MatMulIntegerToFloat"] == 1
    (found,) = run(model, x=x)
    assert relative_error(found, exact) < 0.02
    loud = x.copy()
    loud[1], loud[0, ..., 50:] = 1e3, 1e3
    near = 20 if exact.shape[-1] < 60 else 45  # positions whose patches end before what is loud
    np.testing.assert_array_equal(run(model, x=loud)[0][0, ..., :near], found[0, ..., :near])


@pytest.mark.parametrize("bits", [4, 8])
def test_a_convolution_along_one_axis_gets_the_dequantized_weights(bits: int, rng: np.random.Generator) -> None:
    weight, x = normal(rng, 7, 12, 3), normal(rng, 2, 12, 20)
    text = "(float[B, 12, T] x) => (float[B, 7, T2] y) { [c] t = Conv<strides = [2]>(x, w) y = Identity(t) }"
    model = build(text, w=weight)
    meant = quantize_blocks(Weights().matrix(find_products(model.graph)[0]), bits, 32, symmetric=True).dequantized()
    weight_only_everywhere(model, bits, 32, symmetric=True)
    exact = build(text, w=np.ascontiguousarray(meant.reshape(3, 12, 7).transpose(2, 1, 0)))
    np.testing.assert_allclose(run(model, x=x)[0], run(exact, x=x)[0], atol=1e-5)


def test_a_convolution_without_a_kernel_shape(rng: np.random.Generator) -> None:
    """The attribute is optional: the weight says it all."""
    weight, x = normal(rng, 8, 40, 1, 2), normal(rng, 1, 40, 6, 7)
    text = "(float[B, 40, H, W] x) => (float[B, 8, H, W2] y) { [c] t = Conv(x, w) y = Identity(t) }"
    (exact,) = run(build(text, w=weight), x=x)
    model = build(text, w=weight)
    weight_only_everywhere(model, 8, 16, symmetric=True)
    assert relative_error(run(model, x=x)[0], exact) < 0.02
    model = build(text, w=weight)
    w8a8_everywhere(model)
    assert relative_error(run(model, x=x)[0], exact) < 0.02


def test_a_convolution_that_pads_by_itself_is_left_alone_or_right(rng: np.random.Generator) -> None:
    weight, x = normal(rng, 8, 40, 3, 3), normal(rng, 1, 40, 6, 7)
    text = """(float[B, 40, H, W] x) => (float[B, 8, H, W] y)
        { [c] t = Conv<kernel_shape = [3, 3], auto_pad = "SAME_UPPER">(x, w) y = Identity(t) }"""
    (exact,) = run(build(text, w=weight), x=x)
    model = build(text, w=weight)
    w8a8_everywhere(model)
    (found,) = run(model, x=x)
    assert found.shape == exact.shape
    assert relative_error(found, exact) < 0.02


# Transposes

IN, OUT = "Transpose<perm = [0, 2, 3, 1]>", "Transpose<perm = [0, 3, 1, 2]>"
IMAGE = "(float[B, 3, 4, 5] x)"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"=> (float[B, 3, 4, 5] y) {{ a = Relu(x) b = {IN}(a) c = {OUT}(b) y = Relu(c) }}", 0),
        (f"=> (float[B, 3, 4, 5] y) {{ a = {IN}(x) b = Gelu(a) c = Gelu(b) d = {OUT}(c) y = Relu(d) }}", 0),
        (f"=> (float[B, 5, 3, 4] y) {{ a = {IN}(x) b = Gelu(a) c = {IN}(b) y = Relu(c) }}", 1),  # joined
        (f"=> (float[B, 3, 4, 5] y) {{ a = {IN}(x) b = Relu(a) c = {OUT}(b) y = Gelu(c) }}", 0),
        (f"=> (float[B, 3, 4, 5] y) {{ a = {IN}(x) b = Sqrt(a) c = {OUT}(b) y = Relu(c) }}", 2),  # not over others
        (f"=> (float[B, 3, 4, 5] y, float[B, 4, 5, 3] z) {{ a = {IN}(x) b = {OUT}(a) y = Relu(b) z = Relu(a) }}", 2),
        (f"=> (float[B, 3, 4, 5] y, float[B, 4, 5, 3] b) {{ a = {IN}(x) b = Gelu(a) c = {OUT}(b) y = Relu(c) }}", 2),
        (f"=> (float[B, 3, 4, 5] y, float[B, 4, 5, 3] a) {{ a = {IN}(x) c = {OUT}(a) y = Relu(c) }}", 2),
        (f"=> (float[B, 3, 4, 5] y) {{ a = Relu(x) b = {IN}(a) y = {OUT}(b) }}", 1),  # one that keeps the name
    ],
)
def test_transposes_are_removed_where_nobody_sees_it(text: str, left: int, rng: np.random.Generator) -> None:
    x = normal(rng, 2, 3, 4, 5)
    expected, model = run(build(f"{IMAGE} {text}"), x=x), build(f"{IMAGE} {text}")
    names = [value.name for value in model.graph.outputs]
    w8a8.cancel_transposes(model.graph)
    for found, exact in zip(run(model, x=x), expected, strict=True):
        np.testing.assert_array_equal(found, exact)
    assert operators(model)["Transpose"] <= left
    assert [value.name for value in model.graph.outputs] == names


@pytest.mark.parametrize("method", ["weight_only", "w8a8"])
def test_an_output_of_the_graph_keeps_its_name(method: str, rng: np.random.Generator) -> None:
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


def test_half_precision_where_it_is_asked_for(rng: np.random.Generator) -> None:
    """The graph's inputs and outputs stay as they are, as does what is kept; a mask's -10,000 fits."""
    feeds = {"x": normal(rng, 5, 16), "mask": np.where(rng.random((5, 16)) < 0.3, np.float32(-1e4), np.float32(0))}
    expected = run(half(np.random.default_rng(3)), **feeds)
    model = half(np.random.default_rng(3))
    assert fp16.convert(model, {"up", "act", "hidden", "down"}) == 4
    for found, exact in zip(run(model, **feeds), expected, strict=True):
        assert found.dtype == np.float32
        assert 0 < relative_error(found, exact) < 2e-3
    assert [(value.name, value.dtype) for value in (*model.graph.inputs, *model.graph.outputs)] == [
        (name, ir.DataType.FLOAT) for name in ("x", "mask", "y", "h")
    ]
    nodes = {node.name: node for node in model.graph}
    for kept in ("norm", "masked", "soft"):
        values = [*nodes[kept].inputs, *nodes[kept].outputs]
        assert {value.dtype for value in values if value is not None} == {ir.DataType.FLOAT}
    for halved in ("up", "act", "down"):
        values = [*nodes[halved].inputs, *nodes[halved].outputs]
        assert {value.dtype for value in values if value is not None} == {ir.DataType.FLOAT16}
    assert float(array(next(v for v in nodes["hidden"].inputs if v and (v.name or "").startswith("low")))) == -1e4
    assert fp16.convert(model, set()) == 0


def test_a_weight_that_half_precision_cannot_hold(rng: np.random.Generator) -> None:
    assert fp16.convert(half(rng, 65504.0), {"up"}) == 1
    for largest in (-65536.0, float("inf"), float("nan")):
        with pytest.raises(
            QuantizationError, match=r"weight 'u' has values beyond ±65504, .* keep its node in float32"
        ):
            fp16.convert(half(rng, largest), {"up"})
        assert fp16.convert(half(rng, largest), {"down"}) == 1  # nobody asks about it


def test_an_operator_whose_type_is_in_an_attribute_stays_as_it_is(rng: np.random.Generator) -> None:
    text = """(float[M, 8] x) => (float[M, 8] y)
        { [s] s = Shape(x) [c] c = ConstantOfShape<value = float[1] {0.25}>(s) [a] y = Max(x, c) }"""
    model, x = build(text), normal(rng, 3, 8)
    fp16.convert(model, {"s", "c", "a"})
    np.testing.assert_allclose(run(model, x=x)[0], np.maximum(x, np.float32(0.25)), rtol=1e-3)


def test_a_constant_node_that_half_precision_cannot_hold() -> None:
    """The same as for an initializer: it must not become infinite in silence."""
    text = "(float[M, 8] x) => (float[M, 8] y) { [c] c = Constant<value = float {-1e9}>() [a] y = Add(x, c) }"
    with pytest.raises(QuantizationError, match="beyond ±65504"):
        fp16.convert(build(text), {"c", "a"})
