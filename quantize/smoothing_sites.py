"""Where a per-channel scale can be folded: what makes the input of products, and what undoes the scale before it.

If channel j of a product's input is divided by s[j] and row j of its weights multiplied by it, nothing changes. The
division costs nothing where the input comes from a norm (its gain takes it), from a product by way of something linear
in that channel (that product's columns take it), or from attention over values that a product made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from quantize.graph import array
from quantize.products import Product, Weights

Floats = npt.NDArray[np.float32]

_NORMS = {
    "LayerNormalization": (1, 2),
    "SimplifiedLayerNormalization": (1,),
    "SkipSimplifiedLayerNormalization": (2,),
    "SkipLayerNormalization": (2, 3),
}
# Attention in one node, its values the third input.
_FUSED = ("GroupQueryAttention", "MultiHeadAttention")


@dataclass(frozen=True, slots=True)
class SmoothingSite:
    """An input ``x`` [..., K] that ``products`` share, and how to divide it.

    ``groups`` [K] gives for every channel of ``x`` the channel of the source that makes it: in grouped-query attention
    several channels come from one. ``fold`` takes the scale [source channels] and divides the source by it.
    """

    x: ir.Value
    products: list[Product]
    groups: npt.NDArray[np.int64]
    fold: Callable[[Weights, Floats], None]


def find_smoothing_sites(products: list[Product]) -> list[SmoothingSite]:
    """Every input that can be scaled: all its readers are products, and its source can take the scale."""
    by_weight: dict[str, list[Product]] = {}
    by_x: dict[ir.Value, list[Product]] = {}
    for product in products:
        by_weight.setdefault(product.weight.name or "", []).append(product)
        if product.operator in ("MatMul", "Gemm"):
            by_x.setdefault(product.x, []).append(product)
    made_by = _makers(products)
    sites = []
    for x, readers in by_x.items():
        alone = all(len(by_weight[product.weight.name or ""]) == 1 for product in readers)
        if not alone or len(x.uses()) != len(readers) or x.is_graph_output():
            continue
        source = _norm(x) or _elementwise(x, made_by) or _grouped_attention(x, made_by) or _attention(x, made_by)
        if source:
            groups, fold = source
            sites.append(SmoothingSite(x, readers, groups, fold))
    return sites


def made_columns(value: ir.Value, products: list[Product]) -> tuple[Product, slice] | None:
    """The product of which ``value`` is some columns, if a scale can be folded into these."""
    owner = _column_owner(value, _makers(products))
    return (owner[0], owner[2]) if owner else None


def _makers(products: list[Product]) -> dict[ir.Value, Product]:
    """By output the ``MatMul`` that makes it and shares its weight with no other."""
    readers = Counter(product.weight.name for product in products)
    return {
        product.output: product
        for product in products
        if product.operator == "MatMul" and readers[product.weight.name] == 1
    }


_Source = tuple[npt.NDArray[np.int64], Callable[[Weights, Floats], None]]


def _only_use(value: ir.Value | None) -> bool:
    return value is not None and len(value.uses()) == 1 and not value.is_graph_output()


def _constant(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and value.const_value is not None and _only_use(value)


def _divide(value: ir.Value, scale: Floats) -> None:
    """Divide a small initializer in place of the graph."""
    value.const_value = ir.tensor((array(value) / scale).astype(np.float32), name=value.name)


def _norm(x: ir.Value) -> _Source | None:
    """The gain (and the bias) of a norm before it."""
    node = x.producer()
    if node is None or node.op_type not in _NORMS or node.outputs[0] is not x:
        return None
    indices = [index for index in _NORMS[node.op_type] if index < len(node.inputs) and node.inputs[index] is not None]
    values = [value for index in indices if (value := node.inputs[index]) is not None]
    if not values or not all(_constant(value) for value in values):
        return None

    def fold(_: Weights, scale: Floats) -> None:
        for value in values:
            _divide(value, scale)

    return np.arange(array(values[0]).size), fold


def _column_owner(
    value: ir.Value | None, made_by: dict[ir.Value, Product]
) -> tuple[Product, ir.Value | None, slice] | None:
    """The product that makes ``value``, its bias if one is added, and which of its columns ``value`` is."""
    if not _only_use(value):
        return None
    node = value.producer() if value else None
    if node is None:
        return None
    if node.op_type == "Split":
        if node.attributes.get_int("axis", 0) != -1 and (
            value is None or value.shape is None or node.attributes.get_int("axis", 0) != len(value.shape) - 1
        ):
            return None
        (index,) = (index for index, output in enumerate(node.outputs) if output is value)
        sizes = node.inputs[1] if len(node.inputs) > 1 else None
        constant = ir.convenience.get_const_tensor(sizes) if sizes is not None else None
        whole = made_by.get(node.inputs[0]) if node.inputs[0] is not None else None
        if constant is None or whole is None or not _only_use(whole.output):
            return None
        ends = np.cumsum(constant.numpy())
        return whole, None, slice(int(ends[index - 1]) if index else 0, int(ends[index]))
    if node.op_type == "Add":
        for product_side, bias in (node.inputs, node.inputs[::-1]):
            owner = made_by.get(product_side) if product_side is not None else None
            if owner and _constant(bias) and bias is not None and array(bias).ndim == 1 and _only_use(owner.output):
                return owner, bias, slice(0, array(bias).size)
        return None
    owner = made_by.get(value) if value is not None else None
    return (owner, None, slice(0, owner.weight.const_value.shape.numpy()[1])) if owner else None  # type: ignore[union-attr]


def _from_columns(owner: tuple[Product, ir.Value | None, slice]) -> Callable[[Weights, Floats], None]:
    product, bias, columns = owner

    def fold(weights: Weights, scale: Floats) -> None:
        whole = np.ones(product.weight.const_value.shape.numpy()[1], np.float32)  # type: ignore[union-attr]
        whole[columns] = 1 / scale
        weights.scale_columns(product, whole)
        if bias is not None:
            _divide(bias, scale)

    return fold


def _elementwise(x: ir.Value, made_by: dict[ir.Value, Product]) -> _Source | None:
    """``gate * up``: the product behind one factor takes the scale, and the other factor does not matter."""
    node = x.producer()
    if node is None or node.op_type != "Mul":
        return None
    for value in reversed(node.inputs):
        owner = _column_owner(value, made_by)
        if owner and owner[2].stop - owner[2].start > 1:  # one column is a factor of all channels
            return np.arange(owner[2].stop - owner[2].start), _from_columns(owner)
    return None


def _grouped_attention(x: ir.Value, made_by: dict[ir.Value, Product]) -> _Source | None:
    """Values of fused attention: a channel of a key-value head feeds one channel of each query head it serves."""
    node = x.producer()
    if node is None or node.op_type not in _FUSED or node.outputs[0] is not x:
        return None
    owner = _column_owner(node.inputs[2], made_by)
    if owner is None:
        return None
    heads = node.attributes.get_int("num_heads", 0)
    kv_heads = node.attributes.get_int("kv_num_heads", heads)
    width = (owner[2].stop - owner[2].start) // kv_heads
    head, channel = np.divmod(np.arange(heads * width), width)
    return head // (heads // kv_heads) * width + channel, _from_columns(owner)


def _attention(x: ir.Value, made_by: dict[ir.Value, Product]) -> _Source | None:
    """``probabilities @ values`` written out: x ← Reshape ← Transpose ← MatMul(p, Transpose ← Reshape ← values)."""

    def before(value: ir.Value | None, operator: str, index: int = 0) -> ir.Value | None:
        node = value.producer() if value is not None and _only_use(value) else None
        return node.inputs[index] if node is not None and node.op_type == operator else None

    def swaps_heads(value: ir.Value | None) -> bool:
        node = value.producer() if value is not None else None
        return node is not None and list(node.attributes.get_ints("perm", [])) == [0, 2, 1, 3]

    reshape = x.producer()
    if reshape is None or reshape.op_type != "Reshape":
        return None
    merged = reshape.inputs[0]
    if not swaps_heads(merged):
        return None
    attended = before(merged, "Transpose")
    values = before(attended, "MatMul", 1)
    if not swaps_heads(values):
        return None
    owner = _column_owner(before(before(values, "Transpose"), "Reshape"), made_by)
    return (np.arange(owner[2].stop - owner[2].start), _from_columns(owner)) if owner else None
