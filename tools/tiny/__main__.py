"""``python -m tools.tiny make``: the small checkpoint from nothing — corpus, tokenizer, training, evaluation, files."""

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
from tools.tiny.evaluate import Floats, evaluate, held_out, is_unheard, missed, table, tell
from tools.tiny.loop import train
from tools.tiny.qwen3_asr import publish
from tools.tiny.qwen3_asr.model import parse, transcribe
from tools.tiny.qwen3_asr.tokenizer import train_tokenizer
from tools.tiny.qwen3_asr.train import Batches, Trainee
from tools.tiny.qwen3_asr.twin import write_twin
from tools.tiny.samples import write_evaluation, write_folder, write_samples
from tools.tiny.sentences import LANGUAGES, sentence
from tools.tiny.synth import RATE, VARIANTS

log = logging.getLogger("tiny")
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)

REPOSITORY = Path(__file__).resolve().parents[2]

Work = Annotated[Path, typer.Option(help="Corpora and training state; a second run continues here.")]
Checkpoint = Annotated[Path, typer.Option(help="The checkpoint's folder.")]
Threads = Annotated[int, typer.Option(help="Threads of torch.")]
WORK = REPOSITORY / "build" / "tiny"
CHECKPOINT = REPOSITORY / "artifacts" / "checkpoints" / "qwen3-asr-tiny"


def schedule() -> str:
    """The phases in the card's words."""
    return ", then ".join(
        f"{phase.plan.steps:,} steps with {phase.joined:.0%} joined utterances at a peak of {phase.plan.peak:g}"
        for phase in PHASES
    )


def corpus_texts(count: int = 20_000) -> list[str]:
    """What the tokenizer is trained on: sentences, contexts, and the words of the prompt."""
    rng = random.Random(TRAIN_SEED)
    texts = ["language English", "language Russian", "language Chinese", "language None"] * 400
    texts += ["system", "user", "assistant"] * 400
    for index in range(count):
        made = sentence(list(LANGUAGES)[index % 3], rng, with_context=index % 4 == 0)
        texts += [made.text, made.context]
    return texts


@app.command()
def make(
    work: Work = WORK,
    out: Checkpoint = CHECKPOINT,
    threads: Threads = 2,
) -> None:
    """Generate the corpus, train, write the checkpoint and its card: about two hours on two cores."""
    torch.set_num_threads(threads)
    corpora = prepared(work)
    if not (work / "tokenizer.json").exists():
        train_tokenizer(corpus_texts()).save(str(work / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    phonemes = dataset.phoneme_table(corpora[0].items)
    trainee = Trainee(tokenizer, len(phonemes) + 1, PHASES[0].plan.seed)
    for phase, corpus in zip(PHASES, corpora, strict=True):
        batches = Batches(corpus, tokenizer, phonemes, phase.plan)
        for done, means in train(trainee, batches, work / f"{phase.name}.pt"):
            said = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
            log.info("%s: step %d of %d: %s", phase.name, done, phase.plan.steps, said)
    publish.write_checkpoint(trainee.asr, tokenizer, out, REPOSITORY / "LICENSE")
    figures = _evaluate(work, out)
    publish.write_card(
        out,
        table(figures),
        parameters=sum(parameter.numel() for parameter in trainee.asr.parameters()),
        utterances=sum(map(len, corpora)),
        hours=sum(item.count for corpus in corpora for item in corpus.items) / RATE / 3600,
        voices=len(VARIANTS),
        schedule=schedule(),
    )


@app.command(name="evaluate")
def evaluate_command(work: Work = WORK, checkpoint: Checkpoint = CHECKPOINT, threads: Threads = 2) -> None:
    """Print the accuracy of a checkpoint on the held-out set; exit 1 when it misses what it must reach."""
    torch.set_num_threads(threads)
    figures = _evaluate(work, checkpoint)
    tell(table(figures), missed(figures))


@app.command()
def samples(out: Annotated[Path, typer.Option(help="Where to.")] = REPOSITORY / "tests" / "data") -> None:
    """Write the sample recordings again, and the evaluation set beside them."""
    write_samples(out)
    write_evaluation(out / "evaluation")


@app.command(name="held-out")
def held_out_command(
    out: Annotated[Path, typer.Option(help="Where to: a folder that does not exist.")], work: Work = WORK
) -> None:
    """Write the 300 held-out utterances, as the card's figures are measured on, as a folder of recordings."""
    with _one_sentence():
        data = held_out(work / "evaluation")
        write_folder(data.items, data.clips, out)
    typer.echo(out)


@app.command()
def twin(
    checkpoint: Checkpoint = CHECKPOINT,
    out: Annotated[Path, typer.Option(help="Where to: a folder that does not exist.")] = WORK / "twin",
) -> None:
    """Write a checkpoint of the same function with a few channels of activations 32 or 64 times as large."""
    with _one_sentence():
        chosen = write_twin(checkpoint, out)
    channels = sum(len(outliers.factors) for outliers in chosen)
    typer.echo(f"{channels} channels at {len(chosen)} places", err=True)
    typer.echo(out)


@contextmanager
def _one_sentence() -> Iterator[None]:
    """What this project raises on purpose is one sentence on standard error, and exit code 2."""
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

    return evaluate(recognize, held_out(work / "evaluation"), is_unheard)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    app()
