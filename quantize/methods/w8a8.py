"""Integer products: int8 weights with one scale a column, uint8 activations with one scale a row.

Each row of the input is divided by its largest magnitude and rounded to steps of 1/127 around the zero point 128.
``MatMulIntegerToFloat`` multiplies and applies the column scales; a final ``Mul`` applies the row's magnitude. An input
of several products is rounded once. Activations are unsigned and weights signed because this pair has the fast kernels
on x86 (VNNI, AMX); signed by signed measured 15 times slower.

A convolution becomes a product over its patches. Along one axis (time) each patch is a row with its own scale, so that
the result for a clip does not depend on other audio. Over two axes each batch element has one scale: activations are
rounded before patches are extracted, every position once; such convolutions read windows or chunks of a single size.
A convolution over single positions is a product over channels. ``ConvInteger`` measured 17 times slower.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from quantize.graph import MICROSOFT, Editor, replace_output
from quantize.numerics import ACTIVATION_STEPS, TINY, UINT8_ZERO_POINT, quantize_columns
from quantize.products import Product, Weights

# Convolutions with patches of at most this many elements (a first convolution over one channel) become float products:
# integers would not make them faster, and rounding the features costs accuracy.
FLOAT_PATCH = 32
#: Elementwise activation functions that may follow a convolution.
ACTIVATIONS = frozenset({"Gelu", "Relu"})
# Lower limit for the magnitude of GELU outputs: they are never below -0.17, so their largest value or this bounds them.
_GELU_MIN_MAGNITUDE = 0.17


class ActivationRounding:
    """Rounded inputs of the products of one graph; each value is rounded once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._rounded: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        self._common = Editor(graph, "/w8a8")

    @property
    def step(self) -> ir.Value:
        """Scale of the rounded activations, 1/127."""
        return self._common.constant("step", np.array(1 / ACTIVATION_STEPS, np.float32))

    @property
    def tiny(self) -> ir.Value:
        """Lower limit of magnitudes."""
        return self._common.constant("tiny", np.array(TINY, np.float32))

    @property
    def gelu_min_magnitude(self) -> ir.Value:
        """Lower limit of magnitudes of GELU outputs."""
        return self._common.constant("gelu_low", np.array(_GELU_MIN_MAGNITUDE, np.float32))

    @property
    def float_zero(self) -> ir.Value:
        """Padding of float activations."""
        return self._common.constant("nothing", np.array(0, np.float32))

    @property
    def zero_point(self) -> ir.Value:
        """Zero point and padding of rounded activations, 128."""
        return self._common.constant("zero", np.array(UINT8_ZERO_POINT, np.uint8))

    def rows(self, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Round ``x`` [..., K] to uint8 of the same shape; also returns the largest magnitude of each row, [..., 1]."""
        if x not in self._rounded:
            edit = Editor(self._graph, f"{x.name}/w8a8")
            axes = self._common.constant("last", np.array([-1], np.int64))
            magnitude = edit.node("ReduceMax", [edit.node("Abs", [x]), axes], keepdims=1)
            self._rounded[x] = self._round(edit, x, edit.node("Max", [magnitude, self.tiny]))
        return self._rounded[x]

    def elements(self, x: ir.Value, *, from_gelu: bool) -> tuple[ir.Value, ir.Value]:
        """Round ``x`` [B, H, W, C] to uint8; also returns the largest magnitude of each batch element, [B, 1, 1, 1]."""
        edit = Editor(self._graph, f"{x.name}/w8a8")
        axes = self._common.constant("inner", np.array([1, 2, 3], np.int64))
        magnitude = edit.node("ReduceMax", [x if from_gelu else edit.node("Abs", [x]), axes], keepdims=1)
        return self._round(edit, x, edit.node("Max", [magnitude, self.gelu_min_magnitude if from_gelu else self.tiny]))

    def _round(self, edit: Editor, x: ir.Value, magnitude: ir.Value) -> tuple[ir.Value, ir.Value]:
        return edit.node("QuantizeLinear", [edit.node("Div", [x, magnitude]), self.step, self.zero_point]), magnitude


def quantize(
    graph: ir.Graph, rounding: ActivationRounding, product: Product, weights: Weights, *, reduce_range: bool
) -> None:
    """Rewrite one product with integer arithmetic.

    Args:
        graph: The graph of the product.
        rounding: Rounded inputs, shared by all products of the graph.
        product: The product.
        weights: Weights of the graph.
        reduce_range: Use 7-bit weights, for x86 without VNNI.
    """
    if product.operator == "Conv":
        _convolve(graph, rounding, product, weights, reduce_range=reduce_range)
        return
    rounded, magnitude = rounding.rows(product.x)
    edit = Editor(graph, product.name)
    result = _multiply(edit, rounding, rounded, magnitude, product, weights, reduce_range=reduce_range)
    if product.operator == "Gemm" and len(product.node.inputs) > 2 and product.node.inputs[2] is not None:
        result = edit.node("Add", [result, product.node.inputs[2]])
    replace_output(product.node, result)


def _multiply(
    edit: Editor,
    rounding: ActivationRounding,
    rounded: ir.Value,
    magnitude: ir.Value,
    product: Product,
    weights: Weights,
    *,
    reduce_range: bool,
) -> ir.Value:
    columns = quantize_columns(weights.matrix(product), reduce_range=reduce_range)
    values, scales = edit.constant("values", columns.values), edit.constant("scales", columns.scales)
    result = edit.node(
        "MatMulIntegerToFloat", [rounded, values, rounding.step, scales, rounding.zero_point], domain=MICROSOFT
    )
    return edit.node("Mul", [result, magnitude])


def _convolve(
    graph: ir.Graph, rounding: ActivationRounding, product: Product, weights: Weights, *, reduce_range: bool
) -> None:
    """Rewrite a convolution: transpose to channels last, extract patches, multiply once, transpose back."""
    node, axes = product.node, len(product.kernel)
    edit = Editor(graph, product.name)
    source = product.x.producer()
    x = edit.node("Transpose", [product.x], perm=(0, *range(2, axes + 2), 1))
    matrix = weights.matrix(product)
    if len(matrix) <= FLOAT_PATCH:
        patches = _patches(edit, product, x, rounding.float_zero)
        result = edit.node("MatMul", [patches, edit.constant("values", matrix)])
    else:
        if product.shares_scale:
            from_gelu = source is not None and source.op_type == "Gelu"
            rounded, magnitude = rounding.elements(x, from_gelu=from_gelu)
            rounded = _patches(edit, product, rounded, rounding.zero_point)
        else:
            patches = x if product.pointwise else _patches(edit, product, x, rounding.float_zero)
            rounded, magnitude = rounding.rows(patches)
        result = _multiply(edit, rounding, rounded, magnitude, product, weights, reduce_range=reduce_range)
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
