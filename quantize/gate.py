"""Compare a quantized artifact with its parent on the same inputs and audio, and check the bounds of its recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from quantize.recipe import Bounds
from runtime.engines.base import Probe
from runtime.evaluation import Utterance, compare_texts, largest_likely_count
from runtime.model.artifact import Artifact
from runtime.model.manifest import ErrorRate, Gate, Quantization, TextDifference
from runtime.ort.providers import ProviderSpec
from runtime.ort.session import make_session
from runtime.results import Transcript

Outputs = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Expected:
    """A probe and the outputs of the parent's graph for it."""

    probe: Probe
    outputs: Outputs


@dataclass(frozen=True, slots=True)
class EvaluationRun:
    """Evaluation utterances and one model's transcripts of them, in the same order."""

    utterances: list[Utterance]
    transcripts: list[Transcript]

    @property
    def tokens(self) -> list[list[list[int]]]:
        """Token ids of each segment of each utterance."""
        return [[segment.tokens for segment in transcript.segments] for transcript in self.transcripts]


def compare_graphs(artifact: Artifact, expected: list[Expected]) -> tuple[dict[str, float], float | None]:
    """Run the graphs of ``artifact`` on the probes of ``expected`` and compare their outputs with the parent's.

    Returns:
        Relative error of all outputs over all probes, by graph role; and the share, from 0 to 1, of decisions (largest
        entries of :attr:`Probe.choice`) that equal the parent's, or None if no probe has one.
    """
    errors: dict[str, float] = {}
    equal_choices = choices = 0
    for role in dict.fromkeys(item.probe.role for item in expected):
        session = make_session(artifact.graph_path(role), ProviderSpec())
        types = {tensor.name: tensor.dtype for tensor in artifact.manifest.graphs[role].inputs}
        error_square = expected_square = 0.0
        for item in (item for item in expected if item.probe.role == role):
            # The empty cache of the parent is cast to the type of a quantized cache; other inputs keep their types.
            feeds = {name: array.astype(types[name], copy=False) for name, array in item.probe.feeds.items()}
            actual = dict(zip(item.probe.outputs, session.run(item.probe.outputs, feeds), strict=True))
            for name in item.probe.outputs:
                exact = item.outputs[name].astype(np.float64)
                error_square += float(np.square(actual[name] - exact).sum())
                expected_square += float(np.square(exact).sum())
            if choice := item.probe.choice:
                equal = actual[choice].argmax(-1) == item.outputs[choice].argmax(-1)
                equal_choices, choices = equal_choices + int(equal.sum()), choices + equal.size
        errors[role] = math.sqrt(error_square / max(expected_square, 1e-30))
    return errors, equal_choices / choices if choices else None


@dataclass(frozen=True, slots=True)
class TextResults:
    """Texts of the result beside those of the parent.

    Attributes:
        utterances: Number of utterances.
        identical: Share of utterances with equal tokens, from 0 to 1.
        words_differ: Words that differ from the parent's texts, over all languages.
        rates: Error rates of both, by language.
    """

    utterances: int
    identical: float
    words_differ: TextDifference
    rates: list[ErrorRate]


def compare_runs(parent: EvaluationRun, quantized: EvaluationRun) -> TextResults:
    """Compare the texts of two models on the same utterances.

    Raises:
        ValueError: the numbers of transcripts differ.
    """
    pairs = list(zip(parent.tokens, quantized.tokens, strict=True))
    before, after = ([transcript.text for transcript in run.transcripts] for run in (parent, quantized))
    comparison = compare_texts(parent.utterances, before, after)
    rates = [
        ErrorRate(
            language=row.language,
            unit=row.unit,
            utterances=row.utterances,
            parent=row.baseline_rate or 0.0,
            quantized=row.rate or 0.0,
            parent_units=row.baseline_units,
            differing=row.differing,
            rise_low=row.rise_low,
            rise_high=row.rise_high,
        )
        for row in comparison.languages
    ]
    overall = comparison.overall
    difference = TextDifference(
        unit=overall.unit,
        parent_units=overall.baseline_units,
        differing=overall.differing,
        low=overall.differ_low,
        high=overall.differ_high,
    )
    identical = float(np.mean([before == after for before, after in pairs]))
    return TextResults(len(pairs), identical, difference, rates)


def find_exceeded_bounds(bounds: Bounds, errors: dict[str, float], texts: TextResults | None) -> list[str]:
    """Describe every bound that is exceeded. NaN exceeds any bound.

    Args:
        bounds: The bounds of the recipe.
        errors: Relative error by graph role.
        texts: Texts of parent and result, or None without evaluation audio.
    """
    exceeded = [
        f"relative error of the {role} is {error:.4f}, more than {bounds.relative(role):g}"
        for role, error in errors.items()
        if not error <= bounds.relative(role)
    ]
    if texts is None:
        return exceeded
    if not texts.identical >= bounds.identical:
        exceeded.append(
            f"{texts.identical:.1%} of the utterances have the parent's tokens, fewer than {bounds.identical:.1%}"
        )
    if differs_too_much(texts.words_differ, bounds.words_differ):
        exceeded.append(
            f"texts differ from the parent's in {texts.words_differ.summary}, more than {bounds.words_differ:.2%}"
        )
    exceeded += [
        f"error rate in {rate.language} rose from {rate.parent:.2%} to {rate.quantized:.2%}{_interval(rate)}, "
        f"more than {100 * bounds.error_rate:g} points"
        for rate in texts.rates
        if rises_too_much(rate, bounds.error_rate)
    ]
    return exceeded


