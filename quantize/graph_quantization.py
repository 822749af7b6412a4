"""Quantize one graph by the rules of a recipe: smooth inputs, rewrite products, fall back where errors are large."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir

from quantize.calibration import ERROR_ROWS, ActivationStatistics
from quantize.compensation import Compensation
from quantize.errors import RecipeError
from quantize.graph import drop_unused_initializers, load_graph, save_graph
from quantize.methods import cache, fp16, per_element, w8a8, weight_only
from quantize.numerics import Columns, Floats, quantize_columns, relative_error
from quantize.products import Product, Weights, find_products
from quantize.recipe import W8A8, AnyRule, Float16, Keep, WeightOnly
from quantize.sensitivity import measure_sensitivities, most_sensitive
from quantize.smoothing import smooth
from quantize.smoothing_sites import find_smoothing_sites
from runtime.engines.base import Probe
from runtime.model.manifest import FallbackNode, GraphQuantization, GraphSpec

log = logging.getLogger(__name__)

_SEED = 20
_HALF = "float16"  # method name in the manifest's node counts

RuleOf = Callable[[Product], AnyRule | None]


@dataclass(frozen=True, slots=True)
class QuantizedGraph:
    """The manifest's entries of a quantized graph: its interface and a summary of the quantization."""

    spec: GraphSpec
    summary: GraphQuantization


def quantize_graph(
    path: Path,
    out: Path,
    rules: dict[str, AnyRule],
    statistics: dict[str, ActivationStatistics],
    probe: Probe | None,
    on_progress: Callable[[], object],
    *,
    cached: bool = False,
) -> QuantizedGraph:
    """Quantize the graph in ``path`` and save it in the folder ``out``.

    Args:
        path: The float32 graph.
        out: Folder of the result, which has the same file name.
        rules: Rules by node name.
        statistics: Calibration statistics by the name of the value that products read; updated in place.
        probe: Inputs for measuring sensitivities, needed by rules with ``sensitive``.
        on_progress: Called after every weight, and after every measured sensitivity.
        cached: Quantize keys and values of the cache to int8.

    Raises:
        RecipeError: Nodes that share a weight have different rules.
        RecipeError: Nodes that share a weight have a ``w8a8`` rule.
        RecipeError: The cache of an attention node cannot be quantized.
        QuantizationError: A weight has values beyond the range of float16.
    """
    model = load_graph(path)
    graph = model.graph
    products = find_products(graph)
    weights = Weights()

    more_bits: dict[str, WeightOnly] = {}

    def rule_of(product: Product) -> AnyRule | None:
        return more_bits.get(product.weight.name or "") or rules.get(product.name)

    by_weight: dict[str, list[Product]] = {}
    for product in products:
        by_weight.setdefault(product.weight.name or "", []).append(product)
    _check_shared_weights(by_weight, rule_of)
    smoothed = smooth(find_smoothing_sites(products), weights, statistics, rule_of, np.random.default_rng(_SEED))
    for rule in dict.fromkeys(rule for rule in rules.values() if isinstance(rule, WeightOnly) and rule.sensitive):
        candidates = [product for product in products if rules.get(product.name) is rule and product.operator != "Conv"]
        more_bits |= _more_bits(path, rule, candidates, weights, probe, on_progress)
    scales = cache.scales(graph, statistics, products, weights) if cached else {}
    stem_inputs, unquantized = _convolution_stems(products, rule_of)
    rounding, compensations = w8a8.ActivationRounding(graph), _Compensations()
    parts = weight_only.InputParts(graph)
    counts: Counter[str] = Counter()
    fallbacks: list[FallbackNode] = []
    for readers in by_weight.values():
        applied_rule = None if readers[0] in unquantized else rule_of(readers[0])
        method, fallback_nodes = _apply(
            graph, rounding, readers, applied_rule, weights, statistics, compensations, parts
        )
        counts[method] += 0 if method == _HALF else len(readers)  # float16 nodes are counted when they are converted
        fallbacks += fallback_nodes
        on_progress()
    w8a8.cancel_transposes(graph)
    for x in stem_inputs:
        graph.sort()
        per_element.wrap(graph, x, f"{x.name}/each")
    half_nodes = fp16.convert(model, {name for name, rule in rules.items() if isinstance(rule, Float16)})
    counts[_HALF] += half_nodes
    caches = cache.quantize(model, scales) if scales else 0
    drop_unused_initializers(graph)
    spec = save_graph(model, out / path.name)
    summary = GraphQuantization(
        nodes={method: count for method, count in sorted(counts.items()) if count},
        smoothed=len(smoothed),
        fallbacks=fallbacks,
        caches=caches,
    )
    return QuantizedGraph(spec, summary)


class _Compensations:
    """Compensations by the inputs of products. Only the last is kept: products that share inputs follow each other."""

    def __init__(self) -> None:
        self._last: tuple[list[str | None], int, int, Compensation] | None = None

    def find(self, readers: list[Product], inputs: Floats, bits: int) -> Compensation:
        """Return the compensation for the rows ``inputs`` [n, K] that ``readers`` read, for weights of ``bits``."""
        names, digest = [product.x.name for product in readers], hash(inputs[:8].tobytes())
        if self._last is None or self._last[:3] != (names, digest, bits):
            self._last = (names, digest, bits, Compensation(inputs, bits=bits))
        return self._last[3]


