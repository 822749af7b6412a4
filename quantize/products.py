"""View the weighted nodes of a graph as matrix products, and fold per-channel scales into their weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from quantize.graph import array

Floats = npt.NDArray[np.float32]

_WEIGHT_TYPES = (ir.DataType.FLOAT,)


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A node that multiplies its input with a float32 initializer.

    ``MatMul`` and ``Gemm`` compute ``x @ W``; ``Conv`` multiplies patches of its input; ``Gather`` looks up rows.
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
        """The activations that are multiplied; for a ``Gather``, the row indices."""
        value = self.node.inputs[1 if self.operator == "Gather" else 0]
        if value is None:
            raise ValueError(f"{self.name!r} has no data input")
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
        """Kernel sizes of a convolution, one or two, from its weight: the ``kernel_shape`` attribute is optional."""
        return tuple(self.weight.const_value.shape.numpy()[2:])  # type: ignore[union-attr]

    @property
    def patch(self) -> int:
        """Elements in a patch of a convolution: the weights of one output channel."""
        return math.prod(self.weight.const_value.shape.numpy()[1:])  # type: ignore[union-attr]

    @property
    def input_channels(self) -> int:
        """Rows of the weight matrix [K, N], K."""
        if self.operator == "Conv":
            return self.patch
        shape = self.weight.const_value.shape.numpy()  # type: ignore[union-attr]
        return int(shape[1 if self.transposed else 0])

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of a convolution, one for each kernel axis."""
        return tuple(self.node.attributes.get_ints("strides", [1] * len(self.kernel)))

    @property
    def pads(self) -> tuple[tuple[int, int], ...]:
        """Padding of a convolution as (begin, end) for each kernel axis."""
        pads, axes = self.node.attributes.get_ints("pads", [0] * 2 * len(self.kernel)), len(self.kernel)
        return tuple(zip(pads[:axes], pads[axes:], strict=True))

    @property
    def pointwise(self) -> bool:
        """Whether this is a convolution with kernel and stride 1 and without padding."""
        return self.operator == "Conv" and {1} == {*self.kernel, *self.strides} and not any(map(any, self.pads))

    @property
    def shares_scale(self) -> bool:
        """Whether 8-bit activations have one scale for each batch element, as in convolutions over two axes.

        A patch of a 3×3 kernel has nine positions, each of which is in several patches: activations are rounded once,
        before patches are extracted. All other products have one scale a row, convolutions along one axis included.
        """
        return self.operator == "Conv" and sum(size > 1 for size in self.kernel) > 1

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.weight.const_value.shape.numpy()) if self.weight.const_value is not None else 0


def find_products(graph: ir.Graph) -> list[Product]:
    """Find every node whose weights can be quantized, in graph order.

    Products are ``MatMul`` with a constant right side, ``Gemm`` with alpha = beta = 1 and without transA, ``Conv`` over
    one or two axes without groups, dilation or automatic padding, and ``Gather`` along the first axis of a matrix, all
    with float32 weights.

    Convolutions with groups are excluded: depthwise kernels have a thousandth of a model's weights and are not matrix
    products.
    """
    return [product for node in graph if (product := _product(node))]


def _product(node: ir.Node) -> Product | None:
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm", "Conv", "Gather"):
        return None
    weight = node.inputs[0 if node.op_type == "Gather" else 1]
    if weight is None or weight.const_value is None or not weight.is_initializer() or weight.dtype not in _WEIGHT_TYPES:
        return None
    rank = len(weight.const_value.shape)
    attributes = node.attributes
    if node.op_type == "Conv":
        explicit_pads = attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
        supported = (
            explicit_pads
            and rank in (3, 4)
            and attributes.get_int("group", 1) == 1
            and set(attributes.get_ints("dilations", [1])) == {1}
        )
    elif node.op_type == "Gemm":
        unscaled = attributes.get_float("alpha", 1.0) == attributes.get_float("beta", 1.0) == 1.0
        supported = rank == 2 and unscaled and not attributes.get_int("transA", 0)
    elif node.op_type == "Gather":
        supported = rank == 2 and attributes.get_int("axis", 0) == 0
    else:
        supported = rank == 2
    return Product(node, weight) if supported else None


class Weights:
    """The weights of one graph as matrices [K, N], multiplied by the per-channel scales folded into them.

    Folding only records the scale, so that gigabytes of weights stay on disk until a method reads them one by one.
    """

    def __init__(self) -> None:
        self._row_scales: dict[str, Floats] = {}
        self._column_scales: dict[str, Floats] = {}

    def scale_rows(self, product: Product, scale: Floats) -> None:
        """Multiply row k of ``product``'s matrix by ``scale[k]``."""
        name = product.weight.name or ""
        self._row_scales[name] = self._row_scales.get(name, np.float32(1)) * scale

    def scale_columns(self, product: Product, scale: Floats) -> None:
        """Multiply column n of ``product``'s matrix by ``scale[n]``."""
        name = product.weight.name or ""
        self._column_scales[name] = self._column_scales.get(name, np.float32(1)) * scale

    def row_scale(self, product: Product) -> Floats | np.float32:
        """Return the scale [K] folded into the rows of ``product``'s matrix, or 1."""
        return self._row_scales.get(product.weight.name or "", np.float32(1))

    def column_scale(self, product: Product) -> Floats | np.float32:
        """Return the scale [N] folded into the columns of ``product``'s matrix, or 1."""
        return self._column_scales.get(product.weight.name or "", np.float32(1))

    def matrix(self, product: Product) -> Floats:
        """Return the float32 matrix [K, N] of ``product``, with its scales applied.

        The rows of a convolution are ordered by (kernel position, channel). The result may be a view of the stored
        weight and must not be modified.
        """
        matrix = array(product.weight)
        if product.operator == "Conv":
            matrix = np.moveaxis(matrix, (0, 1), (-1, -2)).reshape(-1, matrix.shape[0])
        elif product.transposed:
            matrix = matrix.T
        name = product.weight.name or ""
        if (row_scale := self._row_scales.get(name)) is not None:
            matrix = matrix * row_scale[:, None]
        if (column_scale := self._column_scales.get(name)) is not None:
            matrix = matrix * column_scale
        return matrix.astype(np.float32, copy=False)

    def scaled(self, products: list[Product]) -> Iterator[Product]:
        """Yield those of ``products`` into whose weights a scale was folded."""
        for product in products:
            if product.weight.name in self._row_scales or product.weight.name in self._column_scales:
                yield product

    def write_back(self, product: Product) -> None:
        """Store the scaled weight in the graph and clear its scales. For ``MatMul``, ``Gemm`` and ``Gather`` only."""
        scaled = self.matrix(product)
        stored = np.ascontiguousarray(scaled.T if product.transposed else scaled)
        product.weight.const_value = ir.tensor(stored, name=product.weight.name)
        self._row_scales.pop(product.weight.name or "", None)
        self._column_scales.pop(product.weight.name or "", None)
