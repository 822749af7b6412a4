"""``python -m benchmarks.four_bits``: errors that 4 bits cause in the small Parakeet, by part and by recipe.

Each part alone has 4 bits while everything else stays float32. The held-out set has 700 words of Russian, so one point
is seven words: three more sets with other seeds are used, and each rise has an interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jiwer
import numpy as np
import numpy.typing as npt
import typer

from benchmarks.artifacts import exported
from export.checkpoints import CHECKPOINTS
from quantize.package import Plan, quantize_artifact
from quantize.progress import Report
from quantize.recipe import Bounds, Keep, Recipe, Smoothing, WeightOnly, load_recipe
from runtime import Request, Transcriber
from runtime.model.artifact import Artifact, open_artifact
from tools.tiny.dataset import Item
from tools.tiny.evaluate import Floats, held_out, normalize
from tools.tiny.parakeet.train import LANGUAGES
from tools.tiny.synth import RATE

REPOSITORY = Path(__file__).resolve().parents[1]
NAME = "parakeet-tdt-tiny"
#: Graph roles and node patterns of each part; together they cover all products but the convolutions of the stem.
PARTS = {
    "feed forward": [("encoder", "*/feed_forward*")],
    "attention": [("encoder", "*/self_attn/*")],
    "convolution modules": [("encoder", "*/conv/pointwise*")],
    "before and behind the layers": [("encoder", "/subsampling/linear/*"), ("encoder", "/head/*")],
    "prediction network": [("decoder_joint", "/layers/*")],
    "token table, joint projection and head": [
        ("decoder_joint", "/embedding/*"),
        ("decoder_joint", "/decoder_projector/*"),
        ("decoder_joint", "/head/*"),
    ],
}
RECIPES = ("int4", "mixed", "int8")

ALL = "all of these"

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Recognized:
    """Errors and words of every utterance, [n, 2] by language code, and its tokens by segment."""

    counts: dict[str, Counts]
    tokens: list[list[list[int]]]


def part_recipe(part: str) -> Recipe:
    """Return a recipe with 4 bits, as in ``int4``, for one part or for :data:`ALL`, and float32 for the rest."""
    nodes = [each for nodes in PARTS.values() for each in nodes] if part == ALL else PARTS[part]
    four = [WeightOnly(graph=role, node=node, bits=4, block=64, smoothing=Smoothing()) for role, node in nodes]
    bounds = Bounds(relative_error={"*": 1.0}, words_differ=1.0, error_rate=1.0)
    return Recipe(f"4 bits: {part}", bounds, (*four, Keep(graph="*")), name=part.replace(",", "").replace(" ", "-"))


def quantized(parent: Artifact, recipe: Recipe, folder: Path) -> Artifact:
    """Return the artifact of a recipe in ``folder``, made if it does not exist, also beyond the recipe's bounds."""
    out = folder / recipe.name
    if not out.exists():
        with Report() as report:
            quantize_artifact(parent, Plan(recipe, force=True, graphs_only=True), out, report)
    return open_artifact(out)


def recognize(artifact: Artifact, clips: Sequence[tuple[Item, Floats]]) -> Recognized:
    """Transcribe the clips in the languages of the model, and count errors."""
    transcriber = Transcriber.from_artifact(artifact.path)
    counts: dict[str, Counts] = {}
    tokens: list[list[list[int]]] = []
    for code in LANGUAGES:
        chosen = [(item, clip) for item, clip in clips if item.language == code]
        outcomes = transcriber.transcribe_many([Request(clip, sample_rate=RATE) for _, clip in chosen])
        transcripts = [outcome.result() for outcome in sorted(outcomes, key=lambda outcome: outcome.index)]
        rows = [errors(item.text, each.text) for (item, _), each in zip(chosen, transcripts, strict=True)]
        counts[code] = np.array(rows, np.int64)
        tokens += [[segment.tokens for segment in each.segments] for each in transcripts]
    return Recognized(counts, tokens)


def errors(truth: str, text: str) -> tuple[int, int]:
    """Return the word errors of ``text`` and the number of words of ``truth``, without case and punctuation."""
    words = jiwer.process_words(normalize(truth), normalize(text))
    return words.substitutions + words.deletions + words.insertions, len(normalize(truth).split())


def rise(before: Counts, after: Counts) -> tuple[float, float]:
    """Return the rise of the error rate in percentage points, and half of its 95 % interval over utterances."""
    change = (after - before)[:, 0]
    words = int(before[:, 1].sum())
    return 100 * change.sum() / words, 196 * float(np.sqrt(len(change)) * change.std()) / words


def row(name: str, artifact: Artifact, before: Recognized, after: Recognized) -> str:
    """Return a row of the table in Markdown."""
    cells = [name, f"{artifact.size / 1e6:.2f} MB"]
    for code in LANGUAGES:
        points, half = rise(before.counts[code], after.counts[code])
        wrong, words = after.counts[code].sum(0)
        cells += [f"{wrong / words:.2%}", f"{points:+.2f} ± {half:.2f}"]
    same = [one == other for one, other in zip(before.tokens, after.tokens, strict=True)]
    quantization = artifact.manifest.quantization
    moved = quantization.gate.relative_error if quantization else {}
    cells += [f"{np.mean(same):.1%}", " / ".join(f"{error:.4f}" for error in moved.values())]
    return f"| {' | '.join(cells).replace('%', ' %')} |"


def main(
    work: Annotated[Path, typer.Option(help="Folder for artifacts; a second run reuses them.")] = REPOSITORY
    / "build"
    / "benchmarks"
    / "four-bits",
    corpora: Annotated[
        Path, typer.Option(help="Folder for held-out sets, generated if they do not exist.")
    ] = REPOSITORY / "build" / "tiny" / "evaluation",
    sets: Annotated[int, typer.Option(min=1, help="Number of held-out sets of 200 utterances each.")] = 4,
) -> None:
    """Print the table of docs/quantization.md on 4 bits; takes a quarter of an hour on one core."""
    clips: list[tuple[Item, Floats]] = []
    for fresh in range(sets):
        data = held_out(corpora, fresh)
        clips += zip(data.items, data.clips, strict=True)
    parent = open_artifact(exported(NAME, work, CHECKPOINTS[NAME].bundled))
    before = recognize(parent, clips)
    languages = " | ".join(f"{language} | points" for language in LANGUAGES.values())
    typer.echo(f"| 4 bits in | size | {languages} | same tokens | relative error, encoder / decoder |")
    typer.echo("|---|---|---|---|---|---|---|---|")
    typer.echo(row("nothing: float32", parent, before, before))
    parts = [(part, part_recipe(part)) for part in (*PARTS, ALL)]
    for name, recipe in parts + [(f"recipe `{name}`", load_recipe(name)) for name in RECIPES]:
        artifact = quantized(parent, recipe, work)
        typer.echo(row(name, artifact, before, recognize(artifact, clips)))


if __name__ == "__main__":
    typer.run(main)
