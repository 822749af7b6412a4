"""Tests of sensitivities against graphs with quantized weights, of the extra bits, and of other rules of a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from quantize.calibration import ActivationStatistics, Calibration
from quantize.errors import RecipeError
from quantize.graph import save_graph
from quantize.graph_quantization import QuantizedGraph, quantize_graph
from quantize.instrumented_graph import InstrumentedGraph
from quantize.numerics import Floats, quantize_blocks, relative_error
from quantize.products import Weights, find_products
from quantize.recipe import W8A8, AnyRule, Fallback, Keep, Sensitive, WeightOnly
from quantize.sensitivity import measure_sensitivities, most_sensitive
from runtime.engines.base import Probe

RULE = WeightOnly(graph="*", bits=4, block=32)
ROWS = 12

# Three products of one kind in a weighted sum; the constants la, lb and lc are the weights.
WEIGHTED_SUM = """(float[M, 64] x) => (float[M, 48] y)
    { r = Relu(x) [a] a = MatMul(r, wa) [b] b = MatMul(r, wb) [c] c = MatMul(r, wc)
      aa = Mul(a, la) bb = Mul(b, lb) cc = Mul(c, lc) ab = Add(aa, bb) y = Add(ab, cc) }"""


def normal(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape).astype(np.float32)


def write(path: Path, text: str, **weights: Any) -> Path:
    opsets = '<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]>'
    proto = onnx.parser.parse_model(f"{opsets} tiny {text}")
    for name, weight in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    save_graph(ir.from_proto(proto), path)
    return path


def run(path: Path, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))


def measure(path: Path, probe: Probe, rule: WeightOnly = RULE, weights: Weights | None = None) -> dict[str, float]:
    calls: list[int] = []
    products = find_products(ir.load(path).graph)
    sensitivities = measure_sensitivities(path, probe, products, weights or Weights(), rule, lambda: calls.append(1))
    assert len(calls) == len(sensitivities) == len({product.weight.name for product in products})
    return sensitivities


def rounded(weight: Floats) -> Floats:
    """``weight`` [K, N] after quantization."""
    return quantize_blocks(weight, RULE.bits, RULE.block, symmetric=False, search=False).dequantized()


@pytest.fixture
def weights(rng: np.random.Generator) -> dict[str, Any]:
    matrices: dict[str, Any] = {f"w{name}": normal(rng, 64, 48) for name in "abc"}
    factors = zip("abc", (0.01, 1, 0.1), strict=True)
    return matrices | {f"l{name}": np.array(factor, np.float32) for name, factor in factors}


def test_weight_with_the_largest_factor_is_most_sensitive(
    tmp_path: Path, weights: dict[str, Any], rng: np.random.Generator
) -> None:
    """Sensitivities equal the errors of graphs with one quantized weight."""
    path = write(tmp_path / "m.onnx", WEIGHTED_SUM, **weights)
    feeds = {"x": normal(rng, ROWS, 64)}
    sensitivities = measure(path, Probe("decoder", feeds, ["y"]))
    assert sorted(sensitivities, key=lambda name: -sensitivities[name]) == ["wb", "wc", "wa"]
    (exact,) = run(path, feeds).values()
    for name in ("wa", "wb", "wc"):
        changed = weights | {name: rounded(weights[name])}
        (other,) = run(write(tmp_path / f"{name}.onnx", WEIGHTED_SUM, **changed), feeds).values()
        assert sensitivities[name] == pytest.approx(relative_error(other, exact), rel=1e-3)
    finer = measure(path, Probe("decoder", feeds, ["y"]), msgspec.structs.replace(RULE, bits=8))
    assert all(0 < finer[name] < sensitivities[name] / 8 for name in sensitivities)


def test_folded_scales_are_taken_into_account(
    tmp_path: Path, weights: dict[str, Any], rng: np.random.Generator
) -> None:
    """The error is computed with the scales and added to the graph on disk without them."""
    path = write(tmp_path / "m.onnx", WEIGHTED_SUM, **weights)
    feeds = {"x": normal(rng, ROWS, 64)}
    rows, columns = (np.asarray(10 ** rng.uniform(-1, 1, size), np.float32) for size in (64, 48))
    folded = Weights()
    b = next(product for product in find_products(ir.load(path).graph) if product.name == "b")
    folded.scale_rows(b, rows)
    folded.scale_columns(b, columns)
    sensitivities = measure(path, Probe("decoder", feeds, ["y"]), weights=folded)
    scaled = rounded(weights["wb"] * rows[:, None] * columns)
    changed = weights | {"wb": scaled / rows[:, None] / columns}
    (exact,), (other,) = (
        run(graph, feeds).values() for graph in (path, write(tmp_path / "b.onnx", WEIGHTED_SUM, **changed))
    )
    assert sensitivities["wb"] == pytest.approx(relative_error(other, exact), rel=1e-3)
    assert sensitivities["wb"] != pytest.approx(measure(path, Probe("decoder", feeds, ["y"]))["wb"], rel=1e-2)


def test_tied_table_is_measured_in_both_nodes(tmp_path: Path, rng: np.random.Generator) -> None:
    text = """(int64[B, S] ids) => (float[B, S, 40] y)
        { [look] r = Gather(w, ids) n = Tanh(r) [f] f = Reshape(n, flat) [head] l = Gemm<transB = 1>(f, w)
          y = Reshape(l, wide) }"""
    table, ids = normal(rng, 40, 64), rng.integers(0, 40, (2, 6))
    shapes = {"flat": np.array([-1, 64]), "wide": np.array([2, -1, 40])}
    path = write(tmp_path / "m.onnx", text, w=table, **shapes)
    sensitivities = measure(path, Probe("decoder", {"ids": ids}, ["y"]))
    changed = rounded(np.ascontiguousarray(table.T)).T
    other = write(tmp_path / "q.onnx", text, w=np.ascontiguousarray(changed), **shapes)
    expected = relative_error(run(other, {"ids": ids})["y"], run(path, {"ids": ids})["y"])
    assert sensitivities == {"w": pytest.approx(expected, rel=0.05)}  # the input of the head changes too


def test_products_at_graph_input_and_output_are_measured(tmp_path: Path, rng: np.random.Generator) -> None:
    """One reads the graph's input, the other computes its output."""
    text = "(float[M, 64] x) => (float[M, 48] y) { [a] a = MatMul(x, u) g = Relu(a) [b] y = MatMul(g, v) }"
    path = write(tmp_path / "m.onnx", text, u=normal(rng, 64, 64), v=normal(rng, 64, 48))
    sensitivities = measure(path, Probe("decoder", {"x": normal(rng, ROWS, 64)}, ["y"]))
    assert set(sensitivities) == {"u", "v"}
    assert all(0.01 < error < 0.3 for error in sensitivities.values())