def differs_too_much(difference: TextDifference, bound: float) -> bool:
    """Return whether more words differ than ``bound`` explains.

    An evaluation set is a sample, so the share that differs in it may exceed a bound by chance. Two conditions must
    both hold:

    - the count is above what a true share of ``bound`` gives in 97.5 % of samples of this many independent words
      (:func:`runtime.evaluation.largest_likely_count`); this protects small sets, where one word is a large share;
    - the 95 % bootstrap interval of the share, over utterances, is above ``bound``; this protects sets in which one
      utterance has many of the words that differ.
    """
    if difference.low is not None and math.isnan(difference.low):
        return True
    beyond_chance = difference.differing > largest_likely_count(difference.parent_units, bound)
    return beyond_chance and not (difference.low is not None and difference.low <= bound)


def rises_too_much(rate: ErrorRate, bound: float) -> bool:
    """Return whether an error rate rises by more than ``bound``, and by more than chance.

    A rise is beyond chance if the paired 95 % bootstrap interval is above 0. Without an interval any rise is.
    """
    rise = rate.quantized - rate.parent
    by_chance = math.isfinite(rise) and rate.rise_low is not None and rate.rise_low <= 0
    return not (rise <= bound or by_chance)


def _interval(rate: ErrorRate) -> str:
    if rate.rise_low is None or rate.rise_high is None:
        return ""
    return f" (95 % interval of the rise {100 * rate.rise_low:+.2f} to {100 * rate.rise_high:+.2f} points)"


def render(quantization: Quantization) -> Table:
    """Format the results of the gate as a table of parent and result."""
    gate = quantization.gate
    table = Table("", "parent", quantization.recipe, title=f"evaluated on {gate.evaluation}", title_justify="left")
    table.add_row("size", f"{gate.parent_bytes / 1e6:.1f} MB", f"{gate.bytes / 1e6:.1f} MB")
    for role, graph in quantization.graphs.items():
        table.add_row(
            f"{role}: nodes", "float32", "\n".join(f"{count} {method}" for method, count in graph.nodes.items())
        )
        if graph.caches:
            table.add_row(f"{role}: keys and values", "float32", f"8 bits in {graph.caches} nodes")
        if graph.smoothed:
            table.add_row(f"{role}: inputs smoothed", "", str(graph.smoothed))
        if graph.fallbacks:
            table.add_row(f"{role}: fell back to weight-only", "", str(len(graph.fallbacks)))
    for role, error in gate.relative_error.items():
        table.add_row(f"{role}: relative error", "", f"{error:.4f}")
    if gate.same_choices is not None:
        table.add_row("same choice, on the parent's text", "", f"{gate.same_choices:.1%}")
    if gate.identical is not None:
        table.add_row("identical utterances", "", f"{gate.identical:.1%} of {gate.utterances}")
    if gate.words_differ is not None:
        table.add_row("differ from the parent's text", "", gate.words_differ.summary)
    for rate in gate.error_rates:
        label = f"{rate.language}, {rate.unit} wrong of {rate.utterances} utterances"
        table.add_row(label, f"{rate.parent:.2%}", f"{rate.quantized:.2%}{_interval(rate)}")
    return table


def record(
    evaluation: str,
    bounds: Bounds,
    errors: dict[str, float],
    same_choices: float | None,
    texts: TextResults | None,
    sizes: tuple[int, int],
    *,
    force: bool,
) -> Gate:
    """Build the manifest's entry for the gate.

    Args:
        evaluation: Description of the evaluation audio.
        bounds: The bounds of the recipe.
        errors: Relative error by graph role.
        same_choices: Share of decisions that equal the parent's, or None if none was compared.
        texts: Texts of parent and result; None without evaluation audio.
        sizes: Sizes of parent and result in bytes.
        force: Record exceeded bounds as forced.
    """
    exceeded = find_exceeded_bounds(bounds, errors, texts)
    return Gate(
        evaluation=evaluation,
        relative_error={role: round(error, 6) for role, error in errors.items()},
        same_choices=same_choices,
        utterances=texts.utterances if texts else 0,
        identical=texts.identical if texts else None,
        error_rates=texts.rates if texts else [],
        parent_bytes=sizes[0],
        bytes=sizes[1],
        exceeded=exceeded,
        forced=bool(exceeded) and force,
        words_differ=texts.words_differ if texts else None,
    )
