"""``python -m benchmarks.parts ARTIFACT``: what each part of Whisper loses alone, on real speech, by method.

One part has the method while everything else stays float32. The decoder reads the text that the float32 model wrote,
with the audio of the changed encoder, so that one early token does not change all later ones.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
import typer

from benchmarks.markdown import table
from benchmarks.stamp import measured, stamp
from quantize.audio_sets import real_utterances
from quantize.package import Plan, quantize_artifact
from quantize.parent_run import segment_probes
from quantize.progress import Report
from quantize.recipe import W8A8, AnyRule, Bounds, Keep, Recipe, Smoothing, WeightOnly
from runtime import Transcriber
from runtime.audio import load_audio
from runtime.engines.base import Probe
from runtime.errors import AsrError
from runtime.model.artifact import Artifact, open_artifact
from runtime.ort.providers import ProviderSpec
from runtime.ort.session import make_session

log = logging.getLogger("benchmarks")

REPOSITORY = Path(__file__).resolve().parents[1]
TABLE = "decoder: embedding and head"
#: Graph role and node pattern of each part; together they cover all products with weights.
PARTS: dict[str, list[tuple[str, str]]] = {
    "encoder: all": [("encoder", "/encoder/*")],
    "encoder: convolutions": [("encoder", "*/conv?/*")],
    "encoder: queries, keys, values": [("encoder", f"*/self_attn/{each}_proj/*") for each in "qkv"],
    "encoder: attention output": [("encoder", "*/self_attn/out_proj/*")],
    "encoder: first of the feed-forward": [("encoder", "*/fc1/*")],
    "encoder: second of the feed-forward": [("encoder", "*/fc2/*")],
    "encoder: first layer": [("encoder", "*/layers/0/self_attn/*"), ("encoder", "*/layers/0/fc?/*")],
    "cross-attention: keys and values": [("encoder", f"*/encoder_attn/{each}_proj/*") for each in "kv"],
    "decoder: all but embedding and head": [("decoder", "/model/layers/*")],
    "decoder: self-attention": [("decoder", "*/self_attn/*")],
    "decoder: cross-attention": [("decoder", "*/encoder_attn/*")],
    "decoder: first of the feed-forward": [("decoder", "*/fc1/*")],
    "decoder: second of the feed-forward": [("decoder", "*/fc2/*")],
    TABLE: [("decoder", "*embed_tokens*"), ("decoder", "/lm_head/*")],
}
# Loose: this measures errors and refuses none.
_BOUNDS = Bounds(relative_error={"*": 1e9}, words_differ=1.0, error_rate=1.0)


def _w8a8(role: str, node: str) -> AnyRule:
    return W8A8(graph=role, node=node, error_bound=1e9, compensation=True, optional=True)


def _plain_w8a8(role: str, node: str) -> AnyRule:
    return W8A8(graph=role, node=node, error_bound=1e9, optional=True)


def _eight(role: str, node: str) -> AnyRule:
    smoothing = Smoothing()
    return WeightOnly(
        graph=role, node=node, bits=8, block=32, symmetric=True, smoothing=smoothing, compensation=True, optional=True
    )


def _four(role: str, node: str) -> AnyRule:
    return WeightOnly(graph=role, node=node, bits=4, block=32, smoothing=Smoothing(), compensation=True, optional=True)


def _plain_four(role: str, node: str) -> AnyRule:
    return WeightOnly(graph=role, node=node, bits=4, block=32, smoothing=Smoothing(), optional=True)


METHODS: dict[str, Callable[[str, str], AnyRule]] = {
    "int8": _w8a8,
    "int8, plain rounding": _plain_w8a8,
    "8 bits": _eight,
    "4 bits": _four,
    "4 bits, plain rounding": _plain_four,
}


class Loss(NamedTuple):
    """Loss of one model against its parent on the same texts.

    Attributes:
        divergence: mean Kullback-Leibler divergence of the next token's probabilities, in nats.
        other: share of the decisions that differ, from 0 to 1.
    """

    divergence: float
    other: float


def part_recipe(part: str, method: str) -> Recipe:
    """Return a recipe with the method for one part, and float32 for the rest."""
    rules = tuple(METHODS[method](role, node) for role, node in PARTS[part])
    return Recipe(f"{method} in {part}", _BOUNDS, (*rules, Keep(graph="*", optional=True)), name="part")


def find_probes(parent: Artifact, recordings: Sequence[Path]) -> list[list[Probe]]:
    """Return the inputs of the parent's graphs for each recording and the text that the parent writes."""
    engine = Transcriber.from_artifact(parent.path).engine
    return segment_probes(engine, [load_audio(path, engine.sample_rate) for path in recordings])


