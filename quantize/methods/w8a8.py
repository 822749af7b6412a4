"""int8 weights with a scale a column, uint8 activations with a scale a row, out of plain integer products.

Each row of the input is divided by its largest magnitude and rounded to steps of 1/127 around the zero point 128;
``MatMulIntegerToFloat`` multiplies and scales the columns; the row's magnitude comes back by one product at the end.
An input that several products read is rounded once. The activations are unsigned and the weights signed because that
pair has the fast kernels on x86 (VNNI, AMX); signed by signed measured 15 times slower.

A convolution becomes the product of its patches. Along one axis (time) each patch is a row with a scale of its own, so
that a clip's result depends on nothing around it. Over two axes batch elements have one scale: rounding then comes
before the patches are cut and every pixel is rounded once; such convolutions are of windows or chunks of one size. One
over single positions is a product over channels. ``ConvInteger`` measured 17 times slower.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from quantize.graph import MICROSOFT, Editor, replace_output
from quantize.numerics import ACTIVATION_STEPS, TINY, UINT8_ZERO, quantize_columns
from quantize.products import Product, Weights

# A kernel over this many inputs or fewer (a first convolution over one channel) stays a float product: there is
# nothing to gain, and rounding the features themselves costs accuracy.
FLOAT_PATCH = 32
#: Activation functions of single values, which may stand between convolutions.
ACTIVATIONS = frozenset({"Gelu", "Relu"})
# GELU is never below -0.17, so its largest magnitude is its largest value, or this.
_GELU_LOW = 0.17


class ActivationRounding:
    """Rounded inputs of one graph: each value once, however many products read it."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        self._common = Editor(graph, "/w8a8")

    @property
    def step(self) -> ir.Value:
        return self._common.constant("step", np.array(1 / ACTIVATION_STEPS, np.float32))

    @property
    def tiny(self) -> ir.Value:
        return self._common.constant("tiny", np.array(TINY, np.float32))

    @property
    def gelu_low(self) -> ir.Value:
        return self._common.constant("gelu_low", np.array(_GELU_LOW, np.float32))

    @property
    def nothing(self) -> ir.Value:
        return self._common.constant("nothing", np.array(0, np.float32))

    @property
    def zero(self) -> ir.Value:
        return self._common.constant("zero", np.array(UINT8_ZERO, np.uint8))

    def rows(self, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """``x`` [..., K] → uint8 of the same shape, and the largest magnitude of each row [..., 1]."""
        if x not in self._made:
            edit = Editor(self._graph, f"{x.name}/w8a8")
            axes = self._common.constant("last", np.array([-1], np.int64))
            magnitude = edit.node("ReduceMax", [edit.node("Abs", [x]), axes], keepdims=1)
            self._made[x] = self._round(edit, x, edit.node("Max", [magnitude, self.tiny]))
        return self._made[x]

    def elements(self, x: ir.Value, *, from_gelu: bool) -> tuple[ir.Value, ir.Value]:
        """``x`` [B, H, W, C] → uint8 of the same shape, and each batch element's largest magnitude [B, 1, 1, 1]."""
        edit = Editor(self._graph, f"{x.name}/w8a8")
        axes = self._common.constant("inner", np.array([1, 2, 3], np.int64))
        magnitude = edit.node("ReduceMax", [x if from_gelu else edit.node("Abs", [x]), axes], keepdims=1)
        return self._round(edit, x, edit.node("Max", [magnitude, self.gelu_low if from_gelu else self.tiny]))

    def _round(self, edit: Editor, x: ir.Value, magnitude: ir.Value) -> tuple[ir.Value, ir.Value]:
        return edit.node("QuantizeLinear", [edit.node("Div", [x, magnitude]), self.step, self.zero]), magnitude


def quantize(
    graph: ir.Graph, rounding: ActivationRounding, product: Product, weights: Weights, *, reduce_range: bool
) -> None:
    """Rewrite one product. ``rounding`` is shared by all products of the graph."""
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
    exact = edit.node("MatMulIntegerToFloat", [rounded, values, rounding.step, scales, rounding.zero], domain=MICROSOFT)
    return edit.node("Mul", [exact, magnitude])


def _convolve(
    graph: ir.Graph, rounding: ActivationRounding, product: Product, weights: Weights, *, reduce_range: bool
) -> None:
    """Channels last, patches side by side, one product; channels first again for whoever reads it."""
    node, axes = product.node, len(product.kernel)
    edit = Editor(graph, product.name)
    source = product.x.producer()
    x = edit.node("Transpose", [product.x], perm=(0, *range(2, axes + 2), 1))
    matrix = weights.matrix(product)
    if len(matrix) <= FLOAT_PATCH:
        patches = _patches(edit, product, x, rounding.nothing)
        result = edit.node("MatMul", [patches, edit.constant("values", matrix)])
    else:
        if product.shares_scale:
            from_gelu = source is not None and source.op_type == "Gelu"
            rounded, magnitude = rounding.elements(x, from_gelu=from_gelu)
            rounded = _patches(edit, product, rounded, rounding.zero)
        else:
            patches = x if product.pointwise else _patches(edit, product, x, rounding.nothing)
            rounded, magnitude = rounding.rows(patches)
        result = _multiply(edit, rounding, rounded, magnitude, product, weights, reduce_range=reduce_range)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        result = edit.node("Add", [result, node.inputs[2]])
    replace_output(node, edit.node("Transpose", [result], perm=(0, axes + 1, *range(1, axes + 1))))


def _patches(edit: Editor, product: Product, x: ir.Value, nothing: ir.Value) -> ir.Value:
    """What lies under the kernel at each position: [B, …, C] → [B, …, kernel·C], ``nothing`` in the padding."""
    kernel, pads = product.kernel, product.pads

    def ints(name: str, values: Sequence[int]) -> ir.Value:
        return edit.constant(name, np.array(values, np.int64))

    before, behind = zip(*pads, strict=True)
    padded = edit.node("Pad", [x, ints("pads", [0, *before, 0, 0, *behind, 0]), nothing])
    axes, strides = ints("axes", range(1, len(kernel) + 1)), ints("strides", product.strides)
    far = np.iinfo(np.int64).max
    under = []
    for index in itertools.product(*map(range, kernel)):
        # Up to where the kernel's last places still lie inside: from the end, or the end itself.
        ends = [at - size + 1 or far for at, size in zip(index, kernel, strict=True)]
        name = "_".join(map(str, index))
        under.append(
            edit.node("Slice", [padded, ints(f"start_{name}", index), ints(f"end_{name}", ends), axes, strides])
        )
    return edit.node("Concat", under, axis=len(kernel) + 1)


def _only_read_once(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def cancel_transposes(graph: ir.Graph) -> None:
    """Remove pairs of transposes that undo each other, with only activations between them, and join those in a row."""
    changed = True
    while changed:
        changed = False
        for node in list(graph):
            if node.op_type != "Transpose" or node.graph is None:
                continue
            between, source = node.inputs[0], node.inputs[0].producer() if node.inputs[0] else None
            chain: list[ir.Node] = []
            while source is not None and source.op_type in ACTIVATIONS and _only_read_once(source.outputs[0]):
                chain.append(source)
                between = source.inputs[0]
                source = between.producer() if between is not None else None
            if source is None or source.op_type != "Transpose" or between is None or not _only_read_once(between):
                continue
            first, second = (list(n.attributes.get_ints("perm", [])) for n in (source, node))
            joined = [first[axis] for axis in second]
            for moved in chain:
                moved.outputs[0].shape = None  # its axes are in another order now
            end = chain[0].outputs[0] if chain else source.inputs[0]
            if chain:
                chain[-1].replace_input_with(0, source.inputs[0])
            if joined == sorted(joined) and not node.outputs[0].is_graph_output():
                ir.convenience.replace_all_uses_with(node.outputs[0], end)  # type: ignore[arg-type]
                graph.remove(node, safe=True)
            else:
                node.replace_input_with(0, end)
                node.attributes["perm"] = ir.AttrInt64s("perm", joined)
            if not source.outputs[0].uses():
                graph.remove(source, safe=True)
            changed = True
