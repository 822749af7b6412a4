"""Tests of subgraphs that run one batch element at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest

from quantize.methods.per_element import wrap

STEM = """
    t = Transpose<perm = [0, 2, 3, 1]>(x)
    r = ReduceMax(t, inner)
    d = Div(t, r)
    p = Pad(d, pads)
    s = Slice(p, start, end, axes, steps)
    c = Concat<axis = 3>(s, s)
    g = Gelu(c)
"""
CONSTANTS: dict[str, Any] = {
    "inner": np.array([1, 2, 3]),
    "pads": np.array([0, 1, 1, 0, 0, 1, 1, 0]),
    "start": np.array([0, 1]),
    "end": np.array([-1, 2**62]),
    "axes": np.array([1, 2]),
    "steps": np.array([2, 2]),
}


def build(body: str, constants: dict[str, Any]) -> ir.Model:
    text = f'<ir_version: 9, opset_import: ["" : 20]> agraph (float[B, 3, 8, 6] x) => (float y) {{ {body} }}'
    model = ir.from_proto(onnx.parser.parse_model(text))
    for name, value in constants.items():
        initializer = ir.Value(
            name=name,
            shape=ir.Shape(value.shape),
            type=ir.TensorType(ir.DataType.from_numpy(value.dtype)),
            const_value=ir.tensor(value, name=name),
        )
        for node in model.graph:
            for index, value_read in enumerate(node.inputs):
                if value_read is not None and value_read.name == name:
                    node.replace_input_with(index, initializer)
        model.graph.register_initializer(initializer)
    model.graph.outputs[0].shape = None
    return model


def run(model: ir.Model, x: Any) -> Any:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def only_scan(model: ir.Model) -> ir.Node:
    (node,) = (node for node in model.graph if node.op_type == "Scan")
    return node


def test_result_is_identical_to_the_bit(rng: np.random.Generator) -> None:
    x = rng.standard_normal((5, 3, 8, 6)).astype(np.float32)
    body = STEM + "flat = Reshape(g, shape) y = Abs(flat)"
    constants = CONSTANTS | {"shape": np.array([-1, 6])}
    model = build(body, constants)
    expected = run(model, x)
    assert wrap(model.graph, model.graph.inputs[0], "each")
    model.graph.sort()
    np.testing.assert_array_equal(run(model, x), expected)
    inside = {node.op_type for node in only_scan(model).attributes["body"].as_graph()}
    assert {"Transpose", "ReduceMax", "Pad", "Slice", "Concat", "Gelu"} <= inside
    assert "Reshape" not in inside


@pytest.mark.parametrize(
    ("changed", "constants"),
    [
        ("t = Transpose<perm = [1, 0, 2, 3]>(x)", {}),
        ("r = ReduceMax(t, inner)", {"inner": np.array([0, 1])}),
        ("r = ReduceMax(t, inner)", {"inner": np.array([-4, 1])}),
        ("p = Pad(d, pads)", {"pads": np.array([1, 1, 1, 0, 0, 1, 1, 0])}),
        ("s = Slice(p, start, end, axes, steps)", {"axes": np.array([0, 2])}),
        ("c = Concat<axis = 0>(s, s)", {}),
    ],
)
def test_operators_that_mix_batch_elements_stay_outside(
    changed: str, constants: dict[str, Any], rng: np.random.Generator
) -> None:
    x = rng.standard_normal((5, 3, 8, 6)).astype(np.float32)
    name = changed.split(" = ")[0]
    lines = [changed if line.strip().startswith(f"{name} = ") else line for line in STEM.splitlines()]
    model = build("\n".join(lines) + "y = Abs(g)", CONSTANTS | constants)
    expected = run(model, x)
    wrap(model.graph, model.graph.inputs[0], "each")
    model.graph.sort()
    for node in model.graph:
        if node.op_type == "Scan":
            body = node.attributes["body"].as_graph()
            assert all(value.name != name for inner in body for value in inner.outputs)
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-6)


def test_two_outputs_or_an_unknown_shape_leave_the_graph_unchanged() -> None:
    model = build("a = Gelu(x) b = Abs(a) f = Reshape(a, s) h = Reshape(b, s) y = Add(f, h)", {"s": np.array([-1])})
    assert not wrap(model.graph, model.graph.inputs[0], "each")
    model = build("a = Gelu(x) f = Reshape(a, s) y = Abs(f)", {"s": np.array([-1])})
    model.graph.inputs[0].shape = ir.Shape([None, 3, None, 6])
    assert not wrap(model.graph, model.graph.inputs[0], "each")
    assert all(node.op_type != "Scan" for node in model.graph)
