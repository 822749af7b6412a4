"""Compare the texts of two models on the same recordings: words that differ, and error rates with a paired interval.

References are often scripts that the speaker did not keep to the word, so a small change of the error rate says little.
The share of words that differ from the baseline's own text needs no reference, and shows changes that cancel out in
error rates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.evaluation.dataset import Utterance
from runtime.evaluation.metrics import bootstrap_interval, check_packages, count_errors, error_unit, metric_language

#: Language of a comparison over all utterances.
ALL = "all"
# Probability with which a count above `largest_likely_count` occurs by chance: that of one end of a 95 % interval.
_TAIL = 0.025


class Comparison(msgspec.Struct, frozen=True):
    """Texts of a model beside those of a baseline, for one language or all.

    Attributes:
        language: English name of the language, ``und``, or ``all``.
        unit: ``words``, ``characters``, or ``words and characters`` over languages of both kinds.
        utterances: number of utterances.
        same: share of utterances, 0 to 1, with equal normalized texts.
        baseline_units: units of the baseline's texts.
        differing: units that differ: substituted, deleted or inserted (edit distance of the normalized texts).
        differ: differing / baseline units, 0 and above; None if the baseline's texts have no units.
        differ_low: lower bound of the 95 % bootstrap interval of ``differ``; None if there is none.
        differ_high: upper bound of that interval.
        baseline_rate: error rate of the baseline against the references; None if they have no units.
        rate: error rate of the model.
        rise: rate - baseline rate.
        rise_low: lower bound of the paired 95 % bootstrap interval of ``rise``: both models on the same utterances.
        rise_high: upper bound of that interval.
    """

    language: str
    unit: str
    utterances: int
    same: float
    baseline_units: int
    differing: int
    differ: float | None
    differ_low: float | None
    differ_high: float | None
    baseline_rate: float | None
    rate: float | None
    rise: float | None
    rise_low: float | None
    rise_high: float | None


class TextComparison(msgspec.Struct, frozen=True):
    """Comparisons by language, sorted by name, and over all utterances."""

    languages: list[Comparison]
    overall: Comparison


def compare_texts(utterances: Sequence[Utterance], baseline: Sequence[str], texts: Sequence[str]) -> TextComparison:
    """Compare ``texts`` with those of a baseline, in the order of ``utterances``, of which there is at least one.

    Texts are normalized as for error rates, and characters are compared instead of words where error rates count them.

    Raises:
        PackageMissingError: the extra ``evaluate`` is not installed.
        ValueError: the numbers of utterances and texts differ.
    """
    check_packages()
    rows: dict[str, list[tuple[int, ...]]] = {}
    for utterance, before, after in zip(utterances, baseline, texts, strict=True):
        language = metric_language(utterance)
        first, second = count_errors(utterance.text, before, language), count_errors(utterance.text, after, language)
        change = count_errors(before, after, language)
        row = (change.units, change.errors, first.units, first.errors, second.errors, change.exact)
        rows.setdefault(language, []).append(row)
    units = {error_unit(language) for language in rows}
    languages = [_compare(name, error_unit(name), np.array(rows[name], np.int64)) for name in sorted(rows)]
    every = np.array([row for name in sorted(rows) for row in rows[name]], np.int64)
    return TextComparison(languages, _compare(ALL, " and ".join(sorted(units, reverse=True)), every))


def _compare(language: str, unit: str, rows: npt.NDArray[np.int64]) -> Comparison:
    """Compare rows [utterances, 6]: units and edits from baseline, reference units, errors of both, equality."""
    baseline_units, differing, units, errors_before, errors_after, same = rows.T
    differ_low, differ_high = bootstrap_interval(differing, baseline_units)
    low, high = bootstrap_interval(errors_after - errors_before, units)
    before, after = _ratio(errors_before, units), _ratio(errors_after, units)
    return Comparison(
        language=language,
        unit=unit,
        utterances=len(rows),
        same=float(same.mean()),
        baseline_units=int(baseline_units.sum()),
        differing=int(differing.sum()),
        differ=_ratio(differing, baseline_units),
        differ_low=differ_low,
        differ_high=differ_high,
        baseline_rate=before,
        rate=after,
        rise=None if before is None or after is None else after - before,
        rise_low=low,
        rise_high=high,
    )


def _ratio(counts: npt.NDArray[np.int64], units: npt.NDArray[np.int64]) -> float | None:
    return int(counts.sum()) / int(units.sum()) if units.sum() else None


def largest_likely_count(units: int, share: float) -> int:
    """Return how many of ``units`` may differ when each differs with probability ``share``.

    It is the smallest count that a binomial variable exceeds with a probability of at most 2.5 %, and at least 1: a
    single unit proves nothing.

    Args:
        units: number of units, 0 or more.
        share: probability, 0 or more; 1 and more allow all units.
    """
    if units == 0 or share <= 0:
        return 1
    if share >= 1:
        return max(units, 1)
    counts = np.arange(1, units + 1)
    # log P(k) = log P(k - 1) + log((n - k + 1) / k) + log(p / (1 - p)): no overflow for any n.
    steps = np.log((units - counts + 1) / counts) + math.log(share / (1 - share))
    logarithms = units * math.log1p(-share) + np.concatenate(([0.0], np.cumsum(steps)))
    cumulative = np.cumsum(np.exp(logarithms))
    return max(1, int(np.searchsorted(cumulative, 1 - _TAIL)))
