"""Sensitivities against graphs that were really quantized, what gets more bits, and what a graph becomes by rules."""

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

from quantize.calibration import Calibration, Inputs
from quantize.errors import RecipeError
from quantize.graph import save_graph
from quantize.graph_quantization import Rewritten, rewrite
from quantize.instrumented_graph import InstrumentedGraph
from quantize.numerics import Floats, quantize_blocks, relative_error
from quantize.products import Weights, find_products
from quantize.recipe import W8A8, AnyRule, Fallback, Keep, Sensitive, WeightOnly
from quantize.sensitivity import most_sensitive, sensitivities
from runtime.engines.base import Probe

RULE = WeightOnly(graph="*", bits=4, block=32)
ROWS = 12

# Three products of one kind; how loud each is in the sum is in a constant.
BESIDE = """(float[M, 64] x) => (float[M, 48] y)
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
    done: list[int] = []
    products = find_products(ir.load(path).graph)
    found = sensitivities(path, probe, products, weights or Weights(), rule, lambda: done.append(1))
    assert len(done) == len(found) == len({product.weight.name for product in products})
    return found


def rounded(weight: Floats) -> Floats:
    """What ``weight`` [K, N] becomes."""
    return quantize_blocks(weight, RULE.bits, RULE.block, symmetric=False, search=False).dequantized()


@pytest.fixture
def weights(rng: np.random.Generator) -> dict[str, Any]:
    made: dict[str, Any] = {f"w{name}": normal(rng, 64, 48) for name in "abc"}
    return made | {f"l{name}": np.array(loud, np.float32) for name, loud in zip("abc", (0.01, 1, 0.1), strict=True)}


def test_the_loudest_weight_comes_first(tmp_path: Path, weights: dict[str, Any], rng: np.random.Generator) -> None:
    """The numbers are those of graphs in which one weight alone was quantized."""
    path = write(tmp_path / "m.onnx", BESIDE, **weights)
    feeds = {"x": normal(rng, ROWS, 64)}
    found = measure(path, Probe("decoder", feeds, ["y"]))
    assert sorted(found, key=lambda name: -found[name]) == ["wb", "wc", "wa"]
    (exact,) = run(path, feeds).values()
    for name in ("wa", "wb", "wc"):
        changed = weights | {name: rounded(weights[name])}
        (other,) = run(write(tmp_path / f"{name}.onnx", BESIDE, **changed), feeds).values()
        assert found[name] == pytest.approx(relative_error(other, exact), rel=1e-3)
    finer = measure(path, Probe("decoder", feeds, ["y"]), msgspec.structs.replace(RULE, bits=8))
    assert all(0 < finer[name] < found[name] / 8 for name in found)


def test_scales_that_were_folded_are_taken_into_account(
    tmp_path: Path, weights: dict[str, Any], rng: np.random.Generator
) -> None:
    """The graph on disk does not have them: the error is measured with them, and pushed into it without."""
    path = write(tmp_path / "m.onnx", BESIDE, **weights)
    feeds = {"x": normal(rng, ROWS, 64)}
    rows, columns = (np.asarray(10 ** rng.uniform(-1, 1, size), np.float32) for size in (64, 48))
    folded = Weights()
    b = next(product for product in find_products(ir.load(path).graph) if product.name == "b")
    folded.scale_rows(b, rows)
    folded.scale_columns(b, columns)
    found = measure(path, Probe("decoder", feeds, ["y"]), weights=folded)
    scaled = rounded(weights["wb"] * rows[:, None] * columns)
    changed = weights | {"wb": scaled / rows[:, None] / columns}
    (exact,), (other,) = (run(each, feeds).values() for each in (path, write(tmp_path / "b.onnx", BESIDE, **changed)))
    assert found["wb"] == pytest.approx(relative_error(other, exact), rel=1e-3)
    assert found["wb"] != pytest.approx(measure(path, Probe("decoder", feeds, ["y"]))["wb"], rel=1e-2)


def test_a_table_is_measured_in_both_its_places(tmp_path: Path, rng: np.random.Generator) -> None:
    text = """(int64[B, S] ids) => (float[B, S, 40] y)
        { [look] r = Gather(w, ids) n = Tanh(r) [f] f = Reshape(n, flat) [head] l = Gemm<transB = 1>(f, w)
          y = Reshape(l, wide) }"""
    table, ids = normal(rng, 40, 64), rng.integers(0, 40, (2, 6))
    shapes = {"flat": np.array([-1, 64]), "wide": np.array([2, -1, 40])}
    path = write(tmp_path / "m.onnx", text, w=table, **shapes)
    found = measure(path, Probe("decoder", {"ids": ids}, ["y"]))
    changed = rounded(np.ascontiguousarray(table.T)).T
    other = write(tmp_path / "q.onnx", text, w=np.ascontiguousarray(changed), **shapes)
    expected = relative_error(run(other, {"ids": ids})["y"], run(path, {"ids": ids})["y"])
    assert found == {"w": pytest.approx(expected, rel=0.05)}  # what meets the head was changed itself


def test_products_at_the_ends_of_the_graph_are_measured(tmp_path: Path, rng: np.random.Generator) -> None:
    """One reads the graph's input itself, one makes its output."""
    text = "(float[M, 64] x) => (float[M, 48] y) { [a] a = MatMul(x, u) g = Relu(a) [b] y = MatMul(g, v) }"
    path = write(tmp_path / "m.onnx", text, u=normal(rng, 64, 64), v=normal(rng, 64, 48))
    found = measure(path, Probe("decoder", {"x": normal(rng, ROWS, 64)}, ["y"]))
    assert set(found) == {"u", "v"}
    assert all(0.01 < error < 0.3 for error in found.values())


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


