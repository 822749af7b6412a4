"""``python -m tools.tiny.gigaam make``: the small GigaAM from nothing — corpora, training, files, evaluation."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import torch
import typer

from tools.tiny import dataset
from tools.tiny.corpora import prepared
from tools.tiny.evaluate import tell
from tools.tiny.gigaam import publish
from tools.tiny.gigaam.measure import measure, missed, table
from tools.tiny.gigaam.train import LETTER_WEIGHTS, PLANS, Batches, Trainee, suited
from tools.tiny.loop import train
from tools.tiny.memory import keep_freed_memory
from tools.tiny.synth import RATE, VARIANTS
from tools.tiny.through_runtime import evaluated

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
    corpora = prepared(work)
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
        table(evaluated(measure, NAME, out, work, threads)),
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
    figures = evaluated(measure, NAME, checkpoint, work, threads, fresh)
    tell(table(figures), missed(figures))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")  # the exporter's libraries say a lot
    log.setLevel(logging.INFO)
    app()
