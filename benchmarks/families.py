"""All families at their real sizes with random weights, and other packages: a minute of speech by recipe.

    python -m benchmarks.families prepare              # weights, exports, recipes; the machine need not be idle
    python -m benchmarks --only families --only report # times, memory, cold starts: about a quarter of an hour

Each system runs in its own process, so that its memory is measured alone; those of a model take turns, round by round.
The results of a model are stored in ``WORK/families/NAME.json``; a second run measures the models without results.
Autoregressive decoders are forced to write as many tokens as speech has. The biases of a transducer are set so that
about as many tokens result (:mod:`benchmarks.token_rate`). CTC models have no steps.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Annotated, Any

import jiwer
import numpy as np
import soundfile
import typer

from benchmarks import peers
from benchmarks.artifacts import FLOAT, exported, quantized, run
from benchmarks.children import REPOSITORY, Child, ChildError, first_answer, module
from benchmarks.family_child import STAGES, budget
from benchmarks.scale import recording
from benchmarks.stamp import stamp
from benchmarks.token_rate import set_rate
from runtime.audio.segmentation import speech_pieces
from runtime.model.artifact import open_artifact

log = logging.getLogger("benchmarks")

RATE, SECONDS = 16_000, 60
RECIPES = ("int8", "int4")
COLD_SECONDS, COLD_TOKENS, COLD_STARTS = 2, 8, 3
TOKENS_A_SECOND = 3.0  # as in normal speech
TOKENS = round(TOKENS_A_SECOND * SECONDS)


@dataclass(frozen=True, slots=True)
class Model:
    """A model to measure: its name in ``export`` and in :mod:`tools.random_checkpoint`, and its folder below ``WORK``.

    ``forced``: the number of tokens can be forced. ``language``: set where the model would detect the language first.
    """

    name: str
    family: str
    folder: str
    forced: bool
    rounds: int
    language: str | None = None
    recipes: tuple[str, ...] = RECIPES


MODELS = {
    model.name: model
    for model in (
        Model("qwen3-asr-0.6b", "qwen3-asr", "0.6b", True, 5),
        Model("whisper-large-v3-turbo", "whisper", "whisper-large-v3-turbo", True, 3, "English", ("int8",)),
        Model("parakeet-tdt-0.6b-v3", "parakeet-tdt", "parakeet-tdt-0.6b-v3", False, 5),
        Model("gigaam-v3-ctc", "gigaam-ctc", "gigaam-v3-ctc", False, 5),
        Model("qwen3-asr-1.7b", "qwen3-asr", "1.7b", True, 3),
    )
}
# Takes an hour, so it is measured only if it is named.
OPTIONAL = ("qwen3-asr-1.7b",)


@dataclass(frozen=True, slots=True)
class System:
    """A process to time: its name, the recipe of its graphs, its command and its jobs."""

    name: str
    recipe: str
    command: list[str | Path]
    job: dict[str, Any]
    cold_job: dict[str, Any]
    peer: bool


def measure(work: Path, names: Sequence[str] = ()) -> dict[str, Any]:
    """Return times, memory, sizes and cold starts of every system of every model, stored model by model."""
    selected = names or [name for name in MODELS if name not in OPTIONAL or _results_file(work, name).exists()]
    for name in selected:
        if not _results_file(work, name).exists():
            artifacts = prepare(work, MODELS[name])
            results = measure_model(work, MODELS[name], artifacts) | {"stamp": stamp()}
            _results_file(work, name).parent.mkdir(parents=True, exist_ok=True)
            _results_file(work, name).write_text(json.dumps(results, indent=1))
    return {
        "clip": {"seconds": SECONDS, "cold_seconds": COLD_SECONDS, "tokens_a_second": TOKENS_A_SECOND},
        "models": {name: json.loads(_results_file(work, name).read_text()) for name in selected},
        "reasons": [[family, package, why] for (family, package), why in peers.REASONS.items()],
    }


def _results_file(work: Path, name: str) -> Path:
    return work / "families" / f"{name}.json"


def prepare(work: Path, model: Model) -> dict[str, Path]:
    """Return a model's artifacts by recipe; make what does not exist of them and of what other packages need."""
    folder = work / model.folder
    checkpoint = folder / "checkpoint"
    if not (folder / FLOAT).exists():
        if not checkpoint.exists():
            run("tools.random_checkpoint", model.name, checkpoint)
        if model.family == "parakeet-tdt":
            set_rate(checkpoint, TOKENS_A_SECOND)
            run("benchmarks.token_rate", model.name, checkpoint, folder / FLOAT)
    artifacts = {FLOAT: exported(model.name, folder, checkpoint)}
    if not all((folder / recipe).exists() for recipe in model.recipes):
        rmtree(folder / "peers", ignore_errors=True)  # onnx-ir refuses weights that have a second hard link
    for recipe in model.recipes:
        artifacts[recipe] = quantized(artifacts[FLOAT], recipe)[0]
    if model.family in peers.PEERS:
        peers.make_environment()
        for peer in peers.PEERS[model.family]:
            for recipe in peer.recipes:
                peer.folder(artifacts[recipe])
    return artifacts


