"""Weights of 8 or 4 bits in blocks along the inner axis; activations are floats between nodes.

``MatMul`` and ``Gemm`` become ``MatMulNBits``, a ``Gather`` becomes ``GatherBlockQuantized``; a table that is both
looked up and multiplied with (tied embeddings) is stored once for both. A ``Conv`` keeps its operator: ONNX Runtime has
no convolution over blocks, so its weights are stored small and become floats once, when the graph is loaded.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from quantize.errors import RecipeError
from quantize.graph import MICROSOFT, Editor, replace_output
from quantize.numerics import Blocks, quantize_blocks
from quantize.products import Floats, Product, Weights

# Activations are rounded to 8 bits a block inside the kernel (MLAS "CompInt8"): measured 0.5-0.7 % error beside the
# float kernels, which are 3 times slower at 4 bits and up to 40 times at 8.
_ACCURACY_LEVEL = 4


def quantize(
    graph: ir.Graph,
    products: list[Product],
    weights: Weights,
    bits: int,
    block: int,
    *,
    symmetric: bool,
    importance: Floats | None = None,
) -> None:
    """Rewrite ``products``, which all read one weight, as weight-only nodes.

    Args:
        graph: their graph.
        products: nodes that share a weight (mostly one).
        weights: the graph's weights.
        bits: 4 or 8.
        block: weights a scale.
        symmetric: one zero point for all blocks.
        importance: [K] mean square of the inputs, see :func:`quantize.numerics.quantize_blocks`.

    Raises:
        RecipeError: ids whose rank is not known.
    """
    blocks = quantize_blocks(weights.matrix(products[0]), bits, block, symmetric=symmetric, importance=importance)
    name = products[0].weight.name or products[0].name
    edit = Editor(graph, f"{name}/{bits}bit")
    for product in products:
        if product.operator == "Conv":
            _convolve(edit, product, blocks)
        elif product.operator == "Gather":
            _look_up(edit, product, blocks)
        else:
            _multiply(edit, product, blocks)


def _multiply(edit: Editor, product: Product, blocks: Blocks) -> None:
    outer = len(blocks.values)
    inputs: list[ir.Value | None] = [
        product.x,
        edit.constant("values", blocks.values),
        edit.constant("scales", blocks.scales.reshape(-1)),
    ]
    zeros = blocks.packed_zeros()
    if zeros is not None:
        inputs.append(edit.constant("zeros", zeros.reshape(-1)))
    bias = product.node.inputs[2] if len(product.node.inputs) > 2 else None
    fused = bias is not None and bias.shape is not None and list(bias.shape) == [outer]  # the only form the node takes
    if fused:
        inputs += [None] * (5 - len(inputs)) + [bias]
    here = Editor(edit.graph, product.name)
    result = here.node(
        "MatMulNBits",
        inputs,
        domain=MICROSOFT,
        K=blocks.inner,
        N=outer,
        bits=blocks.bits,
        block_size=blocks.block,
        accuracy_level=_ACCURACY_LEVEL,
    )
    if bias is not None and not fused:
        result = here.node("Add", [result, bias])
    replace_output(product.node, result)


def _look_up(edit: Editor, product: Product, blocks: Blocks) -> None:
    """Rows of the same blocks, which come as [..., blocks, block] and are laid flat; the last one's padding is cut."""
    inputs = [
        edit.constant("values", blocks.values),
        product.x,
        edit.constant("row_scales", blocks.scales[..., None]),
    ]
    if blocks.zeros is not None:
        inputs.append(edit.constant("row_zeros", blocks.zeros[..., None]))
    here = Editor(edit.graph, product.name)
    rows = here.node(
        "GatherBlockQuantized",
        inputs,
        domain=MICROSOFT,
        bits=blocks.bits,
        block_size=blocks.block,
        gather_axis=0,
        quantize_axis=2,
    )
    padded = blocks.scales.shape[1] * blocks.block
    flat = here.node("Reshape", [rows, here.constant("flat", np.array([0] * _rank(product.x) + [padded], np.int64))])
    if padded != blocks.inner:
        bounds = {"start": 0, "end": blocks.inner, "axis": -1}
        flat = here.node("Slice", [flat, *(here.constant(name, np.array([at])) for name, at in bounds.items())])
    replace_output(product.node, flat)


def _rank(ids: ir.Value) -> int:
    if ids.shape is None:
        raise RecipeError(f"the rank of {ids.name!r} is not known")
    return len(ids.shape)


def _convolve(edit: Editor, product: Product, blocks: Blocks) -> None:
    """``Conv`` over ``(values - zero) · scale``: constants alone, which ONNX Runtime folds at load."""
    floats = edit.node("Cast", [edit.constant("values", blocks.levels)], to=ir.DataType.FLOAT)
    middle = np.float32(2 ** (blocks.bits - 1))
    zeros = np.full_like(blocks.scales, middle) if blocks.zeros is None else blocks.zeros.astype(np.float32)
    shifted = edit.node("Sub", [floats, edit.constant("zeros", zeros[..., None])])
    scaled = edit.node("Mul", [shifted, edit.constant("scales", blocks.scales[..., None])])
    outer, padded = len(blocks.values), blocks.scales.shape[1] * blocks.block
    rows = edit.node("Reshape", [scaled, edit.constant("rows", np.array([outer, padded], np.int64))])
    if padded != blocks.inner:
        start, end, axis = (edit.constant(f"int_{n}", np.array([n], np.int64)) for n in (0, blocks.inner, 1))
        rows = edit.node("Slice", [rows, start, end, axis])
    axes, channels = len(product.kernel), blocks.inner // math.prod(product.kernel)
    kernel_shape = np.array([outer, *product.kernel, channels], np.int64)
    kernel = edit.node("Reshape", [rows, edit.constant("kernel", kernel_shape)])
    product.node.replace_input_with(1, edit.node("Transpose", [kernel], perm=[0, axes + 1, *range(1, axes + 1)]))
