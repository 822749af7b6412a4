"""Which products hurt most in few bits: each one's error pushed alone through the whole float graph.

The graph runs once as it is; then once for every product, with the difference that its quantized weights would make
added to its output, and everything after it as it is. How far the graph's outputs move is the product's sensitivity. It
is measured, not guessed from the layer's place or kind.
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


def sensitivities(
    path: Path,
    probe: Probe,
    products: list[Product],
    weights: Weights,
    rule: WeightOnly,
    progress: Callable[[], object],
) -> dict[str, float]:
    """Relative error of the graph's outputs when the weight of that name alone has the rule's bits.

    Args:
        path: the float graph.
        probe: what it is run on.
        products: its products under ``rule``.
        weights: their weights; what was folded into them is undone in what is added, for ``path`` does not have it.
        rule: bits and block.
        progress: called after every weight.
    """
    outputs = sorted({product.output.name or "" for product in products})
    inputs = [product.x.name or "" for product in products if product.operator != "Gather"]
    graph = InstrumentedGraph(path, inputs, outputs)
    known = graph.run(probe, [*dict.fromkeys(inputs), *probe.outputs]) | probe.feeds
    by_weight: dict[str, list[Product]] = {}
    for product in products:
        by_weight.setdefault(product.weight.name or "", []).append(product)
    found = {}
    for name, readers in by_weight.items():
        matrix = weights.matrix(readers[0])
        read = [product for product in readers if product.operator not in ("Gather", "Conv")]
        rows, columns = weights.row_scale(readers[0]), weights.column_scale(readers[0])
        squares = None
        if read:
            squares = np.mean([np.square(_rows(known[p.x.name or ""]) / rows).mean(0) for p in read], 0)
        push = {}
        for product in readers:
            x = known[product.x.name or ""]
            if product.operator == "Gather":
                ids, index = np.unique(x, return_inverse=True)
                made = _error(matrix[:, ids], rule, squares).T[index.reshape(x.shape)]
            else:
                made = _added((x / rows).astype(np.float32), matrix, rule, squares) / columns
            push[product.output.name or ""] = np.ascontiguousarray(made, np.float32)
        moved = graph.run(probe, probe.outputs, push)
        found[name] = max(relative_error(moved[output], known[output]) for output in probe.outputs)
        progress()
    return found


def _error(matrix: Floats, rule: WeightOnly, importance: Floats | None) -> Floats:
    """What the rule's bits change in the weights."""
    blocks = quantize_blocks(
        matrix, rule.bits, rule.block, symmetric=rule.symmetric, importance=importance, search=False
    )
    return blocks.dequantized() - matrix


def _added(x: Floats, matrix: Floats, rule: WeightOnly, importance: Floats | None) -> Floats:
    """``x @ error``, some columns at a time: an lm_head's error alone would take as much memory as the lm_head."""
    parts = [
        x @ _error(matrix[:, start : start + _COLUMNS_AT_ONCE], rule, importance)
        for start in range(0, matrix.shape[1], _COLUMNS_AT_ONCE)
    ]
    return np.concatenate(parts, -1)


def _rows(x: Floats) -> Floats:
    return x.reshape(-1, x.shape[-1])


def most_sensitive(found: dict[str, float], sizes: dict[str, int], share: float) -> set[str]:
    """Weights that together are at most ``share`` of all of them, those first whose squared error falls most a weight.

    Independent errors add in squares, so a weight's squared error over its size is what its extra bits buy.
    """
    room = share * sum(sizes[name] for name in found)
    chosen: set[str] = set()
    for name in sorted(found, key=lambda name: found[name] ** 2 / sizes[name], reverse=True):
        if sizes[name] <= room:
            chosen.add(name)
            room -= sizes[name]
    return chosen
