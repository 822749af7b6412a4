"""``python -m tests.tiny.gigaam make``: the small GigaAM from nothing — corpora, training, files, evaluation."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer

from export.checkpoints import CHECKPOINTS, locate
from export.package import export_artifact
from quantize.report import Report
from tests.tiny import dataset
from tests.tiny.__main__ import PHASES
from tests.tiny.evaluate import held_out
from tests.tiny.gigaam import publish
from tests.tiny.gigaam.measure import Figures, measure, missed, table
from tests.tiny.gigaam.train import LETTER_WEIGHTS, PLANS, Batches, Trainee, suited
from tests.tiny.loop import train
from tests.tiny.memory import keep_freed_memory
from tests.tiny.synth import RATE, UNHEARD, VARIANTS

NAME = "gigaam-v3-tiny"
REPOSITORY = Path(__file__).resolve().parents[3]
WORK = REPOSITORY / "build" / "tiny"
CHECKPOINT = REPOSITORY / "artifacts" / "checkpoints" / NAME

log = logging.getLogger("tiny")
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)

Work = Annotated[Path, typer.Option(help="Corpora and training state; a second run continues here.")]
Checkpoint = Annotated[Path, typer.Option(help="The checkpoint's folder.")]
Threads = Annotated[int, typer.Option(help="Threads of torch and of the runtime.")]
Fresh = Annotated[int, typer.Option(help="A held-out set of other seeds, by number.")]


def schedule() -> str:
    """The plans in the card's words."""
    first, last = PLANS["learned"], PLANS["settled"]
    return (
        f"{first.steps:,} batches of {first.batch} utterances at a peak of {first.peak:g}, then {last.steps:,} at one "
        f"of {last.peak:g}"
    )


@app.command()
def make(work: Work = WORK, out: Checkpoint = CHECKPOINT, threads: Threads = 1) -> None:
    """Generate the corpora, train, write the checkpoint and its card: about half an hour on one core."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    corpora = []
    for phase in PHASES:
        if not (work / phase.name / "index.json").exists():
            log.info("%s: generating %d utterances", phase.name, phase.utterances)
            dataset.generate(work / phase.name, phase.utterances, phase.seed, joined=phase.joined)
        corpora.append(dataset.Corpus(work / phase.name))
    phonemes = dataset.phoneme_table(suited(corpora[0].items))
    trainee = Trainee(len(phonemes) + 1, PLANS["learned"].seed)
    for name, plan in PLANS.items():
        batches = Batches(corpora, phonemes, plan, LETTER_WEIGHTS[name])
        for done, means in train(trainee, batches, work / f"gigaam-{name}.pt", save_every=100):
            said = ", ".join(f"{term} {value:.4f}" for term, value in means.items())
            log.info("%s: step %d of %d: %s", name, done, plan.steps, said)
    publish.write_checkpoint(trainee.asr, out, REPOSITORY / "LICENSE")
    items = batches.order.items
    publish.write_card(
        out,
        table(_evaluate(work, out, threads)),
        parameters=sum(parameter.numel() for parameter in trainee.asr.parameters()),
        utterances=len(items),
        hours=sum(item.count for item in items) / RATE / 3600,
        voices=len(VARIANTS),
        schedule=schedule(),
    )


@app.command(name="evaluate")
def evaluate_command(
    work: Work = WORK,
    checkpoint: Checkpoint = CHECKPOINT,
    threads: Threads = 1,
    fresh: Fresh = 0,
) -> None:
    """Print the accuracy of a checkpoint on the held-out set; exit 1 when it misses what it must reach."""
    figures = _evaluate(work, checkpoint, threads, fresh)
    typer.echo(table(figures))
    short = missed(figures)
    for sentence in short:
        typer.echo(f"missed: {sentence}", err=True)
    raise typer.Exit(1 if short else 0)


def _evaluate(work: Path, checkpoint: Path, threads: int, fresh: int = 0) -> Figures:
    known = CHECKPOINTS[NAME]
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / NAME
        with Report() as report:
            export_artifact(known, locate(known, checkpoint), out, report)
        return measure(out, held_out(work / "evaluation", fresh), _is_unheard, threads)


def _is_unheard(item: dataset.Item) -> bool:
    return item.voice.split("+")[1] == UNHEARD[item.language]


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")  # the exporter's libraries say a lot
    log.setLevel(logging.INFO)
    app()
