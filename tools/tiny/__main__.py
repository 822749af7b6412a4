"""``python -m tools.tiny``: make and evaluate the small Qwen3-ASR, and write sets of recordings.

The other families have their own commands: ``python -m tools.tiny.whisper``, ``.parakeet`` and ``.gigaam``.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from tokenizers import Tokenizer
from transformers import Qwen3ASRForConditionalGeneration

from runtime.errors import AsrError
from tools.tiny import dataset
from tools.tiny.corpora import PHASES, TRAIN_SEED, prepared
from tools.tiny.evaluate import Floats, evaluate, held_out, missed, report, table
from tools.tiny.loop import run
from tools.tiny.options import CHECKPOINTS, LICENCE, REPOSITORY, WORK, Checkpoint, Threads, Work
from tools.tiny.publishing import write_card
from tools.tiny.qwen3_asr import publish
from tools.tiny.qwen3_asr.model import parse, transcribe
from tools.tiny.qwen3_asr.tokenizer import train_tokenizer
from tools.tiny.qwen3_asr.train import Batches, Trainee
from tools.tiny.qwen3_asr.twin import write_twin
from tools.tiny.samples import write_evaluation, write_folder, write_samples
from tools.tiny.sentences import LANGUAGES, sentence

CHECKPOINT = CHECKPOINTS / "qwen3-asr-tiny"

app = typer.Typer(
    help="Make and evaluate the small Qwen3-ASR, and write sets of recordings. Other families: python -m "
    "tools.tiny.whisper, tools.tiny.parakeet, tools.tiny.gigaam.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


def schedule() -> str:
    """Return the phases as a sentence for the card."""
    return ", then ".join(
        f"{phase.plan.steps:,} steps with {phase.joined:.0%} joined utterances at a peak of {phase.plan.peak:g}"
        for phase in PHASES
    )


def corpus_texts(count: int = 20_000) -> list[str]:
    """Return texts to train the tokenizer on: sentences, contexts, and words of the prompt."""
    rng = random.Random(TRAIN_SEED)
    texts = ["language English", "language Russian", "language Chinese", "language None"] * 400
    texts += ["system", "user", "assistant"] * 400
    for index in range(count):
        spoken = sentence(list(LANGUAGES)[index % 3], rng, with_context=index % 4 == 0)
        texts += [spoken.text, spoken.context]
    return texts


@app.command()
def make(
    work: Work = WORK,
    out: Checkpoint = CHECKPOINT,
    threads: Threads = 2,
) -> None:
    """Generate the corpora, train, and write the checkpoint and its card; takes about two hours on two cores."""
    torch.set_num_threads(threads)
    corpora = prepared(work)
    if not (work / "tokenizer.json").exists():
        train_tokenizer(corpus_texts()).save(str(work / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    phonemes = dataset.phoneme_table(corpora[0].items)
    trainee = Trainee(tokenizer, len(phonemes) + 1, PHASES[0].plan.seed)
    for phase, corpus in zip(PHASES, corpora, strict=True):
        run(trainee, Batches(corpus, tokenizer, phonemes, phase.plan), work / f"{phase.name}.pt")
    publish.write_checkpoint(trainee.asr, tokenizer, out, LICENCE)
    tables = table(_evaluate(work, out))
    items = [item for corpus in corpora for item in corpus.items]
    write_card(out, publish.CARD, trainee.asr, items, table=tables, schedule=schedule())


@app.command(name="evaluate")
def evaluate_command(work: Work = WORK, checkpoint: Checkpoint = CHECKPOINT, threads: Threads = 2) -> None:
    """Print the accuracy of a checkpoint on the held-out set; exit with 1 if it misses a target."""
    torch.set_num_threads(threads)
    figures = _evaluate(work, checkpoint)
    report(table(figures), missed(figures))


@app.command()
def samples(out: Annotated[Path, typer.Option(help="Folder to write to.")] = REPOSITORY / "tests" / "data") -> None:
    """Write the sample recordings and the evaluation set of tests/data."""
    write_samples(out)
    write_evaluation(out / "evaluation")


@app.command(name="held-out")
def held_out_command(
    out: Annotated[Path, typer.Option(help="Folder to write to; it must not exist.")], work: Work = WORK
) -> None:
    """Write the 300 held-out utterances of the card's figures as a folder of recordings."""
    with _short_errors():
        data = held_out(work / "evaluation")
        write_folder(data.items, data.clips, out)
    typer.echo(out)


@app.command()
def twin(
    checkpoint: Checkpoint = CHECKPOINT,
    out: Annotated[Path, typer.Option(help="Folder to write to; it must not exist.")] = WORK / "twin",
) -> None:
    """Write a checkpoint with the same function, in which a few channels of activations are 32 or 64 times as large."""
    with _short_errors():
        chosen = write_twin(checkpoint, out)
    channels = sum(len(outliers.factors) for outliers in chosen)
    typer.echo(f"{channels} channels of {len(chosen)} activations", err=True)
    typer.echo(out)


@contextmanager
def _short_errors() -> Iterator[None]:
    """Print errors of this project to standard error without a traceback, and exit with 2."""
    try:
        yield
    except AsrError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


def _evaluate(work: Path, checkpoint: Path) -> dict[str, float]:
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    model = Qwen3ASRForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()

    def recognize(clips: Sequence[Floats], contexts: Sequence[str]) -> list[tuple[str, str]]:
        order = sorted(range(len(clips)), key=lambda index: len(clips[index]))
        results = [("", "")] * len(clips)
        for start in range(0, len(order), 20):
            rows = order[start : start + 20]
            tokens = transcribe(model, tokenizer, [clips[i] for i in rows], [contexts[i] for i in rows])
            for row, ids in zip(rows, tokens, strict=True):
                results[row] = parse(tokenizer, ids)
        return results

    return evaluate(recognize, held_out(work / "evaluation"))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    app()
