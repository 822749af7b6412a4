"""``python -m tools.tiny.parakeet make``: the small Parakeet from nothing — corpora, training, files, evaluation."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import torch
import typer
from tokenizers import Tokenizer

from tools.tiny import dataset
from tools.tiny.corpora import TRAIN_SEED, prepared
from tools.tiny.evaluate import tell
from tools.tiny.loop import train
from tools.tiny.memory import keep_freed_memory
from tools.tiny.parakeet import publish
from tools.tiny.parakeet.measure import measure, missed, table
from tools.tiny.parakeet.tokenizer import texts, train_tokenizer
from tools.tiny.parakeet.train import LANGUAGES, PLAN, TURNS, Batches, Trainee
from tools.tiny.synth import RATE, VARIANTS
from tools.tiny.through_runtime import evaluated

NAME = "parakeet-tdt-tiny"
REPOSITORY = Path(__file__).resolve().parents[3]
WORK = REPOSITORY / "build" / "tiny"
CHECKPOINT = REPOSITORY / "artifacts" / "checkpoints" / NAME

log = logging.getLogger("tiny")
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)

Work = Annotated[Path, typer.Option(help="Corpora and training state; a second run continues here.")]
Checkpoint = Annotated[Path, typer.Option(help="The checkpoint's folder.")]
Threads = Annotated[int, typer.Option(help="Threads of torch and of the runtime.")]
Fresh = Annotated[int, typer.Option(help="A held-out set of other seeds, by number.")]


@app.command()
def make(work: Work = WORK, out: Checkpoint = CHECKPOINT, threads: Threads = 1) -> None:
    """Generate the corpora, train, write the checkpoint and its card: about an hour on one core."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    corpora = prepared(work)
    if not (work / "parakeet-tokenizer.json").exists():
        train_tokenizer(texts(LANGUAGES, TRAIN_SEED)).save(str(work / "parakeet-tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(work / "parakeet-tokenizer.json"))
    phonemes = dataset.phoneme_table([item for item in corpora[0].items if item.language in LANGUAGES])
    trainee = Trainee(len(phonemes) + 1, PLAN.seed)
    batches = Batches(corpora, TURNS, tokenizer, phonemes, PLAN)
    for done, means in train(trainee, batches, work / "parakeet.pt", save_every=100):
        said = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
        log.info("step %d of %d: %s", done, PLAN.steps, said)
    publish.write_checkpoint(trainee.asr, tokenizer, out, REPOSITORY / "LICENSE")
    items = [item for order in batches.orders for item in order.items]
    publish.write_card(
        out,
        table(evaluated(measure, NAME, out, work, threads)),
        parameters=sum(parameter.numel() for parameter in trainee.asr.parameters()),
        utterances=len(items),
        hours=sum(item.count for item in items) / RATE / 3600,
        voices=len(VARIANTS),
        plan=PLAN,
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
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    app()
