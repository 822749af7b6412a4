"""Integer products: int8 weights with one scale a column, uint8 activations with one scale a row.

Each row of the input is divided by its span, the value that becomes the largest level, and rounded to 255 levels.
``MatMulIntegerToFloat`` multiplies and applies the column scales; a final ``Mul`` applies the row's span. An input of
several products is rounded once. The zero point is a constant of each input, chosen on calibration audio: 128 where
values are as often negative as positive, less where most of the range is positive, as after GELU. Activations are
unsigned and weights signed because this pair has the fast kernels on x86 (VNNI, AMX); signed by signed measured 15
times slower.

A convolution becomes a product over its patches. Along one axis (time) each patch is a row with its own scale, so that
the result for a clip does not depend on other audio. Over two axes each batch element has one scale: activations are
rounded before patches are extracted, every position once; such convolutions read windows or chunks of a single size.
A convolution over single positions is a product over channels. ``ConvInteger`` measured 17 times slower.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from quantize.graph import MICROSOFT, Editor, replace_output
from quantize.numerics import GELU_MINIMUM, MAX_UINT8, TINY, UINT8_ZERO_POINT, Columns, low_factor
from quantize.products import Product, Weights

# Convolutions with patches of at most this many elements (a first convolution over one channel) become float products:
# integers would not make them faster, and rounding the features costs accuracy.
FLOAT_PATCH = 32
#: Elementwise activation functions that may follow a convolution.
ACTIVATIONS = frozenset({"Gelu", "Relu"})


@dataclass(frozen=True, slots=True)
class RoundedRows:
    """Rounded activations: ``(levels - zero) * step * span`` represents them.

    Attributes:
        levels: uint8, of the shape of the activations.
        span: Value that becomes the largest level, for each row, [..., 1].
        step: Scale of the levels of a row with span 1.
        zero: Zero point.
    """

    levels: ir.Value
    span: ir.Value
    step: ir.Value
    zero: ir.Value


class ActivationRounding:
    """Rounded inputs of the products of one graph; each value is rounded once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._rounded: dict[ir.Value, RoundedRows] = {}
        self._common = Editor(graph, "/w8a8")

    def constant(self, name: str, value: np.generic) -> ir.Value:
        """Return a scalar initializer that all products share."""
        return self._common.constant(name, np.array(value))

    def rows(self, x: ir.Value, zero_point: int, *, from_gelu: bool) -> RoundedRows:
        """Round ``x`` [..., K], one scale a row.

        Args:
            x: Activations, float32.
            zero_point: Level that represents 0.
            from_gelu: The values are not below GELU's minimum, so that the smallest need not be found.
        """
        if x not in self._rounded:
            edit = Editor(self._graph, f"{x.name}/w8a8")
            axes = self._common.constant("last", np.array([-1], np.int64))
            limits = [edit.node("ReduceMax", [x, axes], keepdims=1)]
            if from_gelu:
                limits.append(self.constant(f"gelu_span_{zero_point}", GELU_MINIMUM * low_factor(zero_point)))
            else:
                factor = self.constant(f"low_factor_{zero_point}", low_factor(zero_point))
                limits.append(edit.node("Mul", [edit.node("ReduceMin", [x, axes], keepdims=1), factor]))
                limits.append(self.constant("tiny", TINY))
            self._rounded[x] = self._round(edit, x, edit.node("Max", limits), zero_point)
        return self._rounded[x]

    def elements(self, x: ir.Value, *, from_gelu: bool) -> RoundedRows:
        """Round ``x`` [B, H, W, C] with one scale a batch element and the zero point 128; spans are [B, 1, 1, 1]."""
        edit = Editor(self._graph, f"{x.name}/w8a8")
        axes = self._common.constant("inner", np.array([1, 2, 3], np.int64))
        span = edit.node("ReduceMax", [x if from_gelu else edit.node("Abs", [x]), axes], keepdims=1)
        limit = self.constant("gelu_low", -GELU_MINIMUM) if from_gelu else self.constant("tiny", TINY)
        return self._round(edit, x, edit.node("Max", [span, limit]), UINT8_ZERO_POINT)

    def _round(self, edit: Editor, x: ir.Value, span: ir.Value, zero_point: int) -> RoundedRows:
        step = self.constant(f"step_{zero_point}", np.float32(1 / (MAX_UINT8 - zero_point)))
        zero = self.constant(f"zero_{zero_point}", np.uint8(zero_point))
        return RoundedRows(edit.node("QuantizeLinear", [edit.node("Div", [x, span]), step, zero]), span, step, zero)


def lower_limit(product: Product) -> np.float32 | None:
    """Return the smallest value that the inputs of ``product`` can have, or None if there is no limit."""
    return GELU_MINIMUM if _from_gelu(product) else None


def _from_gelu(product: Product) -> bool:
    source = product.x.producer()
    return source is not None and source.op_type == "Gelu"


def quantize(
    graph: ir.Graph, rounding: ActivationRounding, product: Product, columns: Columns, zero_point: int
) -> None:
    """Rewrite one product with integer arithmetic.

    Args:
        graph: The graph of the product.
        rounding: Rounded inputs, shared by all products of the graph.
        product: The product.
        columns: Its quantized weights.
        zero_point: Zero point of its inputs; 128 for convolutions over two axes.
    """
    if product.operator == "Conv":
        _convolve(graph, rounding, product, columns, zero_point)
        return
    rounded = rounding.rows(product.x, zero_point, from_gelu=_from_gelu(product))
    result = _multiply(Editor(graph, product.name), rounded, columns)
    if product.operator == "Gemm" and len(product.node.inputs) > 2 and product.node.inputs[2] is not None:
        result = Editor(graph, product.name).node("Add", [result, product.node.inputs[2]])
    replace_output(product.node, result)