def test_weights_beside_the_graph_are_found(tmp_path: Path, rng: np.random.Generator) -> None:
    """While it is probed, and by a smaller graph that needs no second file any more."""
    weights = {name: normal(rng, 64, 64) for name in "uv"}
    text = "(float[M, 64] x) => (float[M, 64] y) { r = Relu(x) [a] a = MatMul(r, u) [b] b = MatMul(a, v) y = Neg(b) }"
    whole, path = write(tmp_path / "whole.onnx", text, **weights), tmp_path / "split.onnx"
    assert save_graph(ir.load(whole), path, inline_limit=100).data == "split.onnx.data"
    probe = Probe("decoder", {"x": normal(rng, 3, 64)}, ["y"])
    (exact,) = run(whole, probe.feeds).values()
    np.testing.assert_array_equal(InstrumentedGraph(path, ["a"]).run(probe, ["y"])["y"], exact)
    spec = rewritten(path, probe, {"a": msgspec.structs.replace(RULE, bits=8)}).spec
    assert spec.data is None
    for file in tmp_path.glob("split.*"):
        file.unlink()
    (found,) = run(tmp_path / "out" / "split.onnx", probe.feeds).values()
    assert relative_error(found, exact) < 0.02


# What is done with them


@pytest.mark.parametrize(
    ("share", "chosen"),
    [
        (0.0, set()),
        (0.09, set()),
        (0.1, {"small"}),
        (0.3, {"small", "middle"}),
        (0.7, {"small", "middle"}),  # the large one, next in worth, does not fit any more
        (0.99, {"small", "large"}),
        (1.0, {"small", "middle", "large"}),
    ],
)
def test_the_share_is_kept(share: float, chosen: set[str]) -> None:
    """Squared error for each weight decides: the large one moves the output most, but costs most."""
    found = {"small": 0.2, "middle": 0.2, "large": 0.4}
    sizes = {"small": 100, "middle": 200, "large": 700, "of another rule": 5000}
    worth = {name: found[name] ** 2 / sizes[name] for name in found}
    assert sorted(worth, key=lambda name: -worth[name]) == ["small", "large", "middle"]
    assert most_sensitive(found, sizes, share) == chosen
    assert sum(sizes[name] for name in most_sensitive(found, sizes, share)) <= share * 1000


def rewritten(
    path: Path, probe: Probe, rules: dict[str, AnyRule], inputs: dict[str, Inputs] | None = None
) -> Rewritten:
    out = path.parent / "out"
    out.mkdir()
    return rewrite(path, out, rules, inputs or {}, probe, lambda: None)


def test_the_most_sensitive_weight_gets_more_bits(
    tmp_path: Path, weights: dict[str, Any], rng: np.random.Generator
) -> None:
    path = write(tmp_path / "m.onnx", BESIDE, **weights)
    probe = Probe("decoder", {"x": normal(rng, ROWS, 64)}, ["y"])
    rule = msgspec.structs.replace(RULE, sensitive=Sensitive(share=0.34))
    made = rewritten(path, probe, dict.fromkeys("abc", rule))
    assert made.summary.nodes == {"4 bits, blocks of 32": 2, "8 bits, blocks of 32": 1}
    nodes = {node.name: node for node in ir.load(tmp_path / "out" / "m.onnx").graph}
    bits = {name: nodes[f"{name}/MatMulNBits"].attributes.get_int("bits") for name in "abc"}
    assert bits == {"a": 4, "b": 8, "c": 4}
    (exact,), (found,) = (run(each, probe.feeds).values() for each in (path, tmp_path / "out" / "m.onnx"))
    assert relative_error(found, exact) < 0.5 * measure(path, probe)["wb"]


