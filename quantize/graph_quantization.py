"""One graph by one recipe: scales folded, weights quantized node by node, what cannot bear it left with more bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir

from quantize.calibration import Inputs
from quantize.errors import RecipeError
from quantize.graph import drop_unused_initializers, load_graph, save_graph
from quantize.methods import cache, fp16, per_element, w8a8, weight_only
from quantize.products import Product, Weights, find_products
from quantize.recipe import W8A8, AnyRule, Float16, Keep, WeightOnly
from quantize.sensitivity import most_sensitive, sensitivities
from quantize.smoothing import product_error, smooth
from quantize.smoothing_sites import find_smoothing_sites
from runtime.engines.base import Probe
from runtime.model.manifest import FallbackNode, GraphQuantization, GraphSpec

_SEED = 20
_HALF = "float16"


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What became of a graph: its entry in the manifest, and what was done to its nodes."""

    spec: GraphSpec
    summary: GraphQuantization


def rewrite(
    path: Path,
    out: Path,
    rules: dict[str, AnyRule],
    inputs: dict[str, Inputs],
    probe: Probe | None,
    progress: Callable[[], object],
    *,
    cached: bool = False,
) -> Rewritten:
    """Quantize the graph in ``path`` and save it in the folder ``out``.

    Args:
        path: the float graph.
        out: where the new one goes, under the same name.
        rules: by node name.
        inputs: calibration statistics by the name of the value that products read.
        probe: what sensitivities are measured on, if a rule asks for them.
        progress: told of every product, and of every sensitivity measured.
        cached: whether keys and values become int8.

    Raises:
        RecipeError: nodes that share a weight have different rules, or attention has a cache that cannot be quantized.
    """
    model = load_graph(path)
    graph = model.graph
    products = find_products(graph)
    weights = Weights()

    more_bits: dict[str, WeightOnly] = {}

    def rule_of(product: Product) -> AnyRule | None:
        return more_bits.get(product.weight.name or "") or rules.get(product.name)

    shared: dict[str, list[Product]] = {}
    for product in products:
        shared.setdefault(product.weight.name or "", []).append(product)
    _check_shared(shared, rule_of)
    smoothed = smooth(find_smoothing_sites(products), weights, inputs, rule_of, np.random.default_rng(_SEED))
    for wide in dict.fromkeys(rule for rule in rules.values() if isinstance(rule, WeightOnly) and rule.sensitive):
        alike = [p for p in products if rules.get(p.name) is wide and p.operator != "Conv"]
        more_bits |= _more_bits(path, wide, alike, weights, probe, progress)
    scales = cache.scales(graph, inputs, products, weights) if cached else {}
    stems, alone = _stems(products, rule_of)
    rounding = w8a8.ActivationRounding(graph)
    counts: Counter[str] = Counter()
    fallbacks: list[FallbackNode] = []
    for readers in shared.values():
        rule = rule_of(readers[0])
        if readers[0] in alone:
            rule = None
        what, fallen = _apply(graph, rounding, readers, rule, weights, inputs)
        counts[what] += 0 if what == _HALF else len(readers)  # these are counted when all nodes are converted
        fallbacks += fallen
        progress()
    w8a8.cancel_transposes(graph)
    for x in stems:
        graph.sort()
        per_element.wrap(graph, x, f"{x.name}/each")
    halved = fp16.convert(model, {name for name, rule in rules.items() if isinstance(rule, Float16)})
    counts[_HALF] += halved
    caches = cache.quantize(model, scales) if scales else 0
    drop_unused_initializers(graph)
    spec = save_graph(model, out / path.name)
    summary = GraphQuantization(
        nodes={what: count for what, count in sorted(counts.items()) if count},
        smoothed=len(smoothed),
        fallbacks=fallbacks,
        caches=caches,
    )
    return Rewritten(spec, summary)


