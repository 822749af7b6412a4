"""Convert single nodes to float16, with casts only where float32 and float16 nodes meet.

Nodes that a recipe leaves in float32 (normalization, softmax and residual sums, whose squares and sums exceed 65,504)
keep their operator and type. Graph inputs and outputs stay float32, except keys and values of the attention cache: they
must have the type of the queries, and take half the memory.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from quantize.errors import QuantizationError

# Operators whose output type is given by an attribute or is not a float.
_TYPED = frozenset({"Cast", "Constant", "ConstantOfShape", "Shape", "Range", "Equal", "Less"})
# Indices of the cache among the inputs and outputs of attention operators.
_CACHE_INPUTS = {"GroupQueryAttention": (3, 4)}
_CACHE_OUTPUTS = {"GroupQueryAttention": (1, 2)}
_FLOAT16_MAX = float(np.finfo(np.float16).max)


def convert(model: ir.Model, names: set[str]) -> int:
    """Convert the nodes named in ``names`` that compute in float32 to float16.

    Returns:
        The number of converted nodes.

    Raises:
        QuantizationError: A weight of these nodes has values beyond the range of float16.
    """
    if not names:
        return 0
    graph = model.graph
    for node in graph:
        if node.op_type == "Constant":  # the decoder builder annotates vectors as scalars, which fails inference
            node.outputs[0].shape = None
    ShapeInferencePass()(model)  # adds missing types
    graph.sort()
    half: dict[ir.Value, ir.Value] = {}
    converted = 0
    for node in list(graph):
        floats = [value for value in (*node.inputs, *node.outputs) if value is not None and _is_float(value)]
        if node.name not in names or node.op_type in _TYPED or not floats:
            continue
        converted += 1
        for index, value in enumerate(node.inputs):
            if value is None or not _is_float(value):
                continue
            if index in _CACHE_INPUTS.get(node.op_type, ()):
                value.type = ir.TensorType(ir.DataType.FLOAT16)
            else:
                node.replace_input_with(index, _half(graph, half, value))
        for index, output in enumerate(node.outputs):
            if not _is_float(output):
                continue
            output.type = ir.TensorType(ir.DataType.FLOAT16)
            if index not in _CACHE_OUTPUTS.get(node.op_type, ()):
                half[_widen(graph, output)] = output
    for node in list(graph):
        if node.op_type == "Cast" and not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            graph.remove(node, safe=True)
    return converted


def _is_float(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT


def _half(graph: ir.Graph, half: dict[ir.Value, ir.Value], value: ir.Value) -> ir.Value:
    """Return ``value`` in float16: the value it was widened from, a converted constant, or a cast."""
    if value in half:
        return half[value]
    constant = ir.convenience.get_const_tensor(value)  # an initializer, or a Constant node
    if constant is not None:
        floats = constant.numpy()
        if floats.size and not float(np.abs(floats).max()) <= _FLOAT16_MAX:
            raise QuantizationError(
                f"weight {value.name!r} has values beyond ±65504, which float16 cannot hold; keep its node in float32"
            )
        name = f"{value.name}/float16"
        converted = ir.Value(
            name=name,
            shape=value.shape,
            type=ir.TensorType(ir.DataType.FLOAT16),
            const_value=ir.tensor(floats.astype(np.float16), name=name),
        )
        graph.register_initializer(converted)
    else:
        converted = _cast(graph, value, ir.DataType.FLOAT16, f"{value.name}/float16")
    half[value] = converted
    return converted


def _widen(graph: ir.Graph, output: ir.Value) -> ir.Value:
    """Cast ``output`` to float32 for all its readers; the cast takes the name of a graph output."""
    wide = _cast(graph, output, ir.DataType.FLOAT, f"{output.name}/float32")
    cast = wide.producer()
    if output.is_graph_output():
        output.name, wide.name = f"{output.name}/float16", output.name
    ir.convenience.replace_all_uses_with(output, wide, replace_graph_outputs=True)
    if cast is not None:
        cast.replace_input_with(0, output)
    return wide


def _cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
    node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(dtype))], name=f"{name}/Cast")
    output = node.outputs[0]
    output.name, output.shape, output.type = name, value.shape, ir.TensorType(dtype)
    graph.append(node)
    return output