def measure_model(
    work: Path, model: Model, artifacts: dict[str, Path], *, rounds: int | None = None, cold_starts: int = COLD_STARTS
) -> dict[str, Any]:
    """Measure every system of a model in turns: our runtime over all ``artifacts``, other packages where they can."""
    clip, cold = recording(work, SECONDS), recording(work, COLD_SECONDS)
    runs: dict[str, list[dict[str, Any]]] = {}
    children: dict[str, Child] = {}
    systems = _ours(model, artifacts, clip, cold)
    with ExitStack() as stack:

        def start(system: System) -> dict[str, Any]:
            children[system.name] = stack.enter_context(Child(system.command, system.job))
            ready, runs[system.name] = children[system.name].answer(), []
            log.info("%s, %s: ready", model.name, system.name)
            return ready

        (ready, *_) = [start(system) for system in systems]
        pieces = cut(work, clip, ready["segment_seconds"])
        short = cut(work, cold, ready["segment_seconds"])
        failures: dict[str, str] = {}
        others = [(each, recipe) for each in peers.PEERS.get(model.family, ()) for recipe in each.recipes]
        for peer, recipe in others:
            if recipe not in artifacts:
                continue
            try:
                system = _peer(model, peer, recipe, peer.folder(artifacts[recipe]), pieces, short)
                start(system)
            except ChildError as error:  # a failure of another package is a result
                failures[f"{peer.package}, {recipe}"] = error.reason
                log.warning("%s: %s", model.name, error)
            else:
                systems.append(system)
        for number in range(rounds or model.rounds):
            for name, child in children.items():
                runs[name].append(child.ask())
            log.info("%s, round %d: %s", model.name, number + 1, {n: round(r[-1]["total"], 2) for n, r in runs.items()})
    starts: dict[str, list[float]] = {system.name: [] for system in systems}
    for _ in range(cold_starts):
        for system in systems:
            starts[system.name].append(first_answer(system.command, system.cold_job)[0])
    return {
        "family": model.family,
        "segments": len(pieces),
        "systems": {
            system.name: summary(runs[system.name], starts[system.name])
            | (
                {
                    "way": system.job["way"],
                    "agreement": agreement(runs[system.recipe][0]["texts"], runs[system.name][0]["texts"]),
                }
                if system.peer
                else {"bytes": open_artifact(artifacts[system.recipe]).size}
            )
            for system in systems
        },
        "failures": failures,
    }


def _ours(model: Model, artifacts: dict[str, Path], clip: Path, cold: Path) -> list[System]:
    systems = []
    for recipe, artifact in artifacts.items():
        job: dict[str, Any] = {"ask": "measure", "model": str(artifact), "clip": str(clip), "language": model.language}
        job["tokens"] = TOKENS if model.forced else None
        short = job | {"ask": "cold", "clip": str(cold), "tokens": COLD_TOKENS if model.forced else None}
        systems.append(System(recipe, recipe, module("benchmarks.family_child"), job, short, peer=False))
    return systems


def _peer(model: Model, peer: peers.Peer, recipe: str, folder: Path, pieces: list[Path], short: list[Path]) -> System:
    """Return a package over the graphs in ``folder``, one by one or all at once, whichever is faster for it.

    Raises:
        ChildError: the package cannot run them.
    """
    tokens, command = budget(TOKENS, len(pieces)) if model.forced else None, peers.command()
    _, answer = first_answer(command, peer.job("way", folder, pieces, tokens))
    job = peer.job("measure", folder, pieces, tokens, answer["way"])
    cold_job = peer.job("cold", folder, short, COLD_TOKENS if model.forced else None)
    return System(f"{peer.package}, {recipe}", recipe, command, job, cold_job, peer=True)


def cut(work: Path, clip: Path, longest: float) -> list[Path]:
    """Cut a recording as the runtime does, and store each segment as an array in a file, for other packages."""
    folder = work / "families" / f"{clip.stem}-pieces-{longest:g}"
    folder.mkdir(parents=True, exist_ok=True)
    samples, rate = soundfile.read(clip, dtype="float32")
    paths = []
    for number, piece in enumerate(speech_pieces([samples], rate, longest)):
        paths.append(folder / f"{number:02d}.npy")
        np.save(paths[-1], piece.samples)
    return paths


def summary(runs: Sequence[dict[str, Any]], starts: Sequence[float]) -> dict[str, Any]:
    """Return the medians of runs and cold starts, all totals, and the largest memory."""
    row = {
        "total": statistics.median(each["total"] for each in runs),
        "totals": sorted(each["total"] for each in runs),
        "tokens": runs[0]["tokens"],
        "resident_bytes": max(each["resident_bytes"] for each in runs),
        "cold_start": statistics.median(starts) if starts else None,
        "cold_starts": sorted(starts),
    }
    if "stages" in runs[0]:
        row["stages"] = {stage: statistics.median(each["stages"][stage] for each in runs) for stage in STAGES}
    return row


def agreement(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """Return the agreement of two texts from 0 to 1: 1 minus the character error rate, without spaces."""
    reference, hypothesis = ("".join("".join(each).split()) for each in (ours, theirs))
    if not reference:
        return float(not hypothesis)
    return max(0.0, 1.0 - float(jiwer.cer(reference, hypothesis)))


app = typer.Typer(
    help="Prepare and measure all families at their real sizes; `python -m benchmarks --only families` does both.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
Work = Annotated[Path, typer.Option(help="Folder for artifacts and recordings, as of `python -m benchmarks`.")]
Names = Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help=", ".join(MODELS))]


@app.command(name="prepare")
def prepare_command(names: Names = None, work: Work = REPOSITORY / "build" / "benchmarks") -> None:
    """Make random weights, artifacts, and the forms that other packages read."""
    for name in names or [name for name in MODELS if name not in OPTIONAL]:
        prepare(work, MODELS[name])


@app.command(name="measure")
def measure_command(names: Names = None, work: Work = REPOSITORY / "build" / "benchmarks") -> None:
    """Measure models that have no results yet, and print all results as JSON."""
    typer.echo(json.dumps(measure(work, names or ())))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    app()
