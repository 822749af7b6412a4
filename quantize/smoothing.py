"""Reduce outlier channels with per-channel scales, found by search on calibration rows and folded into the graph.

A few channels of a language model's activations are tens of times larger than the rest, in every token. With one scale
a row, all other channels are rounded to a few steps. SmoothQuant (arXiv 2211.10438) divides channel j of the input by
s[j] = max|x[j]|^α / max|w[j]|^(1 - α) and multiplies row j of the weights by it. AWQ (arXiv 2306.00978) found that the
same improves 4-bit weights, since it enlarges the weights that meet large inputs. The best α differs between sites, so
each is tried with the quantizer that the products will get.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantize.calibration import ActivationStatistics
from quantize.numerics import quantize_blocks, quantize_columns
from quantize.products import Product, Weights
from quantize.recipe import W8A8, AnyRule, WeightOnly
from quantize.smoothing_sites import SmoothingSite

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

# A scale must lower the error by this share; otherwise the site has no outliers and stays unchanged.
_MIN_IMPROVEMENT = 0.1
# Largest number of columns and rows on which scales are tried. The error of a thousand columns is within a percent of
# the error of all.
_SEARCH_COLUMNS = 1024
_SEARCH_ROWS = 128


@dataclass(frozen=True, slots=True)
class SmoothingResult:
    """A smoothed site: its products, their relative error before and after, and the chosen α."""

    products: list[str]
    before: float
    after: float
    alpha: float


def product_error(
    product: Product,
    rule: AnyRule,
    statistics: ActivationStatistics,
    matrix: Floats,
    scale: Floats | float = 1.0,
    *,
    search: bool = True,
) -> tuple[float, float]:
    """Measure the error of a quantized product on the calibration rows.

    Args:
        product: The node; its stored weight is not read.
        rule: The quantization.
        statistics: Statistics of its input, before division by ``scale``.
        matrix: Its weights [K, N], with ``scale`` multiplied into the rows.
        scale: Scale [K] by which the input is divided.
        search: Search the ranges of 4-bit blocks as :func:`quantize.numerics.quantize_blocks` does.

    Returns:
        Squared norms of the error and of the exact result.
    """
    exact = (statistics.rows / scale) @ matrix
    if isinstance(rule, W8A8):
        columns = quantize_columns(matrix, reduce_range=rule.reduce_range)
        quantized = statistics.rounded(scale) @ columns.dequantized()
    elif isinstance(rule, WeightOnly):
        importance = None
        if product.operator != "Conv":
            importance = (statistics.mean_square / np.square(scale)).astype(np.float32)
        blocks = quantize_blocks(
            matrix, rule.bits, rule.block, symmetric=rule.symmetric, importance=importance, search=search
        )
        quantized = (statistics.rows / scale) @ blocks.dequantized()
    else:
        return 0.0, float(np.square(exact).sum())
    return float(np.square(quantized - exact).sum()), float(np.square(exact).sum())


def smooth(
    sites: list[SmoothingSite],
    weights: Weights,
    statistics: dict[str, ActivationStatistics],
    rule_of: Callable[[Product], AnyRule | None],
    rng: np.random.Generator,
) -> list[SmoothingResult]:
    """Search a scale at every site whose products all have a rule with smoothing, and fold those that help.

    Args:
        sites: Sites in the graph.
        weights: Weights of the graph; scales are folded into them.
        statistics: Calibration statistics by value name, updated in place to what the products read after folding.
        rule_of: Returns the rule of a product.
        rng: Selects the columns on which scales are tried.

    Returns:
        A result for every site where a scale was folded.
    """
    results = []
    for site in sites:
        rules = {product.name: rule_of(product) for product in site.products}
        if any(not isinstance(rule, W8A8 | WeightOnly) or not rule.smoothing for rule in rules.values()):
            continue
        best = _search(site, weights, statistics[site.x.name or ""], rules, rng)
        if best is None:
            continue
        source_scale, result = best
        scale = source_scale[site.groups]
        site.fold(weights, source_scale)
        for product in site.products:
            weights.scale_rows(product, scale)
        statistics[site.x.name or ""].divide(scale)
        log.debug("%s", result)
        results.append(result)
    return results


def _search(
    site: SmoothingSite,
    weights: Weights,
    statistics: ActivationStatistics,
    rules: dict[str, AnyRule | None],
    rng: np.random.Generator,
) -> tuple[Floats, SmoothingResult] | None:
    """Find the best scale [source channels] of a site, or None if none improves the error enough."""
    source_channels = int(site.groups.max()) + 1
    x_peak, w_peak = np.zeros(source_channels, np.float32), np.zeros(source_channels, np.float32)
    np.maximum.at(x_peak, site.groups, statistics.channel_peak)
    parts: list[tuple[Product, AnyRule, Floats]] = []
    alphas: set[float] = set()
    for product in site.products:
        rule = rules[product.name]
        if not isinstance(rule, W8A8 | WeightOnly) or rule.smoothing is None:
            return None
        alphas.update(rule.smoothing.alphas)
        matrix = weights.matrix(product)
        np.maximum.at(w_peak, site.groups, np.abs(matrix).max(1))
        if matrix.shape[1] > _SEARCH_COLUMNS:
            matrix = matrix[:, np.sort(rng.choice(matrix.shape[1], _SEARCH_COLUMNS, replace=False))]
        parts.append((product, rule, np.ascontiguousarray(matrix)))
    sample = statistics.head(_SEARCH_ROWS)

    def relative_error(scale: Floats | None) -> float:
        errors = [
            product_error(product, rule, sample, matrix, search=False)
            if scale is None
            else product_error(product, rule, sample, matrix * scale[:, None], scale, search=False)
            for product, rule, matrix in parts
        ]
        return float(np.sqrt(sum(error for error, _ in errors) / max(sum(norm for _, norm in errors), 1e-30)))

    before = relative_error(None)
    nonzero = (x_peak > 0) & (w_peak > 0)
    if not nonzero.any():
        return None
    best: tuple[float, Floats, float] | None = None
    for alpha in sorted(alphas):
        scale = np.ones(source_channels, np.float32)
        scale[nonzero] = x_peak[nonzero] ** alpha / w_peak[nonzero] ** (1 - alpha)
        # Only the ratios between channels matter: keep the geometric mean at 1.
        scale[nonzero] /= np.exp(np.log(scale[nonzero]).mean())
        after = relative_error(scale[site.groups])
        if best is None or after < best[0]:
            best = (after, scale, alpha)
    if best is None or best[0] > before * (1 - _MIN_IMPROVEMENT):
        return None
    return best[1], SmoothingResult([product.name for product in site.products], before, best[0], best[2])