def log_probabilities(artifact: Artifact, probes: Sequence[Sequence[Probe]]) -> Iterator[npt.NDArray[np.float64]]:
    """Yield the log-probabilities [positions, vocabulary] of each text, from the artifact's own encoder on."""
    sessions = {role: make_session(artifact.graph_path(role), ProviderSpec()) for role in artifact.manifest.graphs}
    for of_recording in probes:
        computed: dict[str, npt.NDArray[np.float32]] = {}
        for probe in of_recording:
            feeds = probe.feeds | {name: array for name, array in computed.items() if name in probe.feeds}
            values = sessions[probe.role].run(probe.outputs, feeds)
            computed |= dict(zip(probe.outputs, values, strict=True))
            if probe.choice:
                logits = computed[probe.choice].astype(np.float64)
                logits = logits.reshape(-1, logits.shape[-1])
                shifted = logits - logits.max(-1, keepdims=True)
                yield shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def loss(parent: Sequence[npt.NDArray[np.float64]], child: Iterator[npt.NDArray[np.float64]]) -> Loss:
    """Compare the probabilities of two models, text by text."""
    divergence, other = [], []
    for exact, actual in zip(parent, child, strict=True):
        divergence.append((np.exp(exact) * (exact - actual)).sum(-1))
        other.append(exact.argmax(-1) != actual.argmax(-1))
    return Loss(float(np.concatenate(divergence).mean()), float(np.concatenate(other).mean()))


def quantized(parent: Artifact, recipe: Recipe, out: Path) -> Artifact:
    """Return the artifact of ``recipe``, without a comparison of texts."""
    shutil.rmtree(out, ignore_errors=True)
    with Report() as report:
        return quantize_artifact(parent, Plan(recipe, force=True, graphs_only=True), out, report)


def measure(
    parent: Artifact, recordings: Sequence[Path], work: Path, methods: Sequence[str] = tuple(METHODS)
) -> Iterator[list[str]]:
    """Yield a row of the table for each part.

    Raises:
        AsrError: a recording cannot be decoded, or the artifact is quantized already.
    """
    probes = find_probes(parent, recordings)
    exact = list(log_probabilities(parent, probes))
    for part in PARTS:
        row = [part]
        for method in methods:
            if part == TABLE and "int8" in method:  # a lookup is no integer product
                row.append("")
                continue
            artifact = quantized(parent, part_recipe(part, method), work / "part")
            found = loss(exact, log_probabilities(artifact, probes))
            log.info("%s, %s: %.2e, %.2f %% other decisions", part, method, found.divergence, 100 * found.other)
            row.append(f"{1e3 * found.divergence:.3f} ({100 * found.other:.2f} %)")
        yield row


def main(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Whisper in float32.")],
    work: Annotated[Path, typer.Option(help="Folder for one artifact at a time.")] = REPOSITORY
    / "build"
    / "benchmarks"
    / "parts",
    limit: Annotated[int | None, typer.Option(min=1, help="Number of recordings; all 40 by default.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"A method, instead of all; repeatable: {'; '.join(METHODS)}."),
    ] = None,
) -> None:
    """Print the table of docs/quantization.md on parts of Whisper; each method takes ten minutes on two cores."""
    methods = method or list(METHODS)
    if unknown := set(methods) - {*METHODS}:
        raise typer.BadParameter(f"unknown method {', '.join(sorted(unknown))}; known are {'; '.join(METHODS)}")
    try:
        parent = open_artifact(artifact)
        recordings = [utterance.audio for utterance in real_utterances("evaluation")][:limit]
        rows = list(measure(parent, recordings, work, methods))
    except AsrError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(table(["quantized alone", *methods], rows))
    typer.echo(f"\n{len(recordings)} recordings. {measured(stamp())}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    log.setLevel(logging.INFO)
    typer.run(main)
