"""Outlier channels: a scale per channel, found by trial on calibration rows and folded into what makes the input.

A few channels of a language model's activations are tens of times larger than the rest, in every token. One scale a
row must then span them, and everything else is rounded to a few steps. SmoothQuant (arXiv 2211.10438) divides channel
j by s[j] = max|x[j]|^α / max|w[j]|^(1 - α) and multiplies the weights' row by it; AWQ (arXiv 2306.00978) found that the
same helps 4-bit weights, whose small rows would otherwise be rounded away. Which α is best differs by place, so each is
tried with the very quantizer that the products will get.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantize.calibration import Inputs
from quantize.numerics import quantize_blocks, quantize_columns
from quantize.products import Product, Weights
from quantize.recipe import W8A8, AnyRule, WeightOnly
from quantize.smoothing_sites import SmoothingSite

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

# A scale must lower the error by this share, or the site is left alone: what is not an outlier needs no cure.
_WORTHWHILE = 0.1
# Columns on which a scale is tried; the error of a thousand columns is that of all within a percent.
_TRIED_COLUMNS = 1024
_TRIED_ROWS = 128


@dataclass(frozen=True, slots=True)
class Smoothed:
    """What was done at a site: relative error of its products before and after, and the α chosen."""

    products: list[str]
    before: float
    after: float
    alpha: float


def product_error(
    product: Product,
    rule: AnyRule,
    inputs: Inputs,
    matrix: Floats,
    scale: Floats | float = 1.0,
    *,
    search: bool = True,
) -> tuple[float, float]:
    """Squared norm of a quantized product's error on the calibration rows, and of its exact result.

    Args:
        product: the node; its stored weight is not looked at.
        rule: how it is quantized.
        inputs: what it reads, as it is without ``scale``.
        matrix: its weights [K, N] with ``scale`` multiplied into their rows.
        scale: [K] by which the inputs are divided.
        search: see :func:`quantize.numerics.quantize_blocks`.
    """
    exact = (inputs.rows / scale) @ matrix
    if isinstance(rule, W8A8):
        columns = quantize_columns(matrix, reduce_range=rule.reduce_range)
        found = inputs.rounded(scale) @ columns.dequantized()
    elif isinstance(rule, WeightOnly):
        importance = (inputs.mean_square / np.square(scale)).astype(np.float32) if product.operator != "Conv" else None
        blocks = quantize_blocks(
            matrix, rule.bits, rule.block, symmetric=rule.symmetric, importance=importance, search=search
        )
        found = (inputs.rows / scale) @ blocks.dequantized()
    else:
        return 0.0, float(np.square(exact).sum())
    return float(np.square(found - exact).sum()), float(np.square(exact).sum())


def smooth(
    sites: list[SmoothingSite],
    weights: Weights,
    inputs: dict[str, Inputs],
    rule_of: Callable[[Product], AnyRule | None],
    rng: np.random.Generator,
) -> list[Smoothed]:
    """Try a scale at every site whose products all have a smoothing rule, and fold what helps.

    The statistics in ``inputs`` are updated to what the products will read afterwards.
    """
    done = []
    for site in sites:
        rules = {product.name: rule_of(product) for product in site.products}
        if any(not isinstance(rule, W8A8 | WeightOnly) or not rule.smoothing for rule in rules.values()):
            continue
        found = _search(site, weights, inputs[site.x.name or ""], rules, rng)
        if found is None:
            continue
        source_scale, smoothed = found
        scale = source_scale[site.groups]
        site.fold(weights, source_scale)
        for product in site.products:
            weights.scale_rows(product, scale)
        inputs[site.x.name or ""].divide(scale)
        log.debug("%s", smoothed)
        done.append(smoothed)
    return done


def _search(
    site: SmoothingSite,
    weights: Weights,
    inputs: Inputs,
    rules: dict[str, AnyRule | None],
    rng: np.random.Generator,
) -> tuple[Floats, Smoothed] | None:
    """The best scale [source channels] of a site, or None when leaving it alone is nearly as good."""
    source_channels = int(site.groups.max()) + 1
    x_peak, w_peak = np.zeros(source_channels, np.float32), np.zeros(source_channels, np.float32)
    np.maximum.at(x_peak, site.groups, inputs.channel_peak)
    parts: list[tuple[Product, AnyRule, Floats]] = []
    alphas: set[float] = set()
    for product in site.products:
        rule = rules[product.name]
        if not isinstance(rule, W8A8 | WeightOnly) or rule.smoothing is None:
            return None
        alphas.update(rule.smoothing.alphas)
        matrix = weights.matrix(product)
        np.maximum.at(w_peak, site.groups, np.abs(matrix).max(1))
        if matrix.shape[1] > _TRIED_COLUMNS:
            matrix = matrix[:, np.sort(rng.choice(matrix.shape[1], _TRIED_COLUMNS, replace=False))]
        parts.append((product, rule, np.ascontiguousarray(matrix)))
    tried = inputs.head(_TRIED_ROWS)

    def error(scale: Floats | None) -> float:
        each = [
            product_error(product, rule, tried, matrix, search=False)
            if scale is None
            else product_error(product, rule, tried, matrix * scale[:, None], scale, search=False)
            for product, rule, matrix in parts
        ]
        return float(np.sqrt(sum(e for e, _ in each) / max(sum(n for _, n in each), 1e-30)))

    before = error(None)
    live = (x_peak > 0) & (w_peak > 0)
    if not live.any():
        return None
    best: tuple[float, Floats, float] | None = None
    for alpha in sorted(alphas):
        scale = np.ones(source_channels, np.float32)
        scale[live] = x_peak[live] ** alpha / w_peak[live] ** (1 - alpha)
        scale[live] /= np.exp(np.log(scale[live]).mean())  # the size of the whole does not matter: keep it
        after = error(scale[site.groups])
        if best is None or after < best[0]:
            best = (after, scale, alpha)
    if best is None or best[0] > before * (1 - _WORTHWHILE):
        return None
    return best[1], Smoothed([product.name for product in site.products], before, best[0], best[2])
