"""Tests of smoothing sites: all sites of the small model, and graphs in which a scale can or cannot be folded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from quantize.graph import array
from quantize.numerics import Floats, relative_error
from quantize.products import Product, Weights, find_products
from quantize.smoothing_sites import SmoothingSite, find_smoothing_sites
from runtime.model.artifact import open_artifact

Arrays = dict[str, npt.NDArray[Any]]


def build(text: str, **weights: Any) -> ir.Model:
    """Parse a graph in ONNX text notation and add initializers by name."""
    opsets = '<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]>'
    proto = onnx.parser.parse_model(f"{opsets} tiny {text}")
    for name, weight in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    return ir.from_proto(proto)


def run(model: ir.Model, feeds: Arrays) -> Arrays:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))


def normal(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape).astype(np.float32)


def fold(sites: list[SmoothingSite], weights: Weights, rng: np.random.Generator, *, scale_readers: bool = True) -> None:
    """Fold a random scale from 0.1 to 10 into every site."""
    for site in sites:
        scale = (10 ** rng.uniform(-1, 1, int(site.groups.max()) + 1)).astype(np.float32)
        site.fold(weights, scale)
        for product in site.products if scale_readers else ():
            weights.scale_rows(product, scale[site.groups])


def write_back(products: list[Product], weights: Weights) -> None:
    for product in list(weights.scaled(products)):
        weights.write_back(product)


def largest_error(actual: Arrays, exact: Arrays) -> float:
    return max(relative_error(actual[name], exact[name]) for name in exact)


def feeds_of(role: str, rng: np.random.Generator) -> Arrays:
    """Inputs for each graph of the small model: windows of noise, or two rows of text after audio."""
    if role == "encoder":
        return {"features": normal(rng, 2, 128, 200), "lengths": np.array([200, 137])}
    ids = rng.integers(300, 900, (2, 12))
    ids[:, 2:5] = 905
    feeds: Arrays = {
        "input_ids": ids,
        "attention_mask": np.ones((2, 12), np.int64),
        "audio_embeds": normal(rng, 6, 256) / 10,
        "num_logits_to_keep": np.array([12]),
    }
    past = np.zeros((2, 2, 0, 64), np.float32)
    return feeds | {f"past_key_values.{layer}.{part}": past for layer in range(4) for part in ("key", "value")}


EXPECTED = {
    "encoder": [
        *(
            names
            for layer in range(4)
            for names in (
                [f"/tower/layers/{layer}/self_attn/{name}/MatMul" for name in ("q_proj", "k_proj", "v_proj")],
                [f"/tower/layers/{layer}/self_attn/out_proj/MatMul"],
                [f"/tower/layers/{layer}/fc1/MatMul"],
            )
        ),
        ["/projector/linear_1/MatMul"],
    ],
    "decoder": [
        names
        for layer in range(4)
        for names in (
            [f"/model/layers.{layer}/attn/qkv_proj/MatMul"],
            [f"/model/layers.{layer}/attn/o_proj/MatMul"],
            [f"/model/layers.{layer}/mlp/gate_proj/MatMul", f"/model/layers.{layer}/mlp/up_proj/MatMul"],
            [f"/model/layers.{layer}/mlp/down_proj/MatMul"],
        )
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_any_scale_at_every_site_of_the_small_model_cancels(
    role: str, float_artifact: Path, rng: np.random.Generator
) -> None:
    """Folding and scaled rows cancel; folding alone changes the outputs."""
    path, feeds = open_artifact(float_artifact).graph_path(role), feeds_of(role, rng)
    exact = run(ir.load(path), feeds)
    outputs = {}
    for both in (True, False):
        model, weights = ir.load(path), Weights()
        products = find_products(model.graph)
        sites = find_smoothing_sites(products)
        assert sorted(sorted(p.name for p in site.products) for site in sites) == sorted(map(sorted, EXPECTED[role]))
        fold(sites, weights, rng, scale_readers=both)
        write_back(products, weights)
        outputs[both] = run(model, feeds)
    # The scale of o_proj is folded into the cached values.
    unscaled = [name for name in exact if "value" not in name]
    assert largest_error(outputs[True], {name: exact[name] for name in unscaled}) < 1e-4
    assert largest_error(outputs[False], {name: exact[name] for name in unscaled}) > 0.1


GROUPED = """(float[B, S, 32] x, int32[B] last, int32 total, float[B, 2, P, 8] k0, float[B, 2, P, 8] v0)
    => (float[B, S, 12] y)
    { [q] q = MatMul(x, wq) [k] k = MatMul(x, wk) [v] v = MatMul(x, wv)
      [gqa] a, k1, v1 = com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2>(q, k, v, k0, v0, last, total)
      [o] y = MatMul(a, wo) }"""


def test_channels_of_grouped_query_attention(rng: np.random.Generator) -> None:
    """With 4 heads and 2 key-value heads, heads 0 and 1 read the first of these, heads 2 and 3 the second."""
    shapes = {"wq": (32, 32), "wk": (32, 16), "wv": (32, 16), "wo": (32, 12)}
    model = build(GROUPED, **{name: normal(rng, *shape) / 5 for name, shape in shapes.items()})
    empty = np.zeros((2, 2, 0, 8), np.float32)
    feeds: Arrays = {"x": normal(rng, 2, 5, 32), "last": np.array([4, 4], np.int32), "total": np.array(5, np.int32)}
    feeds |= {"k0": empty, "v0": empty}
    exact = run(model, feeds)
    products, weights = find_products(model.graph), Weights()
    (site,) = find_smoothing_sites(products)
    assert [product.name for product in site.products] == ["o"]
    first, second = list(range(8)), list(range(8, 16))
    assert site.groups.tolist() == [*first, *first, *second, *second]
    fold([site], weights, rng)
    write_back(products, weights)
    assert largest_error(run(model, feeds), exact) < 1e-5


NORMED = "n = LayerNormalization(x, gain, shift)"
SHAPES = {"w": (16, 16), "v": (16, 16), "u": (16, 24), "gain": (16,), "shift": (16,)}


@pytest.mark.parametrize(
    ("text", "reader"),
    [
        (f"{NORMED} [r] r = MatMul(n, w) y = Relu(r)", "r"),
        (f"{NORMED} [r] r = Gemm(n, w) y = Relu(r)", "r"),
        ("n = LayerNormalization(x, gain) [r] y = MatMul(n, w)", "r"),
        ("g = Sigmoid(x) [p] p = MatMul(x, v) m = Mul(g, p) [r] y = MatMul(m, w)", "r"),
        ("g = Sigmoid(x) [p] p = MatMul(x, v) q = Add(shift, p) m = Mul(q, g) [r] y = MatMul(m, w)", "r"),
        ("[p] p = MatMul(x, u) a, b = Split<axis = -1>(p, parts) m = Mul(a, x) [r] y = MatMul(m, w)", "r"),
    ],
)
def test_sources_that_absorb_a_scale(text: str, reader: str, rng: np.random.Generator) -> None:
    """Normalizations and factors with and without bias, and a part of a product's columns."""
    initializers = {name: normal(rng, *shape) for name, shape in SHAPES.items()} | {"parts": np.array([16, 8])}
    model = build(f"(float[M, 16] x) => (float[M, 16] y) {{ {text} }}", **initializers)
    feeds: Arrays = {"x": normal(rng, 5, 16)}
    exact = run(model, feeds)
    products, weights = find_products(model.graph), Weights()
    (site,) = find_smoothing_sites(products)
    assert [product.name for product in site.products] == [reader]
    np.testing.assert_array_equal(site.groups, np.arange(16))
    fold([site], weights, rng)
    write_back(products, weights)
    assert not np.allclose(array(site.products[0].weight), initializers["w"])
    assert largest_error(run(model, feeds), exact) < 1e-5


