"""What a node is for, told from the graph alone: one of :data:`quantize.recipe.KINDS`.

Recipes speak of kinds, and hold for whatever family a graph is of.
"""

from __future__ import annotations

import onnx_ir as ir

from quantize.products import Product, find_products

_SCORES = ("logits", "log_probs")
# What they read beside their first input says where, and not what.
_MOVES = frozenset({"Reshape", "Slice", "Split", "Squeeze", "Unsqueeze", "Expand", "Gather", "GatherND"})


def find_node_kinds(graph: ir.Graph) -> dict[ir.Node, str]:
    """The kind of every node of ``graph``."""
    products = {product.node: product for product in find_products(graph)}
    heads = _heads(graph, products)
    return {node: "head" if node in heads else _kind(node, products.get(node)) for node in graph}


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
    if operator == "Add" and len(_computed(node)) == 2:
        return "sum"
    return "other"


def _heads(graph: ir.Graph, products: dict[ir.Node, Product]) -> set[ir.Node]:
    """Products from which scores of tokens are made with nothing but constants on the way."""
    found = set()
    for output in graph.outputs:
        node = output.producer() if (output.name or "").endswith(_SCORES) else None
        while node is not None and node not in products:
            read = list(node.inputs[:1]) if node.op_type in _MOVES else _computed(node)
            node = read[0].producer() if len(read) == 1 and read[0] is not None else None
        if node is not None and products[node].operator in ("MatMul", "Gemm"):
            found.add(node)
    return found


def _computed(node: ir.Node) -> list[ir.Value | None]:
    """Inputs that are no constants."""
    return [value for value in node.inputs if value is not None and ir.convenience.get_const_tensor(value) is None]