def test_weights_of_another_rule_are_not_asked(
    tmp_path: Path, weights: dict[str, Any], rng: np.random.Generator
) -> None:
    """The loudest is kept as it is, so the next one gets the bits."""
    path = write(tmp_path / "m.onnx", BESIDE, **weights)
    probe = Probe("decoder", {"x": normal(rng, ROWS, 64)}, ["y"])
    rule = msgspec.structs.replace(RULE, sensitive=Sensitive(share=0.5))
    made = rewritten(path, probe, {"a": rule, "b": Keep(graph="*"), "c": rule})
    assert made.summary.nodes == {"4 bits, blocks of 32": 1, "8 bits, blocks of 32": 1, "float32": 1}
    nodes = {node.name: node for node in ir.load(tmp_path / "out" / "m.onnx").graph}
    assert nodes["c/MatMulNBits"].attributes.get_int("bits") == 8


def test_a_convolution_under_a_rule_with_sensitive_weights(tmp_path: Path, rng: np.random.Generator) -> None:
    """A rule for everything meets the encoder's convolutions too."""
    text = """(float[B, 4, 6, 16] x) => (float[B, 8, 6, 24] y)
        { r = Relu(x) [conv] c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(r, k) [a] a = MatMul(c, w)
          y = Relu(a) }"""
    path = write(tmp_path / "m.onnx", text, k=normal(rng, 8, 4, 3, 3), w=normal(rng, 16, 24))
    probe = Probe("encoder", {"x": normal(rng, 2, 4, 6, 16)}, ["y"])
    rule = msgspec.structs.replace(RULE, block=16, sensitive=Sensitive(share=0.6, block=16))
    made = rewritten(path, probe, {"conv": rule, "a": rule})
    assert sum(made.summary.nodes.values()) == 2
    (exact,), (found,) = (run(each, probe.feeds).values() for each in (path, tmp_path / "out" / "m.onnx"))
    assert relative_error(found, exact) < 0.2


# What else rules make of a graph


def calibrated(path: Path, probe: Probe) -> dict[str, Inputs]:
    calibration = Calibration(find_products(ir.load(path).graph), 1)
    calibration.add(InstrumentedGraph(path, calibration.taps).run(probe, calibration.taps))
    return calibration.finish()


def test_what_cannot_bear_rounded_activations_falls_back(
    tmp_path: Path, weights: dict[str, Any], rng: np.random.Generator
) -> None:
    """It is named with its error; the others are not touched by that."""
    path = write(tmp_path / "m.onnx", BESIDE, **weights)
    probe = Probe("decoder", {"x": normal(rng, ROWS, 64)}, ["y"])
    lenient = W8A8(graph="*", error_bound=0.5, smoothing=None)
    strict = W8A8(graph="*", error_bound=1e-4, smoothing=None, fallback=Fallback(bits=4, block=16))
    made = rewritten(path, probe, {"a": strict, "b": lenient}, calibrated(path, probe))
    assert made.summary.nodes == {"4 bits, blocks of 16": 1, "float32": 1, "w8a8": 1}
    (fallback,) = made.summary.fallbacks
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
            "'a' and 'b' share one weight, but the recipe's rules quantize",
        ),
        ([RULE, Keep(graph="*")], "'a' and 'b' share one weight, but the recipe's rules quantize"),
        ([RULE, None], "'a' and 'b' share one weight, but the recipe's rules quantize"),
        ([W8A8(graph="*", error_bound=1)] * 2, "'a' and 'b' share one weight, which method w8a8 cannot do"),
    ],
)
def test_who_shares_a_weight_shares_the_rule(
    rules: list[AnyRule | None], message: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    text = """(float[M, 64] x) => (float[M, 64] y)
        { r = Relu(x) [a] a = MatMul(r, w) s = Relu(a) [b] b = MatMul(s, w) y = Relu(b) }"""
    path = write(tmp_path / "m.onnx", text, w=normal(rng, 64, 64))
    probe = Probe("decoder", {"x": normal(rng, ROWS, 64)}, ["y"])
    chosen = {name: rule for name, rule in zip("ab", rules, strict=True) if rule}
    with pytest.raises(RecipeError, match=message):
        rewritten(path, probe, chosen, calibrated(path, probe))
