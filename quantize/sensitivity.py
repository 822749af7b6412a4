"""Measure how much each product's quantization error alone changes the outputs of the float graph.

The graph runs once unchanged, then once for every weight, with the error of quantizing it added to the outputs of its
products and everything else unchanged. The relative change of the graph's outputs is the weight's sensitivity. It is
measured, not derived from the layer's position or kind.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantize.instrumented_graph import InstrumentedGraph
from quantize.numerics import quantize_blocks, relative_error
from quantize.products import Product, Weights
from quantize.recipe import WeightOnly
from runtime.engines.base import Probe

Floats = npt.NDArray[np.float32]

_COLUMNS_AT_ONCE = 16_384


def measure_sensitivities(
    path: Path,
    probe: Probe,
    products: list[Product],
    weights: Weights,
    rule: WeightOnly,
    on_progress: Callable[[], object],
) -> dict[str, float]:
    """Measure the relative error of the graph's outputs when a single weight is quantized by ``rule``.

    Args:
        path: The float graph.
        probe: Inputs and outputs of the graph.
        products: Products of the graph that ``rule`` applies to.
        weights: Their weights. Folded scales are undone in the added differences, since the graph in ``path`` does not
            have them.
        rule: Bits and block of the quantization.
        on_progress: Called after every weight.

    Returns:
        The largest relative error over the outputs of ``probe``, by weight name.
    """
    outputs = sorted({product.output.name or "" for product in products})
    inputs = [product.x.name or "" for product in products if product.operator != "Gather"]
    graph = InstrumentedGraph(path, inputs, outputs)
    exact = graph.run(probe, [*dict.fromkeys(inputs), *probe.outputs]) | probe.feeds
    by_weight: dict[str, list[Product]] = {}
    for product in products:
        by_weight.setdefault(product.weight.name or "", []).append(product)
    sensitivities = {}
    for name, readers in by_weight.items():
        matrix = weights.matrix(readers[0])
        multiplying = [product for product in readers if product.operator not in ("Gather", "Conv")]
        row_scale, column_scale = weights.row_scale(readers[0]), weights.column_scale(readers[0])
        importance = None
        if multiplying:
            importance = np.mean(
                [np.square(_rows(exact[product.x.name or ""]) / row_scale).mean(0) for product in multiplying], 0
            )
        push = {}
        for product in readers:
            x = exact[product.x.name or ""]
            if product.operator == "Gather":
                ids, index = np.unique(x, return_inverse=True)
                difference = _weight_error(matrix[:, ids], rule, importance).T[index.reshape(x.shape)]
            else:
                scaled_x = (x / row_scale).astype(np.float32)
                difference = _output_error(scaled_x, matrix, rule, importance) / column_scale
            push[product.output.name or ""] = np.ascontiguousarray(difference, np.float32)
        changed = graph.run(probe, probe.outputs, push)
        sensitivities[name] = max(relative_error(changed[output], exact[output]) for output in probe.outputs)
        on_progress()
    return sensitivities


def _weight_error(matrix: Floats, rule: WeightOnly, importance: Floats | None) -> Floats:
    """Difference between the quantized and the exact weights."""
    blocks = quantize_blocks(
        matrix, rule.bits, rule.block, symmetric=rule.symmetric, importance=importance, search=False
    )
    return blocks.dequantized() - matrix


def _output_error(x: Floats, matrix: Floats, rule: WeightOnly, importance: Floats | None) -> Floats:
    """``x`` times the weight error, in groups of columns: the error of an lm_head needs as much memory as itself."""
    parts = [
        x @ _weight_error(matrix[:, start : start + _COLUMNS_AT_ONCE], rule, importance)
        for start in range(0, matrix.shape[1], _COLUMNS_AT_ONCE)
    ]
    return np.concatenate(parts, -1)


def _rows(x: Floats) -> Floats:
    return x.reshape(-1, x.shape[-1])


def most_sensitive(sensitivities: dict[str, float], sizes: dict[str, int], share: float) -> set[str]:
    """Select weights in descending order of squared error per weight, within ``share`` of the total size.

    Independent errors add in squares, so a weight's squared error over its size is the gain of each extra bit.

    Args:
        sensitivities: Relative error of the outputs by weight name.
        sizes: Number of elements by weight name.
        share: Largest share of the elements of all weights in ``sensitivities``, from 0 to 1.

    Returns:
        Names of the selected weights.
    """
    remaining = share * sum(sizes[name] for name in sensitivities)
    selected: set[str] = set()
    for name in sorted(sensitivities, key=lambda name: sensitivities[name] ** 2 / sizes[name], reverse=True):
        if sizes[name] <= remaining:
            selected.add(name)
            remaining -= sizes[name]
    return selected
