"""``python -m tools.tiny.parakeet``: make and evaluate the small Parakeet."""

from __future__ import annotations

import logging

import torch
import typer
from tokenizers import Tokenizer

from tools.tiny import dataset
from tools.tiny.corpora import TRAIN_SEED, prepared
from tools.tiny.evaluate import report
from tools.tiny.loop import run
from tools.tiny.memory import keep_freed_memory
from tools.tiny.options import CHECKPOINTS, LICENCE, WORK, Checkpoint, Fresh, Threads, Work
from tools.tiny.parakeet import publish
from tools.tiny.parakeet.measure import measure, missed, table
from tools.tiny.parakeet.tokenizer import texts, train_tokenizer
from tools.tiny.parakeet.train import LANGUAGES, PLAN, TURNS, Batches, Trainee
from tools.tiny.publishing import write_card
from tools.tiny.through_runtime import evaluated

NAME = "parakeet-tdt-tiny"
CHECKPOINT = CHECKPOINTS / NAME

app = typer.Typer(
    help="Make and evaluate the small Parakeet.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


@app.command()
def make(work: Work = WORK, out: Checkpoint = CHECKPOINT, threads: Threads = 1) -> None:
    """Generate the corpora, train, and write the checkpoint and its card; takes about an hour on one core."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    corpora = prepared(work)
    if not (work / "parakeet-tokenizer.json").exists():
        train_tokenizer(texts(LANGUAGES, TRAIN_SEED)).save(str(work / "parakeet-tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(work / "parakeet-tokenizer.json"))
    phonemes = dataset.phoneme_table([item for item in corpora[0].items if item.language in LANGUAGES])
    trainee = Trainee(len(phonemes) + 1, PLAN.seed)
    batches = Batches(corpora, TURNS, tokenizer, phonemes, PLAN)
    run(trainee, batches, work / "parakeet.pt", save_every=100)
    publish.write_checkpoint(trainee.asr, tokenizer, out, LICENCE)
    items = [item for order in batches.orders for item in order.items]
    tables = table(evaluated(measure, NAME, out, work, threads))
    values = {"steps": PLAN.steps, "batch": PLAN.batch, "peak": PLAN.peak}
    write_card(out, publish.CARD, trainee.asr, items, table=tables, **values)


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
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    app()
