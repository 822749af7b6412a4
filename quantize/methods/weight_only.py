"""Weight-only quantization: weights of 8 or 4 bits in blocks along the inner axis, float32 activations between nodes.

``MatMul`` and ``Gemm`` become ``MatMulNBits``, and ``Gather`` becomes ``GatherBlockQuantized``. A table that is both
looked up and multiplied (tied embeddings) is stored once for both. ``Conv`` keeps its operator: ONNX Runtime has no
convolution over blocks, so its weights are stored quantized and dequantized once when the graph is loaded; with the
arithmetic ``float32`` those of all products are.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from quantize.compensation import Compensation
from quantize.errors import RecipeError
from quantize.graph import MICROSOFT, Editor, replace_output
from quantize.numerics import TINY, Blocks, quantize_blocks
from quantize.products import Floats, Product, Weights
from quantize.recipe import WeightOnly

# The kernel rounds activations to 8 bits in blocks (MLAS "CompInt8"). Its measured error is 0.5-0.7 % of the float
# kernels' results; these are 3 times slower at 4 bits and up to 40 times at 8.
_ACCURACY_LEVEL = 4


def quantize(
    graph: ir.Graph,
    products: list[Product],
    weights: Weights,
    rule: WeightOnly,
    parts: InputParts,
    *,
    importance: Floats | None = None,
    compensation: Compensation | None = None,
) -> None:
    """Rewrite ``products``, which all read one weight, as weight-only nodes.

    Args:
        graph: The graph of the products.
        products: Nodes that share a weight, often a single one.
        weights: Weights of the graph.
        rule: Bits, blocks and arithmetic.
        parts: Divided inputs, shared by all products of the graph.
        importance: Mean square of the inputs, [K], which weights squared errors in the search for block ranges.
        compensation: Rounding that is compensated for real inputs; by default weights get the nearest level.

    Raises:
        RecipeError: The rank of a ``Gather``'s indices is not known.
    """
    blocks = quantize_blocks(
        weights.matrix(products[0]),
        rule.bits,
        rule.block,
        symmetric=rule.symmetric,
        importance=importance,
        compensation=compensation,
    )
    name = products[0].weight.name or products[0].name
    edit = Editor(graph, f"{name}/{rule.bits}bit")
    for product in products:
        if product.operator == "Conv":
            _convolve(edit, product, blocks)
        elif product.operator == "Gather":
            _look_up(edit, product, blocks)
        elif rule.arithmetic == "float32":
            _multiply_floats(edit, product, blocks)
        else:
            _multiply(edit, product, blocks, parts if rule.arithmetic == "twice_int8" else None)


def _multiply(edit: Editor, product: Product, blocks: Blocks, parts: InputParts | None) -> None:
    outer = len(blocks.values)
    constants: list[ir.Value | None] = [
        edit.constant("values", blocks.values),
        edit.constant("scales", blocks.scales.reshape(-1)),
    ]
    zeros = blocks.packed_zeros()
    if zeros is not None:
        constants.append(edit.constant("zeros", zeros.reshape(-1)))
    bias = product.node.inputs[2] if len(product.node.inputs) > 2 else None
    fused = (
        bias is not None and bias.shape is not None and list(bias.shape) == [outer]
    )  # the only shape that MatMulNBits accepts
    node_edit = Editor(edit.graph, product.name)

    def multiply(x: ir.Value, added: ir.Value | None) -> ir.Value:
        inputs = [x, *constants]
        if added is not None:
            inputs += [None] * (5 - len(inputs)) + [added]
        return node_edit.node(
            "MatMulNBits",
            inputs,
            domain=MICROSOFT,
            K=blocks.inner,
            N=outer,
            bits=blocks.bits,
            block_size=blocks.block,
            accuracy_level=_ACCURACY_LEVEL,
        )

    if parts is None:
        result = multiply(product.x, bias if fused else None)
    else:
        first, rest = parts.divide(product.x, blocks.inner, blocks.block)
        result = node_edit.node("Add", [multiply(first, bias if fused else None), multiply(rest, None)])
    if bias is not None and not fused:
        result = node_edit.node("Add", [result, bias])
    replace_output(product.node, result)


def _look_up(edit: Editor, product: Product, blocks: Blocks) -> None:
    """Look up rows [..., blocks, block], flatten them to [..., K], and cut the padding of the last block."""
    inputs = [
        edit.constant("values", blocks.values),
        product.x,
        edit.constant("row_scales", blocks.scales[..., None]),
    ]
    if blocks.zeros is not None:
        inputs.append(edit.constant("row_zeros", blocks.zeros[..., None]))
    node_edit = Editor(edit.graph, product.name)
    rows = node_edit.node(
        "GatherBlockQuantized",
        inputs,
        domain=MICROSOFT,
        bits=blocks.bits,
        block_size=blocks.block,
        gather_axis=0,
        quantize_axis=2,
    )
    padded = blocks.scales.shape[1] * blocks.block
    flat = node_edit.node(
        "Reshape", [rows, node_edit.constant("flat", np.array([0] * _rank(product.x) + [padded], np.int64))]
    )
    if padded != blocks.inner:
        bounds = {"start": 0, "end": blocks.inner, "axis": -1}
        flat = node_edit.node(
            "Slice", [flat, *(node_edit.constant(name, np.array([value])) for name, value in bounds.items())]
        )
    replace_output(product.node, flat)


def _rank(ids: ir.Value) -> int:
    if ids.shape is None:
        raise RecipeError(f"the rank of {ids.name!r} is unknown: rows of a quantized table cannot be looked up by it")
    return len(ids.shape)


def _convolve(edit: Editor, product: Product, blocks: Blocks) -> None:
    """Give a ``Conv`` weights that are dequantized when the graph is loaded."""
    axes, channels = len(product.kernel), blocks.inner // math.prod(product.kernel)
    kernel_shape = np.array([len(blocks.values), *product.kernel, channels], np.int64)
    kernel = edit.node("Reshape", [_float_rows(edit, blocks), edit.constant("kernel", kernel_shape)])
    product.node.replace_input_with(1, edit.node("Transpose", [kernel], perm=[0, axes + 1, *range(1, axes + 1)]))


def _multiply_floats(edit: Editor, product: Product, blocks: Blocks) -> None:
    """Give a ``MatMul`` or ``Gemm`` weights that are dequantized when the graph is loaded."""
    rows = _float_rows(edit, blocks)
    product.node.replace_input_with(1, rows if product.transposed else edit.node("Transpose", [rows], perm=[1, 0]))


def _float_rows(edit: Editor, blocks: Blocks) -> ir.Value:
    """Compute the weights [N, K] as ``(levels - zeros) · scales`` from constants, which are folded at load."""
    floats = edit.node("Cast", [edit.constant("values", blocks.levels)], to=ir.DataType.FLOAT)
    zero_point = np.float32(2 ** (blocks.bits - 1))
    zeros = np.full_like(blocks.scales, zero_point) if blocks.zeros is None else blocks.zeros.astype(np.float32)
    shifted = edit.node("Sub", [floats, edit.constant("zeros", zeros[..., None])])
    scaled = edit.node("Mul", [shifted, edit.constant("scales", blocks.scales[..., None])])
    outer, padded = len(blocks.values), blocks.scales.shape[1] * blocks.block
    rows = edit.node("Reshape", [scaled, edit.constant("rows", np.array([outer, padded], np.int64))])
    if padded != blocks.inner:
        start, end, axis = (edit.constant(f"int_{n}", np.array([n], np.int64)) for n in (0, blocks.inner, 1))
        rows = edit.node("Slice", [rows, start, end, axis])
    return rows


class InputParts:
    """Inputs of the products of one graph as sums of two parts; each input is divided once.

    The kernel of ``MatMulNBits`` rounds its input to 8 bits in blocks. The first part is the input rounded in this way,
    which the kernel reproduces, the second is the rest, whose rounding loses a hundredth as much.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._parts: dict[tuple[ir.Value, int], tuple[ir.Value, ir.Value]] = {}

    def divide(self, x: ir.Value, inner: int, block: int) -> tuple[ir.Value, ir.Value]:
        """Return the two parts of ``x`` [..., inner] for blocks of ``block`` channels."""
        if (x, block) not in self._parts:
            edit = Editor(self._graph, f"{x.name}/parts_{block}")
            padding = -inner % block

            def ints(name: str, *values: int) -> ir.Value:
                return edit.constant(name, np.array(values, np.int64))

            rows = x
            if padding:
                zero = edit.constant("padding", np.array(0, np.float32))
                rows = edit.node(
                    "Pad", [edit.node("Reshape", [x, ints("flat", -1, inner)]), ints("pads", 0, 0, 0, padding), zero]
                )
            blocks = edit.node("Reshape", [rows, ints("blocks", -1, (inner + padding) // block, block)])
            peak = edit.node("ReduceMax", [edit.node("Abs", [blocks]), ints("last", -1)], keepdims=1)
            tiny, steps = edit.constant("tiny", np.array(TINY)), edit.constant("steps", np.array(127, np.float32))
            step = edit.node("Div", [edit.node("Max", [peak, tiny]), steps])
            first = edit.node("Mul", [edit.node("Round", [edit.node("Div", [blocks, step])]), step])
            if padding:
                first = edit.node("Reshape", [first, ints("padded", -1, inner + padding)])
                first = edit.node("Slice", [first, ints("start", 0), ints("end", inner), ints("axis", 1)])
            first = edit.node("Reshape", [first, edit.node("Shape", [x])])
            self._parts[x, block] = first, edit.node("Sub", [x, first])
        return self._parts[x, block]