def quantize_float(graph: ir.Graph, rounding: ActivationRounding, product: Product, weights: Weights) -> None:
    """Rewrite a convolution with patches of at most :data:`FLOAT_PATCH` elements as a float product over patches."""
    edit = Editor(graph, product.name)
    x = _channels_last(edit, product)
    patches = _patches(edit, product, x, rounding.constant("nothing", np.float32(0)))
    result = edit.node("MatMul", [patches, edit.constant("values", weights.matrix(product))])
    _replace_convolution(edit, product, result)


def _multiply(edit: Editor, rounded: RoundedRows, columns: Columns) -> ir.Value:
    values, scales = edit.constant("values", columns.values), edit.constant("scales", columns.scales)
    result = edit.node(
        "MatMulIntegerToFloat", [rounded.levels, values, rounded.step, scales, rounded.zero], domain=MICROSOFT
    )
    return edit.node("Mul", [result, rounded.span])


def _convolve(
    graph: ir.Graph, rounding: ActivationRounding, product: Product, columns: Columns, zero_point: int
) -> None:
    """Rewrite a convolution: transpose to channels last, extract patches, multiply once, transpose back."""
    edit = Editor(graph, product.name)
    x = _channels_last(edit, product)
    if product.shares_scale:
        rounded = rounding.elements(x, from_gelu=_from_gelu(product))
        rounded = replace(rounded, levels=_patches(edit, product, rounded.levels, rounded.zero))
    else:
        nothing = rounding.constant("nothing", np.float32(0))
        patches = x if product.pointwise else _patches(edit, product, x, nothing)
        rounded = rounding.rows(patches, zero_point, from_gelu=_from_gelu(product))
    _replace_convolution(edit, product, _multiply(edit, rounded, columns))


def _channels_last(edit: Editor, product: Product) -> ir.Value:
    axes = len(product.kernel)
    return edit.node("Transpose", [product.x], perm=(0, *range(2, axes + 2), 1))


def _replace_convolution(edit: Editor, product: Product, result: ir.Value) -> None:
    """Add the bias of a convolution to ``result`` [B, …, C] and replace its output with channels before positions."""
    node, axes = product.node, len(product.kernel)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        result = edit.node("Add", [result, node.inputs[2]])
    replace_output(node, edit.node("Transpose", [result], perm=(0, axes + 1, *range(1, axes + 1))))


def _patches(edit: Editor, product: Product, x: ir.Value, padding: ir.Value) -> ir.Value:
    """Extract the patch at each position, [B, …, C] → [B, …, kernel·C], with ``padding`` as the value of padding."""
    kernel, pads = product.kernel, product.pads

    def ints(name: str, values: Sequence[int]) -> ir.Value:
        return edit.constant(name, np.array(values, np.int64))

    before, after = zip(*pads, strict=True)
    padded = edit.node("Pad", [x, ints("pads", [0, *before, 0, 0, *after, 0]), padding])
    axes, strides = ints("axes", range(1, len(kernel) + 1)), ints("strides", product.strides)
    to_end = np.iinfo(np.int64).max
    slices = []
    for index in itertools.product(*map(range, kernel)):
        # The last start leaves room for the rest of the kernel; counted from the end, or the end itself.
        ends = [offset - size + 1 or to_end for offset, size in zip(index, kernel, strict=True)]
        name = "_".join(map(str, index))
        slices.append(
            edit.node("Slice", [padded, ints(f"start_{name}", index), ints(f"end_{name}", ends), axes, strides])
        )
    return edit.node("Concat", slices, axis=len(kernel) + 1)


def _used_once(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def cancel_transposes(graph: ir.Graph) -> None:
    """Merge transposes with only activation functions between them; pairs that cancel are removed."""
    changed = True
    while changed:
        changed = False
        for node in list(graph):
            if node.op_type != "Transpose" or node.graph is None:
                continue
            between, source = node.inputs[0], node.inputs[0].producer() if node.inputs[0] else None
            chain: list[ir.Node] = []
            while source is not None and source.op_type in ACTIVATIONS and _used_once(source.outputs[0]):
                chain.append(source)
                between = source.inputs[0]
                source = between.producer() if between is not None else None
            if source is None or source.op_type != "Transpose" or between is None or not _used_once(between):
                continue
            first, second = (list(each.attributes.get_ints("perm", [])) for each in (source, node))
            merged = [first[axis] for axis in second]
            for activation in chain:
                activation.outputs[0].shape = None  # the order of its axes changes
            end = chain[0].outputs[0] if chain else source.inputs[0]
            if chain:
                chain[-1].replace_input_with(0, source.inputs[0])
            if merged == sorted(merged) and not node.outputs[0].is_graph_output():
                ir.convenience.replace_all_uses_with(node.outputs[0], end)  # type: ignore[arg-type]
                graph.remove(node, safe=True)
            else:
                node.replace_input_with(0, end)
                node.attributes["perm"] = ir.AttrInt64s("perm", merged)
            if not source.outputs[0].uses():
                graph.remove(source, safe=True)
            changed = True
