"""The nodes of a graph that carry weights, as matrix products whatever their operator, and scales folded into them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from quantize.graph import array

Floats = npt.NDArray[np.float32]

_FLOATS = (ir.DataType.FLOAT,)


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A node with a float weight that is an initializer.

    ``MatMul`` and ``Gemm`` are ``x @ W``; ``Conv`` is one over patches; ``Gather`` looks rows up in a table.
    """

    node: ir.Node
    weight: ir.Value

    @property
    def name(self) -> str:
        return self.node.name or ""

    @property
    def operator(self) -> str:
        return self.node.op_type

    @property
    def x(self) -> ir.Value:
        """The activations that are multiplied; for a ``Gather`` the ids."""
        value = self.node.inputs[1 if self.operator == "Gather" else 0]
        if value is None:
            raise ValueError(f"{self.name!r} has no input")
        return value

    @property
    def output(self) -> ir.Value:
        return self.node.outputs[0]

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored [N, K]."""
        return self.operator == "Gather" or bool(self.node.attributes.get_int("transB", 0))

    @property
    def kernel(self) -> tuple[int, ...]:
        """Sizes of a convolution's kernel, one or two; the attribute that repeats them is optional."""
        return tuple(self.weight.const_value.shape.numpy()[2:])  # type: ignore[union-attr]

    @property
    def patch(self) -> int:
        """Weights of one output channel of a convolution: what a patch has."""
        return math.prod(self.weight.const_value.shape.numpy()[1:])  # type: ignore[union-attr]

    @property
    def strides(self) -> tuple[int, ...]:
        """Steps of a convolution's kernel."""
        return tuple(self.node.attributes.get_ints("strides", [1] * len(self.kernel)))

    @property
    def pads(self) -> tuple[tuple[int, int], ...]:
        """Zeros before and behind each of the axes that a convolution's kernel moves along."""
        pads, axes = self.node.attributes.get_ints("pads", [0] * 2 * len(self.kernel)), len(self.kernel)
        return tuple(zip(pads[:axes], pads[axes:], strict=True))

    @property
    def pointwise(self) -> bool:
        """Whether it is a convolution whose kernel sees single positions, each of them."""
        return self.operator == "Conv" and {1} == {*self.kernel, *self.strides} and not any(map(any, self.pads))

    @property
    def shares_scale(self) -> bool:
        """Whether activations in 8 bits have one scale a batch element: in convolutions over two axes alone.

        A patch of such a kernel is nine pixels, each of which is in several patches: it is rounded once, before patches
        are cut. Everything else has a scale a row, for patches along one axis too.
        """
        return self.operator == "Conv" and sum(size > 1 for size in self.kernel) > 1

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.weight.const_value.shape.numpy()) if self.weight.const_value is not None else 0


def find_products(graph: ir.Graph) -> list[Product]:
    """Every node whose weights can be quantized, in the graph's order.

    ``MatMul`` with a constant right side, ``Gemm`` without scaling, ``Conv`` along one or two axes without groups, and
    ``Gather`` along the first axis of a matrix; float32 all.

    Convolutions with groups are left out: a kernel a channel is a thousandth of a model's weights, and no product.
    """
    return [product for node in graph if (product := _product(node))]


def _product(node: ir.Node) -> Product | None:
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm", "Conv", "Gather"):
        return None
    weight = node.inputs[0 if node.op_type == "Gather" else 1]
    if weight is None or weight.const_value is None or not weight.is_initializer() or weight.dtype not in _FLOATS:
        return None
    rank = len(weight.const_value.shape)
    attributes = node.attributes
    if node.op_type == "Conv":
        padded = attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
        fits = (
            padded
            and rank in (3, 4)
            and attributes.get_int("group", 1) == 1
            and set(attributes.get_ints("dilations", [1])) == {1}
        )
    elif node.op_type == "Gemm":
        unscaled = attributes.get_float("alpha", 1.0) == attributes.get_float("beta", 1.0) == 1.0
        fits = rank == 2 and unscaled and not attributes.get_int("transA", 0)
    elif node.op_type == "Gather":
        fits = rank == 2 and attributes.get_int("axis", 0) == 0
    else:
        fits = rank == 2
    return Product(node, weight) if fits else None


class Weights:
    """The weights of one graph as matrices [K, N], with the per-channel scales that were folded into them.

    Folding only notes the scale: gigabytes of weights stay on disk until a method reads them one by one.
    """

    def __init__(self) -> None:
        self._rows: dict[str, Floats] = {}
        self._columns: dict[str, Floats] = {}

    def scale_rows(self, product: Product, scale: Floats) -> None:
        """Multiply row k of ``product``'s matrix by ``scale[k]``."""
        name = product.weight.name or ""
        self._rows[name] = self._rows.get(name, np.float32(1)) * scale

    def scale_columns(self, product: Product, scale: Floats) -> None:
        """Multiply column n of ``product``'s matrix by ``scale[n]``."""
        name = product.weight.name or ""
        self._columns[name] = self._columns.get(name, np.float32(1)) * scale

    def row_scale(self, product: Product) -> Floats | np.float32:
        """[K] that was folded into the rows of ``product``'s matrix, or 1."""
        return self._rows.get(product.weight.name or "", np.float32(1))

    def column_scale(self, product: Product) -> Floats | np.float32:
        """[N] that was folded into the columns of ``product``'s matrix, or 1."""
        return self._columns.get(product.weight.name or "", np.float32(1))

    def matrix(self, product: Product) -> Floats:
        """``W`` [K, N] of ``product`` with its scales. A convolution's rows are (place in the kernel, channel).

        A view of the stored weight where that is possible: not to be written to.
        """
        stored = array(product.weight)
        if product.operator == "Conv":
            stored = np.moveaxis(stored, (0, 1), (-1, -2)).reshape(-1, stored.shape[0])
        elif product.transposed:
            stored = stored.T
        name = product.weight.name or ""
        if (rows := self._rows.get(name)) is not None:
            stored = stored * rows[:, None]
        if (columns := self._columns.get(name)) is not None:
            stored = stored * columns
        return stored.astype(np.float32, copy=False)

    def scaled(self, products: list[Product]) -> Iterator[Product]:
        """Those of ``products`` into whose weights anything was folded."""
        for product in products:
            if product.weight.name in self._rows or product.weight.name in self._columns:
                yield product

    def write_back(self, product: Product) -> None:
        """Store the scaled weight in the graph, for a node that stays as it is."""
        scaled = self.matrix(product)
        stored = np.ascontiguousarray(scaled.T if product.transposed else scaled)
        product.weight.const_value = ir.tensor(stored, name=product.weight.name)
        self._rows.pop(product.weight.name or "", None)
        self._columns.pop(product.weight.name or "", None)