def _apply(
    graph: ir.Graph,
    rounding: w8a8.ActivationRounding,
    readers: list[Product],
    rule: AnyRule | None,
    weights: Weights,
    statistics: dict[str, ActivationStatistics],
    compensations: _Compensations,
    parts: weight_only.InputParts,
) -> tuple[str, list[FallbackNode]]:
    """Quantize the nodes that read one weight.

    Returns:
        Name of the method for the manifest's node counts, and the nodes that fell back from ``w8a8`` to weight-only.
    """
    fallback_nodes: list[FallbackNode] = []
    if isinstance(rule, W8A8):
        if readers[0].operator == "Conv" and readers[0].patch <= w8a8.FLOAT_PATCH:
            w8a8.quantize_float(graph, rounding, readers[0], weights)
            return "float32 patches", []
        (product,) = readers
        columns, zero_point, error = _integer_columns(product, rule, statistics, weights, compensations)
        if error <= rule.error_bound:
            w8a8.quantize(graph, rounding, product, columns, zero_point)
            return "w8a8", []
        fallback_nodes = [FallbackNode(node=product.name, error=round(error, 4))]  # NaN too
        rule = WeightOnly(
            graph=rule.graph,
            bits=rule.fallback.bits,
            block=rule.fallback.block,
            symmetric=True,
            compensation=rule.compensation,
        )
    if isinstance(rule, WeightOnly):
        measured = [statistics[name] for product in readers if (name := product.x.name or "") in statistics]
        importance = compensation = None
        if measured and readers[0].operator != "Conv":
            importance = np.mean([each.mean_square for each in measured], 0)
        # A table that is also looked up keeps its nearest levels: looked-up rows have no inputs to compensate for.
        if rule.compensation and len(measured) == len(readers):
            compensation = compensations.find(readers, np.concatenate([each.rows for each in measured]), rule.bits)
        weight_only.quantize(
            graph,
            readers,
            weights,
            rule,
            parts,
            importance=importance,
            compensation=compensation,
        )
        return f"{rule.bits} bits, blocks of {rule.block}", fallback_nodes
    for product in weights.scaled(readers[:1]):
        weights.write_back(product)
    return _HALF if isinstance(rule, Float16) else "float32", []


def _integer_columns(
    product: Product,
    rule: W8A8,
    statistics: dict[str, ActivationStatistics],
    weights: Weights,
    compensations: _Compensations,
) -> tuple[Columns, int, float]:
    """Quantize the weights of one product of integers.

    Returns:
        The weights, the zero point of the inputs, and the relative error of the product on calibration rows.
    """
    inputs, matrix = statistics[product.x.name or ""], weights.matrix(product)
    lowest = w8a8.lower_limit(product)
    zero_point = 128 if product.shares_scale else inputs.best_zero_point(lowest)
    compensation = None
    if rule.compensation:
        compensation = compensations.find([product], inputs.rounded(zero_point=zero_point, lowest=lowest), 8)
    columns = quantize_columns(matrix, reduce_range=rule.reduce_range, compensation=compensation)
    sample = inputs.head(ERROR_ROWS)
    actual = sample.rounded(zero_point=zero_point, lowest=lowest) @ columns.dequantized()
    error = relative_error(actual, sample.rows @ matrix)
    log.debug("%s: zero point %d, relative error %.4f", product.name, zero_point, error)
    return columns, zero_point, error


def _convolution_stems(products: list[Product], rule_of: RuleOf) -> tuple[list[ir.Value], set[Product]]:
    """Find chains of ``w8a8`` convolutions that can run one batch element at a time.

    Returns:
        The inputs of the first convolution of each chain; and single convolutions with patches too small for integers,
        which stay unchanged since computing patches would not make them faster.
    """
    convolutions = [p for p in products if p.operator == "Conv" and isinstance(rule_of(p), W8A8)]
    unquantized = {
        p for p in convolutions if p.patch <= w8a8.FLOAT_PATCH and not any(_feeds(p, other) for other in convolutions)
    }
    chained = [p for p in convolutions if p not in unquantized]
    return [p.x for p in chained if not any(_feeds(other, p) for other in chained)], unquantized


def _feeds(first: Product, second: Product) -> bool:
    """Whether ``second`` reads the output of ``first``, directly or through activation functions."""
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
    on_progress: Callable[[], object],
) -> dict[str, WeightOnly]:
    """Return the rule with more bits for the most sensitive weights of ``products``, by weight name."""
    sensitive = rule.sensitive
    if sensitive is None or probe is None:
        return {}
    sensitivities = measure_sensitivities(path, probe, products, weights, rule, on_progress)
    sizes = {product.weight.name or "": product.size for product in products}
    precise_rule = msgspec.structs.replace(
        rule, bits=sensitive.bits, block=sensitive.block, symmetric=sensitive.bits == 8, sensitive=None
    )
    return dict.fromkeys(most_sensitive(sensitivities, sizes, sensitive.share), precise_rule)


def _check_shared_weights(by_weight: dict[str, list[Product]], rule_of: RuleOf) -> None:
    """Check that nodes that share a weight quantize it alike, and not by ``w8a8``, whose layout no ``Gather`` reads."""
    for readers in by_weight.values():
        rules = [rule_of(product) for product in readers]
        formats = {
            (type(rule), rule.bits, rule.block, rule.symmetric)
            if isinstance(rule, WeightOnly)
            else (Keep if rule is None else type(rule),)
            for rule in rules
        }
        names = " and ".join(repr(product.name) for product in readers)
        if len(formats) > 1:
            raise RecipeError(f"nodes {names} share one weight, but the recipe's rules quantize it differently")
        if len(readers) > 1 and isinstance(rules[0], W8A8):
            raise RecipeError(
                f"nodes {names} share one weight, which method w8a8 does not support; use weight_only for all of them"
            )
