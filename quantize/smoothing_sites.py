"""Find the inputs of products that a per-channel scale can divide, and the source that absorbs the division.

If channel j of a product's input is divided by s[j] and row j of its weights is multiplied by s[j], the result does not
change. The division is free where the input comes from a normalization (its gain absorbs it), from a product through
operators that are linear in that channel (that product's columns absorb it), or from attention over values that a
product computed.
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

# Normalization operators and the indices of their gain and bias inputs.
_NORMS = {
    "LayerNormalization": (1, 2),
    "SimplifiedLayerNormalization": (1,),
    "SkipSimplifiedLayerNormalization": (2,),
    "SkipLayerNormalization": (2, 3),
}
# Attention in a single node, with the values as the third input.
_FUSED_ATTENTION = ("GroupQueryAttention", "MultiHeadAttention")


@dataclass(frozen=True, slots=True)
class SmoothingSite:
    """An input of products that a per-channel scale can divide.

    Attributes:
        x: The input, [..., K].
        products: All readers of ``x``.
        groups: int64 [K], the source channel of every channel of ``x``. In grouped-query attention several channels
            have the same source.
        fold: Divides the source by a scale [source channels]; scales of products are folded into the given weights.
    """

    x: ir.Value
    products: list[Product]
    groups: npt.NDArray[np.int64]
    fold: Callable[[Weights, Floats], None]


def find_smoothing_sites(products: list[Product]) -> list[SmoothingSite]:
    """Find every input whose readers are all ``MatMul`` or ``Gemm`` products and whose source can absorb a scale."""
    by_weight: dict[str, list[Product]] = {}
    by_x: dict[ir.Value, list[Product]] = {}
    for product in products:
        by_weight.setdefault(product.weight.name or "", []).append(product)
        if product.operator in ("MatMul", "Gemm"):
            by_x.setdefault(product.x, []).append(product)
    producers = _producers(products)
    sites = []
    for x, readers in by_x.items():
        unshared = all(len(by_weight[product.weight.name or ""]) == 1 for product in readers)
        if not unshared or len(x.uses()) != len(readers) or x.is_graph_output():
            continue
        source = _norm(x) or _elementwise(x, producers) or _grouped_attention(x, producers) or _attention(x, producers)
        if source:
            groups, fold = source
            sites.append(SmoothingSite(x, readers, groups, fold))
    return sites


def find_source_columns(value: ir.Value, products: list[Product]) -> tuple[Product, slice] | None:
    """Return the product and its columns that compute ``value``, or None if no scale can be folded into them."""
    source = _source_columns(value, _producers(products))
    return (source.product, source.columns) if source else None


def _producers(products: list[Product]) -> dict[ir.Value, Product]:
    """``MatMul`` products whose weight is not shared, by output."""
    readers = Counter(product.weight.name for product in products)
    return {
        product.output: product
        for product in products
        if product.operator == "MatMul" and readers[product.weight.name] == 1
    }


# The ``groups`` and ``fold`` of a site.
_Source = tuple[npt.NDArray[np.int64], Callable[[Weights, Floats], None]]


@dataclass(frozen=True, slots=True)
class _SourceColumns:
    """Columns of a product that compute a value, with the bias that is added to them if there is one."""

    product: Product
    bias: ir.Value | None
    columns: slice

    @property
    def count(self) -> int:
        return int(self.columns.stop - self.columns.start)

    def fold(self, weights: Weights, scale: Floats) -> None:
        """Divide the columns and the bias by ``scale``."""
        whole = np.ones(_column_count(self.product), np.float32)
        whole[self.columns] = 1 / scale
        weights.scale_columns(self.product, whole)
        if self.bias is not None:
            _divide(self.bias, scale)


def _column_count(product: Product) -> int:
    return int(product.weight.const_value.shape.numpy()[1])  # type: ignore[union-attr]


def _used_once(value: ir.Value | None) -> bool:
    return value is not None and len(value.uses()) == 1 and not value.is_graph_output()


def _is_own_constant(value: ir.Value | None) -> bool:
    """Whether ``value`` is an initializer with a single reader."""
    return value is not None and value.is_initializer() and value.const_value is not None and _used_once(value)


def _divide(value: ir.Value, scale: Floats) -> None:
    """Divide an initializer by ``scale`` in the graph."""
    value.const_value = ir.tensor((array(value) / scale).astype(np.float32), name=value.name)


def _norm(x: ir.Value) -> _Source | None:
    """A normalization that computes ``x``: its gain and bias absorb the scale."""
    node = x.producer()
    if node is None or node.op_type not in _NORMS or node.outputs[0] is not x:
        return None
    indices = [index for index in _NORMS[node.op_type] if index < len(node.inputs) and node.inputs[index] is not None]
    values = [value for index in indices if (value := node.inputs[index]) is not None]
    if not values or not all(_is_own_constant(value) for value in values):
        return None

    def fold(_: Weights, scale: Floats) -> None:
        for value in values:
            _divide(value, scale)

    return np.arange(array(values[0]).size), fold


def _source_columns(value: ir.Value | None, producers: dict[ir.Value, Product]) -> _SourceColumns | None:
    """Find the columns of a product that compute ``value``: directly, through a bias, or as one part of a ``Split``."""
    node = value.producer() if value is not None else None
    if value is None or node is None or not _used_once(value):
        return None
    if node.op_type == "Split":
        return _split_part(value, node, producers)
    if node.op_type == "Add":
        for output, bias in (node.inputs, node.inputs[::-1]):
            product = producers.get(output) if output is not None else None
            if (
                product
                and bias is not None
                and _is_own_constant(bias)
                and array(bias).ndim == 1
                and _used_once(product.output)
            ):
                return _SourceColumns(product, bias, slice(0, array(bias).size))
        return None
    product = producers.get(value)
    return _SourceColumns(product, None, slice(0, _column_count(product))) if product else None


def _split_part(value: ir.Value, node: ir.Node, producers: dict[ir.Value, Product]) -> _SourceColumns | None:
    """The columns of a product that output ``value`` of the ``Split`` ``node`` along the last axis has."""
    axis = node.attributes.get_int("axis", 0)
    if axis != -1 and (value.shape is None or axis != len(value.shape) - 1):
        return None
    (index,) = (index for index, output in enumerate(node.outputs) if output is value)
    sizes = node.inputs[1] if len(node.inputs) > 1 else None
    constant = ir.convenience.get_const_tensor(sizes) if sizes is not None else None
    product = producers.get(node.inputs[0]) if node.inputs[0] is not None else None
    if constant is None or product is None or not _used_once(product.output):
        return None
    ends = np.cumsum(constant.numpy())
    return _SourceColumns(product, None, slice(int(ends[index - 1]) if index else 0, int(ends[index])))


def _elementwise(x: ir.Value, producers: dict[ir.Value, Product]) -> _Source | None:
    """``gate * up``: the product that computes one factor absorbs the scale, whatever the other factor is."""
    node = x.producer()
    if node is None or node.op_type != "Mul":
        return None
    for value in reversed(node.inputs):
        source = _source_columns(value, producers)
        if source and source.count > 1:  # a single column is broadcast to all channels
            return np.arange(source.count), source.fold
    return None


def _grouped_attention(x: ir.Value, producers: dict[ir.Value, Product]) -> _Source | None:
    """Values of fused attention: a channel of a key-value head feeds one channel of each query head it serves."""
    node = x.producer()
    if node is None or node.op_type not in _FUSED_ATTENTION or node.outputs[0] is not x:
        return None
    source = _source_columns(node.inputs[2], producers)
    if source is None:
        return None
    heads = node.attributes.get_int("num_heads", 0)
    kv_heads = node.attributes.get_int("kv_num_heads", heads)
    head_size = source.count // kv_heads
    head, channel = np.divmod(np.arange(heads * head_size), head_size)
    return head // (heads // kv_heads) * head_size + channel, source.fold


def _attention(x: ir.Value, producers: dict[ir.Value, Product]) -> _Source | None:
    """Values of attention in separate nodes: x ← Reshape ← Transpose ← MatMul(p, Transpose ← Reshape ← values)."""

    def input_of(value: ir.Value | None, operator: str, index: int = 0) -> ir.Value | None:
        node = value.producer() if value is not None and _used_once(value) else None
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
    attended = input_of(merged, "Transpose")
    values = input_of(attended, "MatMul", 1)
    if not swaps_heads(values):
        return None
    source = _source_columns(input_of(input_of(values, "Transpose"), "Reshape"), producers)
    return (np.arange(source.count), source.fold) if source else None