@pytest.mark.parametrize(
    "text",
    [
        f"{NORMED} [r] r = MatMul(n, w) s = Relu(n) y = Add(r, s)",  # another node reads the input
        f"{NORMED} [r] r = MatMul(n, w) [s] s = MatMul(n, w) y = Add(r, s)",  # two products share a weight
        f"{NORMED} [r] r = MatMul(n, w) k = Mul(gain, x) y = Add(r, k)",  # the gain is read elsewhere
        "s = Identity(gain) n = LayerNormalization(x, s) [r] y = MatMul(n, w)",  # the gain is computed
        "g = Relu(x) [r] y = MatMul(g, w)",
        "[p] p = MatMul(x, v) g = Sigmoid(p) m = Mul(g, p) [r] y = MatMul(m, w)",  # both factors are the product's
        "[p] p = MatMul(x, v) q = Add(p, x) m = Mul(q, x) [r] y = MatMul(m, w)",  # the addend is not a bias
        "[p] p = MatMul(x, v) e = Exp(p) m = Mul(e, x) [r] y = MatMul(m, w)",  # not linear
        "[p] p = MatMul(x, one) m = Mul(x, p) [r] y = MatMul(m, w)",  # one factor for all channels
        "[p] p = MatMul(x, v) a, b = Split<axis = 0>(p, rows) m = Mul(a, half) [r] y = MatMul(m, w)",  # along rows
    ],
)
def test_graphs_without_smoothing_sites(text: str, rng: np.random.Generator) -> None:
    initializers = {name: normal(rng, *shape) for name, shape in SHAPES.items()}
    initializers |= {"rows": np.array([16, 4]), "half": normal(rng, 16, 16), "one": normal(rng, 16, 1)}
    model = build(f"(float[M, 16] x) => (float[M, 16] y) {{ {text} }}", **initializers)
    run(model, {"x": normal(rng, 20, 16)})  # the graph is valid
    assert [
        product.name for site in find_smoothing_sites(find_products(model.graph)) for product in site.products
    ] == []