def _apply(
    graph: ir.Graph,
    rounding: w8a8.ActivationRounding,
    readers: list[Product],
    rule: AnyRule | None,
    weights: Weights,
    inputs: dict[str, Inputs],
) -> tuple[str, list[FallbackNode]]:
    """Quantize the nodes that read one weight; says what became of them, and which fell back from their rule."""
    fallen: list[FallbackNode] = []
    if isinstance(rule, W8A8):
        read = inputs[readers[0].x.name or ""]
        kept_float = readers[0].operator == "Conv" and readers[0].patch <= w8a8.FLOAT_PATCH
        error, norm = (0.0, 1.0)
        if not kept_float:
            error, norm = product_error(readers[0], rule, read, weights.matrix(readers[0]))
        relative = (error / max(norm, 1e-30)) ** 0.5
        if relative <= rule.error_bound:
            for product in readers:
                w8a8.quantize(graph, rounding, product, weights, reduce_range=rule.reduce_range)
            return "float32 patches" if kept_float else "w8a8", []
        fallen = [FallbackNode(node=product.name, error=round(relative, 4)) for product in readers]  # also if it is NaN
        rule = WeightOnly(graph=rule.graph, bits=rule.fallback.bits, block=rule.fallback.block, symmetric=True)
    if isinstance(rule, WeightOnly):
        squares = [inputs[name].mean_square for product in readers if (name := product.x.name or "") in inputs]
        importance = np.mean(squares, 0) if squares and readers[0].operator != "Conv" else None
        weight_only.quantize(
            graph, readers, weights, rule.bits, rule.block, symmetric=rule.symmetric, importance=importance
        )
        return f"{rule.bits} bits, blocks of {rule.block}", fallen
    for product in weights.scaled(readers[:1]):
        weights.write_back(product)
    return _HALF if isinstance(rule, Float16) else "float32", []


def _stems(
    products: list[Product], rule_of: Callable[[Product], AnyRule | None]
) -> tuple[list[ir.Value], set[Product]]:
    """What the first of convolutions in a row read, whose products of patches come apart by element; and convolutions
    that are too small for integers and have none behind them, for which patches would be no gain.
    """
    patched = [p for p in products if p.operator == "Conv" and isinstance(rule_of(p), W8A8)]
    alone = {p for p in patched if p.patch <= w8a8.FLOAT_PATCH and not any(_feeds(p, other) for other in patched)}
    rows = [p for p in patched if p not in alone]
    return [product.x for product in rows if not any(_feeds(other, product) for other in rows)], alone


def _feeds(first: Product, second: Product) -> bool:
    """Whether a convolution's output, with nothing but an activation after it, is what another one reads."""
    source = second.x.producer()
    while source is not None and source.op_type in w8a8.ACTIVATIONS and source.inputs[0] is not None:
        source = source.inputs[0].producer()
    return source is first.node


def _more_bits(
    path: Path,
    rule: WeightOnly,
    products: list[Product],
    weights: Weights,
    probe: Probe | None,
    progress: Callable[[], object],
) -> dict[str, WeightOnly]:
    """The weights under ``rule`` whose sensitivity earns them more bits, and the rule they get."""
    sensitive = rule.sensitive
    if sensitive is None or probe is None:
        return {}
    found = sensitivities(path, probe, products, weights, rule, progress)
    sizes = {product.weight.name or "": product.size for product in products}
    better = msgspec.structs.replace(
        rule, bits=sensitive.bits, block=sensitive.block, symmetric=sensitive.bits == 8, sensitive=None
    )
    return dict.fromkeys(most_sensitive(found, sizes, sensitive.share), better)


def _check_shared(shared: dict[str, list[Product]], rule_of: Callable[[Product], AnyRule | None]) -> None:
    """Nodes that read one weight must quantize it alike; a table that is looked up cannot have columns' scales."""
    for readers in shared.values():
        found = [rule_of(product) for product in readers]
        kinds = {
            (type(rule), rule.bits, rule.block, rule.symmetric)
            if isinstance(rule, WeightOnly)
            else (Keep if rule is None else type(rule),)
            for rule in found
        }
        if len(kinds) > 1:
            names = " and ".join(repr(product.name) for product in readers)
            raise RecipeError(f"nodes {names} share one weight, but the recipe's rules quantize it differently")
        if len(readers) > 1 and isinstance(found[0], W8A8):
            names = " and ".join(repr(product.name) for product in readers)
            raise RecipeError(f"nodes {names} share one weight, which method w8a8 cannot do; use weight_only for both")
