"""The end of a decoder's graph: logits of the positions that are asked for, and heads that share the embedding.

``num_logits_to_keep[1]`` says of how many positions logits are wanted, ``logits[B,K,vocab]``: 1 gives the last valid
row of each sequence (found from the attention mask, so padded prompts may differ in length), k the last k rows, 0 all
rows. The head is a large part of a step's arithmetic, and prompts have rows that nobody reads. The name is the one for
which onnxruntime-genai supplies a 0 by itself.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from quantize.graph import Editor


def add_input(graph: ir.Graph, name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
    """A new input at the end of the graph's."""
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
    graph.inputs.append(value)
    return value


def keep_rows(graph: ir.Graph, edit: Editor, rows: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Of ``rows`` [B, S, hidden] those that ``num_logits_to_keep`` asks for.

    Returns:
        (them [B, K, hidden], their places in each row [B, K])
    """
    named = {value.name: value for value in graph.inputs}
    keep = add_input(graph, "num_logits_to_keep", ir.DataType.INT64, [1])
    zero, one, minus = (edit.constant(f"int_{n}", np.array([n], np.int64)) for n in (0, 1, -1))
    length = edit.node("Shape", [named["input_ids"]], start=1, end=2)
    # A first prompt is as long as its row of the mask has ones; after a filled cache the mask counts the past too.
    valid = edit.node("Min", [length, edit.node("ReduceSum", [named["attention_mask"], one], keepdims=1)])
    everything = edit.node("Equal", [keep, zero])
    count = edit.node("Where", [everything, length, keep])
    end = edit.node("Where", [everything, length, valid])
    scalars = [edit.constant(f"scalar_{n}", np.array(n, np.int64)) for n in (0, 1)]
    steps = edit.node("Range", [scalars[0], edit.node("Squeeze", [count]), scalars[1]])
    index = edit.node("Max", [edit.node("Add", [edit.node("Sub", [end, count]), steps]), zero])
    return edit.node("GatherND", [rows, edit.node("Unsqueeze", [index, minus])], batch_dims=1), index


def tied_head(graph: ir.Graph, edit: Editor, rows: ir.Value, index: ir.Value, table: ir.Value) -> ir.Value:
    """``rows`` times the transposed embedding ``table`` [vocab, hidden], which is not copied: [B, K, vocab]."""
    if table.shape is None:
        raise ValueError(f"the embedding {table.name!r} has no shape")
    vocab, hidden = (int(size) for size in table.shape.numpy())
    flat = edit.node("Reshape", [rows, edit.constant("rows", np.array([-1, hidden], np.int64))])
    product = ir.Node("", "Gemm", [flat, table], [ir.AttrInt64("transB", 1)], name="/lm_head/Gemm")
    product.outputs[0].name = "/lm_head/Gemm/output_0"
    graph.append(product)
    size = edit.constant("vocab", np.array([vocab], np.int64))
    return edit.node("Reshape", [product.outputs[0], edit.node("Concat", [edit.node("Shape", [index]), size], axis=0)])


def name_logits(value: ir.Value, vocab: int) -> ir.Value:
    """Call a value ``logits`` [batch_size, logit_rows, vocab]."""
    value.name = "logits"
    value.shape = ir.Shape(["batch_size", "logit_rows", vocab])
    value.type = ir.TensorType(ir.DataType.FLOAT)
    return value