def test_inner_values_are_read_and_pushed(tmp_path: Path, rng: np.random.Generator) -> None:
    text = "(float[M, 8] x) => (float[M, 8] y) { a = Relu(x) b = Neg(a) c = Abs(b) y = Neg(c) }"
    path = write(tmp_path / "m.onnx", text)
    probe = Probe("encoder", {"x": normal(rng, 3, 8)}, ["y"])
    graph = InstrumentedGraph(path, ["a", "c", "a"], ["b"])
    plain = graph.run(probe, ["y", "a", "c"])
    np.testing.assert_array_equal(plain["a"], np.maximum(probe.feeds["x"], 0))
    np.testing.assert_array_equal(plain["c"], -plain["y"])
    pushed = graph.run(probe, ["y", "a"], {"b": np.full((3, 8), -2, np.float32)})
    np.testing.assert_array_equal(pushed["a"], plain["a"])
    np.testing.assert_allclose(pushed["y"], plain["y"] - 2, rtol=1e-6)
    np.testing.assert_array_equal(graph.run(probe, ["y"])["y"], plain["y"])
    assert list(tmp_path.iterdir()) == [path]


def test_external_weights_are_read(tmp_path: Path, rng: np.random.Generator) -> None:
    """By an instrumented graph, and when the quantized graph is small enough for a single file."""
    weights = {name: normal(rng, 64, 64) for name in "uv"}
    text = "(float[M, 64] x) => (float[M, 64] y) { r = Relu(x) [a] a = MatMul(r, u) [b] b = MatMul(a, v) y = Neg(b) }"
    whole, path = write(tmp_path / "whole.onnx", text, **weights), tmp_path / "split.onnx"
    assert save_graph(ir.load(whole), path, inline_limit=100).data == "split.onnx.data"
    probe = Probe("decoder", {"x": normal(rng, 3, 64)}, ["y"])
    (exact,) = run(whole, probe.feeds).values()
    np.testing.assert_array_equal(InstrumentedGraph(path, ["a"]).run(probe, ["y"])["y"], exact)
    spec = quantized(path, probe, {"a": msgspec.structs.replace(RULE, bits=8)}).spec
    assert spec.data is None
    for file in tmp_path.glob("split.*"):
        file.unlink()
    (actual,) = run(tmp_path / "out" / "split.onnx", probe.feeds).values()
    assert relative_error(actual, exact) < 0.02


