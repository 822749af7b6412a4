"""The gate: a quantized artifact against its parent, on the same inputs and on the same audio."""

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
    """A probe and what the parent's graph gives for it."""

    probe: Probe
    outputs: Outputs


@dataclass(frozen=True, slots=True)
class Heard:
    """Evaluation utterances as one model hears them."""

    utterances: list[Utterance]
    transcripts: list[Transcript]

    @property
    def tokens(self) -> list[list[list[int]]]:
        """Token ids by utterance and segment."""
        return [[segment.tokens for segment in transcript.segments] for transcript in self.transcripts]


def compare_graphs(artifact: Artifact, expected: list[Expected]) -> tuple[dict[str, float], float | None]:
    """Relative error of each role's outputs over all probes, and the share of equal choices (None without any)."""
    errors: dict[str, float] = {}
    same = total = 0
    for role in dict.fromkeys(item.probe.role for item in expected):
        session = make_session(artifact.graph_path(role), ProviderSpec())
        types = {tensor.name: tensor.dtype for tensor in artifact.manifest.graphs[role].inputs}
        difference = norm = 0.0
        for item in (item for item in expected if item.probe.role == role):
            # A cache in half precision takes the parent's empty one; everything else has the parent's types.
            feeds = {name: array.astype(types[name], copy=False) for name, array in item.probe.feeds.items()}
            found = dict(zip(item.probe.outputs, session.run(item.probe.outputs, feeds), strict=True))
            for name in item.probe.outputs:
                exact = item.outputs[name].astype(np.float64)
                difference += float(np.square(found[name] - exact).sum())
                norm += float(np.square(exact).sum())
            if choice := item.probe.choice:
                equal = found[choice].argmax(-1) == item.outputs[choice].argmax(-1)
                same, total = same + int(equal.sum()), total + equal.size
        errors[role] = math.sqrt(difference / max(norm, 1e-30))
    return errors, same / total if total else None


def compare_texts(parent: Heard, quantized: Heard) -> tuple[float, list[ErrorRate]]:
    """Share of utterances with equal tokens, and the error rates of both by language."""
    pairs = list(zip(parent.tokens, quantized.tokens, strict=True))
    texts = [[transcript.text for transcript in heard.transcripts] for heard in (parent, quantized)]
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
    return float(np.mean([a == b for a, b in pairs])), rates


def exceeded(bounds: Bounds, errors: dict[str, float], identical: float | None, rates: list[ErrorRate]) -> list[str]:
    """The bounds that were not kept, in words. NaN keeps none."""
    found = [
        f"relative error of the {role} is {error:.4f}, more than {bounds.relative(role):g}"
        for role, error in errors.items()
        if not error <= bounds.relative(role)
    ]
    if identical is not None and not identical >= bounds.identical:
        found.append(f"{identical:.1%} of the utterances have the parent's tokens, fewer than {bounds.identical:.1%}")
    found += [
        f"error rate in {rate.language} rose from {rate.parent:.2%} to {rate.quantized:.2%}, "
        f"more than {100 * bounds.error_rate:g} points"
        for rate in rates
        if not rate.quantized - rate.parent <= bounds.error_rate
    ]
    return found


def render(quantization: Quantization) -> Table:
    """What was found, as a table."""
    gate = quantization.gate
    table = Table("", "parent", quantization.recipe, title=f"evaluated on {gate.evaluation}", title_justify="left")
    table.add_row("size", f"{gate.parent_bytes / 1e6:.1f} MB", f"{gate.bytes / 1e6:.1f} MB")
    for role, graph in quantization.graphs.items():
        table.add_row(f"{role}: nodes", "float32", "\n".join(f"{count} {what}" for what, count in graph.nodes.items()))
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
        what = f"{rate.language}, {rate.unit} wrong of {rate.utterances} utterances"
        table.add_row(what, f"{rate.parent:.2%}", f"{rate.quantized:.2%}")
    return table


def record(
    evaluation: str,
    bounds: Bounds,
    errors: dict[str, float],
    same: float | None,
    texts: tuple[int, float, list[ErrorRate]] | None,
    sizes: tuple[int, int],
    *,
    force: bool,
) -> Gate:
    """The manifest's entry. ``texts`` are utterances, identical share and rates; ``sizes`` of parent and result."""
    utterances, identical, rates = texts or (0, None, [])
    over = exceeded(bounds, errors, identical, rates)
    return Gate(
        evaluation=evaluation,
        relative_error={role: round(error, 6) for role, error in errors.items()},
        same_choices=same,
        utterances=utterances,
        identical=identical,
        error_rates=rates,
        parent_bytes=sizes[0],
        bytes=sizes[1],
        exceeded=over,
        forced=bool(over) and force,
    )
