"""Classify the nodes of a graph into the kinds of :data:`quantize.recipe.KINDS`.

Recipes select nodes by kind, so that one recipe fits graphs of every family.
"""

from __future__ import annotations

import onnx_ir as ir

from quantize.products import Product, find_products

_SCORES = ("logits", "log_probs")
# Operators that only move data: inputs after the first give positions or shapes, not values.
_MOVES = frozenset({"Reshape", "Slice", "Split", "Squeeze", "Unsqueeze", "Expand", "Gather", "GatherND"})

_ATTENTION = ("Attention", "MultiHeadAttention")


def find_node_kinds(graph: ir.Graph) -> dict[ir.Node, str]:
    """Return the kind of every node of ``graph``, from operators, attributes and connections but not from names."""
    products = {product.node: product for product in find_products(graph)}
    heads = _heads(graph, products)
    return {node: "head" if node in heads else _kind(node, products.get(node)) for node in graph}


def has_cross_attention(graph: ir.Graph) -> bool:
    """Return whether an attention node of ``graph`` reads keys and values that are inputs of the graph."""
    return any(
        node.op_type in _ATTENTION and all(value is not None and value.is_graph_input() for value in node.inputs[1:3])
        for node in graph
    )


def _kind(node: ir.Node, product: Product | None) -> str:
    operator = node.op_type
    if operator == "Conv":
        if node.attributes.get_int("group", 1) > 1:
            return "depthwise"
        return "pointwise" if product and product.pointwise else "convolution"
    if product:
        return "embedding" if operator == "Gather" else "linear"
    if operator.endswith("Normalization"):
        return "normalization"
    if operator in ("Softmax", "LogSoftmax"):
        return "softmax"
    if operator == "Add" and len(_computed_inputs(node)) == 2:
        return "sum"
    return "other"


def _heads(graph: ir.Graph, products: dict[ir.Node, Product]) -> set[ir.Node]:
    """Find the products from which token scores are computed with nothing but constants on the path."""
    heads = set()
    for output in graph.outputs:
        node = output.producer() if (output.name or "").endswith(_SCORES) else None
        while node is not None and node not in products:
            sources = list(node.inputs[:1]) if node.op_type in _MOVES else _computed_inputs(node)
            node = sources[0].producer() if len(sources) == 1 and sources[0] is not None else None
        if node is not None and products[node].operator in ("MatMul", "Gemm"):
            heads.add(node)
    return heads


def _computed_inputs(node: ir.Node) -> list[ir.Value | None]:
    """Inputs that are not constants."""
    return [value for value in node.inputs if value is not None and ir.convenience.get_const_tensor(value) is None]
