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
from runtime.evaluation import Utterance, score
from runtime.model.artifact import Artifact
from runtime.model.manifest import ErrorRate, Gate, Quantization
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


def compare_texts(parent: EvaluationRun, quantized: EvaluationRun) -> tuple[float, list[ErrorRate]]:
    """Return the share of utterances with equal tokens, from 0 to 1, and the error rates of both by language."""
    pairs = list(zip(parent.tokens, quantized.tokens, strict=True))
    texts = [[transcript.text for transcript in run.transcripts] for run in (parent, quantized)]
    rates = [
        ErrorRate(
            language=before.language,
            unit=before.unit,
            utterances=before.utterances,
            parent=before.rate or 0.0,
            quantized=after.rate or 0.0,
        )
        for before, after in zip(*(score(parent.utterances, each) for each in texts), strict=True)
    ]
    return float(np.mean([before == after for before, after in pairs])), rates


def find_exceeded_bounds(
    bounds: Bounds, errors: dict[str, float], identical: float | None, rates: list[ErrorRate]
) -> list[str]:
    """Describe every bound that is exceeded. NaN exceeds any bound.

    Args:
        bounds: The bounds of the recipe.
        errors: Relative error by graph role.
        identical: Share of utterances with the parent's tokens, or None without evaluation audio.
        rates: Error rates of parent and result by language.
    """
    exceeded = [
        f"relative error of the {role} is {error:.4f}, more than {bounds.relative(role):g}"
        for role, error in errors.items()
        if not error <= bounds.relative(role)
    ]
    if identical is not None and not identical >= bounds.identical:
        exceeded.append(
            f"{identical:.1%} of the utterances have the parent's tokens, fewer than {bounds.identical:.1%}"
        )
    exceeded += [
        f"error rate in {rate.language} rose from {rate.parent:.2%} to {rate.quantized:.2%}, "
        f"more than {100 * bounds.error_rate:g} points"
        for rate in rates
        if not rate.quantized - rate.parent <= bounds.error_rate
    ]
    return exceeded


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
    for rate in gate.error_rates:
        label = f"{rate.language}, {rate.unit} wrong of {rate.utterances} utterances"
        table.add_row(label, f"{rate.parent:.2%}", f"{rate.quantized:.2%}")
    return table


def record(
    evaluation: str,
    bounds: Bounds,
    errors: dict[str, float],
    same_choices: float | None,
    texts: tuple[int, float, list[ErrorRate]] | None,
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
        texts: Number of utterances, share with identical tokens, and error rates; None without evaluation audio.
        sizes: Sizes of parent and result in bytes.
        force: Record exceeded bounds as forced.
    """
    utterances, identical, rates = texts or (0, None, [])
    exceeded = find_exceeded_bounds(bounds, errors, identical, rates)
    return Gate(
        evaluation=evaluation,
        relative_error={role: round(error, 6) for role, error in errors.items()},
        same_choices=same_choices,
        utterances=utterances,
        identical=identical,
        error_rates=rates,
        parent_bytes=sizes[0],
        bytes=sizes[1],
        exceeded=exceeded,
        forced=bool(exceeded) and force,
    )
