"""``python -m tools.tiny.gigaam``: make and evaluate the small GigaAM."""

from __future__ import annotations

import logging

import torch
import typer

from tools.tiny import dataset
from tools.tiny.corpora import prepared
from tools.tiny.evaluate import report
from tools.tiny.gigaam import publish
from tools.tiny.gigaam.measure import measure, missed, table
from tools.tiny.gigaam.train import LETTER_WEIGHTS, PLANS, Batches, Trainee, suited
from tools.tiny.loop import run
from tools.tiny.memory import keep_freed_memory
from tools.tiny.options import CHECKPOINTS, LICENCE, WORK, Checkpoint, Fresh, Threads, Work
from tools.tiny.publishing import write_card
from tools.tiny.through_runtime import evaluated

NAME = "gigaam-v3-tiny"
CHECKPOINT = CHECKPOINTS / NAME

app = typer.Typer(
    help="Make and evaluate the small GigaAM.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


def schedule() -> str:
    """Return the plans as a sentence for the card."""
    first, last = PLANS["learned"], PLANS["settled"]
    return (
        f"{first.steps:,} batches of {first.batch} utterances at a peak of {first.peak:g}, then {last.steps:,} at one "
        f"of {last.peak:g}"
    )


@app.command()
def make(work: Work = WORK, out: Checkpoint = CHECKPOINT, threads: Threads = 1) -> None:
    """Generate the corpora, train, and write the checkpoint and its card; takes about half an hour on one core."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    corpora = prepared(work)
    phonemes = dataset.phoneme_table(suited(corpora[0].items))
    trainee = Trainee(len(phonemes) + 1, PLANS["learned"].seed)
    for name, plan in PLANS.items():
        batches = Batches(corpora, phonemes, plan, LETTER_WEIGHTS[name])
        run(trainee, batches, work / f"gigaam-{name}.pt", save_every=100)
    publish.write_checkpoint(trainee.asr, out, LICENCE)
    tables = table(evaluated(measure, NAME, out, work, threads))
    sizes = publish.SIZES
    write_card(out, publish.CARD, trainee.asr, batches.order.items, table=tables, schedule=schedule(), **sizes)


@app.command(name="evaluate")
def evaluate_command(
    work: Work = WORK,
    checkpoint: Checkpoint = CHECKPOINT,
    threads: Threads = 1,
    fresh: Fresh = 0,
) -> None:
    """Print the accuracy of a checkpoint on a held-out set; exit with 1 if it misses a target."""
    figures = evaluated(measure, NAME, checkpoint, work, threads, fresh)
    report(table(figures), missed(figures))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")  # the exporter's libraries log a lot
    logging.getLogger("tiny").setLevel(logging.INFO)
    app()