# Weights that get more bits


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, set()),
        (0.09, set()),
        (0.1, {"small"}),
        (0.3, {"small", "middle"}),
        (0.7, {"small", "middle"}),  # the large one is next but does not fit
        (0.99, {"small", "large"}),
        (1.0, {"small", "middle", "large"}),
    ],
)
def test_selection_stays_within_the_share(share: float, expected: set[str]) -> None:
    """Squared error per weight decides: the large weight has the largest error and the largest cost."""
    sensitivities = {"small": 0.2, "middle": 0.2, "large": 0.4}
    sizes = {"small": 100, "middle": 200, "large": 700, "of another rule": 5000}
    gains = {name: error**2 / sizes[name] for name, error in sensitivities.items()}
    assert sorted(gains, key=lambda name: -gains[name]) == ["small", "large", "middle"]
    selected = most_sensitive(sensitivities, sizes, share)
    assert selected == expected
    assert sum(sizes[name] for name in selected) <= share * 1000


def quantized(
    path: Path, probe: Probe, rules: dict[str, AnyRule], statistics: dict[str, ActivationStatistics] | None = None
) -> QuantizedGraph:
    out = path.parent / "out"
    out.mkdir()
    return quantize_graph(path, out, rules, statistics or {}, probe, lambda: None)


def test_most_sensitive_weight_gets_more_bits(
    tmp_path: Path, weights: dict[str, Any], rng: np.random.Generator
) -> None:
    path = write(tmp_path / "m.onnx", WEIGHTED_SUM, **weights)
    probe = Probe("decoder", {"x": normal(rng, ROWS, 64)}, ["y"])
    rule = msgspec.structs.replace(RULE, sensitive=Sensitive(share=0.34))
    result = quantized(path, probe, dict.fromkeys("abc", rule))
    assert result.summary.nodes == {"4 bits, blocks of 32": 2, "8 bits, blocks of 32": 1}
    nodes = {node.name: node for node in ir.load(tmp_path / "out" / "m.onnx").graph}
    bits = {name: nodes[f"{name}/MatMulNBits"].attributes.get_int("bits") for name in "abc"}
    assert bits == {"a": 4, "b": 8, "c": 4}
    (exact,), (actual,) = (run(graph, probe.feeds).values() for graph in (path, tmp_path / "out" / "m.onnx"))
    assert relative_error(actual, exact) < 0.5 * measure(path, probe)["wb"]


def test_weights_of_another_rule_are_not_measured(
    tmp_path: Path, weights: dict[str, Any], rng: np.random.Generator
) -> None:
    """The most sensitive weight has a ``keep`` rule, so the next one gets the bits."""
    path = write(tmp_path / "m.onnx", WEIGHTED_SUM, **weights)
    probe = Probe("decoder", {"x": normal(rng, ROWS, 64)}, ["y"])
    rule = msgspec.structs.replace(RULE, sensitive=Sensitive(share=0.5))
    result = quantized(path, probe, {"a": rule, "b": Keep(graph="*"), "c": rule})
    assert result.summary.nodes == {"4 bits, blocks of 32": 1, "8 bits, blocks of 32": 1, "float32": 1}
    nodes = {node.name: node for node in ir.load(tmp_path / "out" / "m.onnx").graph}
    assert nodes["c/MatMulNBits"].attributes.get_int("bits") == 8


