"""Half precision node by node, with casts only where a float32 node meets a float16 one.

What a recipe leaves in float32 (norms, softmax, the residual sums, where squares and sums pass 65,504) keeps its
operator and its type. Graph inputs and outputs stay float32 but for the keys and values of the attention cache, which
must have the type of the queries and are half as large for it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from quantize.errors import QuantizationError

# Their result's type is in an attribute, or is no float.
_TYPED = frozenset({"Cast", "Constant", "ConstantOfShape", "Shape", "Range", "Equal", "Less"})
# Inputs and outputs of attention that are the cache, by operator.
_CACHE_INPUTS = {"GroupQueryAttention": (3, 4)}
_CACHE_OUTPUTS = {"GroupQueryAttention": (1, 2)}
_LARGEST = float(np.finfo(np.float16).max)


def convert(model: ir.Model, names: set[str]) -> int:
    """Let the nodes called ``names`` that compute in float32 compute in float16; returns how many those were.

    Raises:
        QuantizationError: a weight of theirs is larger than float16 can hold.
    """
    if not names:
        return 0
    graph = model.graph
    for node in graph:
        if node.op_type == "Constant":  # the decoder's builder annotates vectors as scalars, which inference refuses
            node.outputs[0].shape = None
    ShapeInferencePass()(model)  # types of the values that were annotated with none
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
                half[_widened(graph, output)] = output
    for node in list(graph):
        if node.op_type == "Cast" and not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            graph.remove(node, safe=True)
    return converted


def _is_float(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT


def _half(graph: ir.Graph, half: dict[ir.Value, ir.Value], value: ir.Value) -> ir.Value:
    """``value`` in float16: what it was widened from, a converted weight, or a cast."""
    if value in half:
        return half[value]
    constant = ir.convenience.get_const_tensor(value)  # an initializer, or a Constant node
    if constant is not None:
        floats = constant.numpy()
        if floats.size and not float(np.abs(floats).max()) <= _LARGEST:
            raise QuantizationError(
                f"weight {value.name!r} has values beyond ±65504, which float16 cannot hold; keep its node in float32"
            )
        name = f"{value.name}/float16"
        made = ir.Value(
            name=name,
            shape=value.shape,
            type=ir.TensorType(ir.DataType.FLOAT16),
            const_value=ir.tensor(floats.astype(np.float16), name=name),
        )
        graph.register_initializer(made)
    else:
        made = _cast(graph, value, ir.DataType.FLOAT16, f"{value.name}/float16")
    half[value] = made
    return made


def _widened(graph: ir.Graph, output: ir.Value) -> ir.Value:
    """``output`` as float32, under its name if it is an output of the graph, for all who read it."""
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
    made = node.outputs[0]
    made.name, made.shape, made.type = name, value.shape, ir.TensorType(dtype)
    graph.append(node)
    return made
