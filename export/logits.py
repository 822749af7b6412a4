"""The output head of a decoder graph: logits of selected positions, from a head that may share the embedding.

The input ``num_logits_to_keep[1]`` selects for how many positions ``logits[B,K,vocab]`` are computed: 1 gives the last
valid position of each row (found from the attention mask, so padded prompts may differ in length), k the last k
positions, 0 all positions. The head is a large part of a step's arithmetic, and most positions of a prompt need no
logits. The name is the one for which onnxruntime-genai supplies a 0 by itself.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from quantize.graph import Editor


def add_input(graph: ir.Graph, name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
    """Add an input after the existing inputs of ``graph``."""
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
    graph.inputs.append(value)
    return value


def keep_rows(graph: ir.Graph, edit: Editor, hidden: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Select the positions of ``hidden`` [B, S, width] that ``num_logits_to_keep`` requests.

    Returns:
        The selected hidden states [B, K, width], and their positions in each row, int64 [B, K].
    """
    inputs = {value.name: value for value in graph.inputs}
    keep = add_input(graph, "num_logits_to_keep", ir.DataType.INT64, [1])
    zero, one, minus = (edit.constant(f"int_{n}", np.array([n], np.int64)) for n in (0, 1, -1))
    length = edit.node("Shape", [inputs["input_ids"]], start=1, end=2)
    # The mask's ones give a first prompt's length; after a filled cache the mask also counts the past.
    valid = edit.node("Min", [length, edit.node("ReduceSum", [inputs["attention_mask"], one], keepdims=1)])
    everything = edit.node("Equal", [keep, zero])
    count = edit.node("Where", [everything, length, keep])
    end = edit.node("Where", [everything, length, valid])
    scalars = [edit.constant(f"scalar_{n}", np.array(n, np.int64)) for n in (0, 1)]
    steps = edit.node("Range", [scalars[0], edit.node("Squeeze", [count]), scalars[1]])
    index = edit.node("Max", [edit.node("Add", [edit.node("Sub", [end, count]), steps]), zero])
    return edit.node("GatherND", [hidden, edit.node("Unsqueeze", [index, minus])], batch_dims=1), index


def tied_head(graph: ir.Graph, edit: Editor, hidden: ir.Value, index: ir.Value, table: ir.Value) -> ir.Value:
    """Multiply ``hidden`` [B, K, width] by the transposed embedding ``table`` [vocab, width], without copying it.

    Args:
        graph: the graph to which the product is appended.
        edit: adds the other nodes.
        hidden: as :func:`keep_rows` returns it.
        index: positions [B, K], of which only the shape is used.
        table: the embedding matrix.

    Returns:
        Logits [B, K, vocab].

    Raises:
        ValueError: ``table`` has no shape.
    """
    if table.shape is None:
        raise ValueError(f"the embedding {table.name!r} has no shape")
    vocab, width = (int(size) for size in table.shape.numpy())
    flat = edit.node("Reshape", [hidden, edit.constant("rows", np.array([-1, width], np.int64))])
    product = ir.Node("", "Gemm", [flat, table], [ir.AttrInt64("transB", 1)], name="/lm_head/Gemm")
    product.outputs[0].name = "/lm_head/Gemm/output_0"
    graph.append(product)
    size = edit.constant("vocab", np.array([vocab], np.int64))
    return edit.node("Reshape", [product.outputs[0], edit.node("Concat", [edit.node("Shape", [index]), size], axis=0)])


def name_logits(value: ir.Value, vocab: int) -> ir.Value:
    """Name ``value`` ``logits`` and give it the type float32 [batch_size, logit_rows, vocab]."""
    value.name = "logits"
    value.shape = ir.Shape(["batch_size", "logit_rows", vocab])
    value.type = ir.TensorType(ir.DataType.FLOAT)
    return value