def test_graph_output_is_not_a_smoothing_site(rng: np.random.Generator) -> None:
    initializers = {name: normal(rng, *SHAPES[name]) for name in ("gain", "shift", "w")}
    model = build(
        f"(float[M, 16] x) => (float[M, 16] y, float[M, 16] n) {{ {NORMED} [r] y = MatMul(n, w) }}", **initializers
    )
    assert find_smoothing_sites(find_products(model.graph)) == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[a] y = MatMul(x, w)", ["a"]),
        ("[a] y = Gemm<transB = 1>(x, w)", ["a"]),
        ("[a] y = Gemm<transA = 1>(x, w)", []),
        ("[a] y = Gemm<alpha = 0.5>(x, w)", []),
        ("[a] y = MatMul(w, x)", []),
        ("[a] y = MatMul(x, x)", []),
        ("[a] y = com.microsoft.FusedMatMul(x, w)", []),
        ("i = Cast<to = 7>(x) [a] y = Gather(w, i)", ["a"]),
        ("i = Cast<to = 7>(x) [a] y = Gather<axis = 1>(w, i)", []),
        ("[a] y = Conv(x, k)", ["a"]),
        ("[a] y = Conv<group = 2>(x, k)", []),
        ("[a] y = Conv<dilations = [2, 1]>(x, k)", []),
    ],
)
def test_nodes_that_are_products(text: str, names: list[str], rng: np.random.Generator) -> None:
    model = build(
        f"(float[16, 16] x) => (float[16, 16] y) {{ {text} }}", w=normal(rng, 16, 16), k=normal(rng, 4, 4, 3, 3)
    )
    assert [product.name for product in find_products(model.graph)] == names
    half = build(f"(float[16, 16] x) => (float[16, 16] y) {{ {text} }}", w=np.eye(16, dtype=np.float16))
    assert find_products(half.graph) == []


def test_scales_follow_the_matrix_and_not_its_storage(rng: np.random.Generator) -> None:
    """The weight is stored as [K, N] or transposed."""
    for transposed in (0, 1):
        weight = normal(rng, 6, 4)
        model = build(
            f"(float[M, K] x) => (float[M, N] y) {{ [a] y = Gemm<transB = {transposed}>(x, w) }}",
            w=weight,
        )
        (product,), weights = find_products(model.graph), Weights()
        matrix = weight.T if transposed else weight
        rows, columns = normal(rng, matrix.shape[0]), normal(rng, matrix.shape[1])
        weights.scale_rows(product, rows)
        weights.scale_rows(product, rows)
        weights.scale_columns(product, columns)
        expected = matrix * rows[:, None] ** 2 * columns
        np.testing.assert_allclose(weights.matrix(product), expected, rtol=1e-5)
        np.testing.assert_array_equal(weights.row_scale(product), rows * rows)
        np.testing.assert_array_equal(weights.column_scale(product), columns)
        weights.write_back(product)
        np.testing.assert_allclose(array(product.weight), expected.T if transposed else expected, rtol=1e-5)
        np.testing.assert_array_equal(weights.matrix(product), expected)  # scales are folded once
        assert list(weights.scaled([product])) == []