def test_convolution_under_a_rule_with_sensitive(tmp_path: Path, rng: np.random.Generator) -> None:
    """A rule for all nodes matches convolutions too."""
    text = """(float[B, 4, 6, 16] x) => (float[B, 8, 6, 24] y)
        { r = Relu(x) [conv] c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(r, k) [a] a = MatMul(c, w)
          y = Relu(a) }"""
    path = write(tmp_path / "m.onnx", text, k=normal(rng, 8, 4, 3, 3), w=normal(rng, 16, 24))
    probe = Probe("encoder", {"x": normal(rng, 2, 4, 6, 16)}, ["y"])
    rule = msgspec.structs.replace(RULE, block=16, sensitive=Sensitive(share=0.6, block=16))
    result = quantized(path, probe, {"conv": rule, "a": rule})
    assert sum(result.summary.nodes.values()) == 2
    (exact,), (actual,) = (run(graph, probe.feeds).values() for graph in (path, tmp_path / "out" / "m.onnx"))
    assert relative_error(actual, exact) < 0.2


# Fallbacks and shared weights


def calibrated(path: Path, probe: Probe) -> dict[str, ActivationStatistics]:
    calibration = Calibration(find_products(ir.load(path).graph), 1)
    calibration.add(InstrumentedGraph(path, calibration.taps).run(probe, calibration.taps))
    return calibration.finish()


def test_node_above_the_error_bound_falls_back(
    tmp_path: Path, weights: dict[str, Any], rng: np.random.Generator
) -> None:
    """The summary lists the node and its error; other nodes are not affected."""
    path = write(tmp_path / "m.onnx", WEIGHTED_SUM, **weights)
    probe = Probe("decoder", {"x": normal(rng, ROWS, 64)}, ["y"])
    lenient = W8A8(graph="*", error_bound=0.5, smoothing=None)
    strict = W8A8(graph="*", error_bound=1e-4, smoothing=None, fallback=Fallback(bits=4, block=16))
    result = quantized(path, probe, {"a": strict, "b": lenient}, calibrated(path, probe))
    assert result.summary.nodes == {"4 bits, blocks of 16": 1, "float32": 1, "w8a8": 1}
    (fallback,) = result.summary.fallbacks
    assert fallback.node == "a"
    assert 0.003 < fallback.error < 0.02
    nodes = {node.name: node for node in ir.load(tmp_path / "out" / "m.onnx").graph}
    assert nodes["a/MatMulNBits"].attributes.get_int("block_size") == 16
    assert {"b/MatMulIntegerToFloat", "c"} <= nodes.keys()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            [RULE, msgspec.structs.replace(RULE, block=64)],
            "'a' and 'b' share one weight.*rules",
        ),
        ([RULE, Keep(graph="*")], "'a' and 'b' share one weight.*rules"),
        ([RULE, None], "'a' and 'b' share one weight.*rules"),
        ([W8A8(graph="*", error_bound=1)] * 2, "'a' and 'b' share one weight.*w8a8.*weight_only"),
    ],
)
def test_nodes_that_share_a_weight_need_the_same_rule(
    rules: list[AnyRule | None], message: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    text = """(float[M, 64] x) => (float[M, 64] y)
        { r = Relu(x) [a] a = MatMul(r, w) s = Relu(a) [b] b = MatMul(s, w) y = Relu(b) }"""
    path = write(tmp_path / "m.onnx", text, w=normal(rng, 64, 64))
    probe = Probe("decoder", {"x": normal(rng, ROWS, 64)}, ["y"])
    rules_by_name = {name: rule for name, rule in zip("ab", rules, strict=True) if rule}
    with pytest.raises(RecipeError, match=message):
        quantized(path, probe, rules_by_name, calibrated(path, probe))
