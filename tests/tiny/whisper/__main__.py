"""``python -m tests.tiny.whisper make``: the small Whisper from nothing — corpora, tokenizer, training, evaluation,
files.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from tokenizers import Tokenizer

from tests.tiny import dataset
from tests.tiny.corpora import prepared
from tests.tiny.evaluate import tell
from tests.tiny.loop import Plan, Source, train
from tests.tiny.synth import RATE, VARIANTS
from tests.tiny.through_runtime import evaluated
from tests.tiny.whisper import publish
from tests.tiny.whisper.evaluate import evaluate, missed, table
from tests.tiny.whisper.tokenizer import train_tokenizer
from tests.tiny.whisper.train import ClipBatches, Guide, Trainee, WindowBatches

log = logging.getLogger("tiny.whisper")
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)

NAME = "whisper-turbo-tiny"
REPOSITORY = Path(__file__).resolve().parents[3]
WORK = REPOSITORY / "build" / "tiny"
CHECKPOINT = REPOSITORY / "artifacts" / "checkpoints" / NAME

# A window costs as much as ten sentences, so most is learned on sentences alone, then on several of them anywhere in a
# window, and at last on whole windows.
SENTENCES = Plan(steps=3_000, batch=16, peak=2e-3, warmup=200, seed=17)
PASSAGES = Plan(steps=700, batch=16, peak=1.2e-3, warmup=60, seed=18)
WINDOWS = Plan(steps=400, batch=4, peak=6e-4, warmup=10, seed=19)
JOINED = Plan(steps=600, batch=10, peak=1.2e-3, warmup=30, seed=20)
JOINED_GUIDE, JOINED_TIMED = Guide(((0, 0), (1, 1), (2, 1)), 0.4), 0.3
ANYWHERE = Plan(steps=1_000, batch=12, peak=1.2e-3, warmup=30, seed=21)
AGAIN = Plan(steps=1_200, batch=12, peak=1.2e-3, warmup=30, seed=22)
SHORT = Plan(steps=1_600, batch=16, peak=1.2e-3, warmup=30, seed=23)
LONG = Plan(steps=1_000, batch=12, peak=1e-3, warmup=30, seed=24)
SILENT_SHORT = Plan(steps=600, batch=10, peak=8e-4, warmup=20, seed=25)
SILENT_LONG = Plan(steps=400, batch=8, peak=8e-4, warmup=20, seed=26)
WINDOWS_AGAIN = Plan(steps=500, batch=4, peak=6e-4, warmup=10, seed=27)
PLAIN_SHORT = Plan(steps=500, batch=10, peak=8e-4, warmup=20, seed=28)
PLAIN_LONG = Plan(steps=400, batch=8, peak=8e-4, warmup=20, seed=29)
LAST = Plan(steps=300, batch=4, peak=6e-4, warmup=10, seed=30)
PLAIN_TIMED = 0.1
# English was heard least well: its words are the most.
PLAIN_SHARES = {"en": 1.0, "ru": 0.5, "zh": 0.5}
ANYWHERE_GUIDE = Guide(((0, 0), (1, 1), (2, 1)), 0.4, blur=3)
WINDOWS_GUIDE = replace(ANYWHERE_GUIDE, doubt=0.1)
LONGEST_SENTENCE = 4.5
LATEST_ROW = 900

Work = Annotated[Path, typer.Option(help="Corpora and training state; a second run continues here.")]
Checkpoint = Annotated[Path, typer.Option(help="The checkpoint's folder.")]
Threads = Annotated[int, typer.Option(help="Threads of torch and of the runtime.")]
Fresh = Annotated[int, typer.Option(help="A held-out set of other seeds, by number.")]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What training begins with."""

    corpora: list[dataset.Corpus]
    tokenizer: Tokenizer
    phonemes: dict[str, int]


def prepare(work: Path) -> Prepared:
    """Generate (once) the corpora, which are those of the small Qwen3-ASR, and train the tokenizer."""
    corpora = prepared(work)
    saved = work / "whisper-tokenizer.json"
    if not saved.exists():
        train_tokenizer().save(str(saved))
    return Prepared(corpora, Tokenizer.from_file(str(saved)), dataset.phoneme_table(corpora[0].items))


def phases(ready: Prepared) -> Iterator[tuple[str, Guide, Source]]:
    """The phases of training in order: name, what heads are shown, batches."""
    (sentences, passages), rest = ready.corpora, (ready.tokenizer, ready.phonemes)
    yield "whisper-sentences", Guide(), ClipBatches(sentences, *rest, SENTENCES, seconds=(0, LONGEST_SENTENCE))
    yield "whisper-passages", Guide(), ClipBatches(passages, *rest, PASSAGES, latest=LATEST_ROW)
    joined = ClipBatches(passages, *rest, JOINED, seconds=(LONGEST_SENTENCE, float("inf")), timed=JOINED_TIMED)
    yield "whisper-joined", JOINED_GUIDE, joined
    anywhere = ClipBatches(passages, *rest, ANYWHERE, latest=LATEST_ROW)
    yield "whisper-anywhere", ANYWHERE_GUIDE, anywhere
    again = ClipBatches(passages, *rest, AGAIN, latest=LATEST_ROW, timed=JOINED_TIMED)
    yield "whisper-again", WINDOWS_GUIDE, again
    short = ClipBatches(sentences, *rest, SHORT, latest=LATEST_ROW, timed=JOINED_TIMED)
    yield "whisper-short", WINDOWS_GUIDE, short
    long = ClipBatches(passages, *rest, LONG, latest=LATEST_ROW, timed=JOINED_TIMED)
    yield "whisper-long", WINDOWS_GUIDE, long
    yield "whisper-windows", WINDOWS_GUIDE, WindowBatches(ready.corpora, *rest, WINDOWS)
    silent = ClipBatches(sentences, *rest, SILENT_SHORT, timed=JOINED_TIMED, silent=True)
    yield "whisper-silent-short", WINDOWS_GUIDE, silent
    silent = ClipBatches(passages, *rest, SILENT_LONG, timed=JOINED_TIMED, silent=True)
    yield "whisper-silent-long", WINDOWS_GUIDE, silent
    yield "whisper-windows-again", WINDOWS_GUIDE, WindowBatches(ready.corpora, *rest, WINDOWS_AGAIN)
    for name, corpus, plan in (("short", sentences, PLAIN_SHORT), ("long", passages, PLAIN_LONG)):
        plain = ClipBatches(corpus, *rest, plan, timed=PLAIN_TIMED, silent=True, shares=PLAIN_SHARES)
        yield f"whisper-plain-{name}", WINDOWS_GUIDE, plain
    last = WindowBatches(ready.corpora, *rest, LAST, full=0.4, timed=0.25)
    yield "whisper-last", WINDOWS_GUIDE, last


def fit(ready: Prepared, work: Path) -> Trainee:
    """All phases, each from where the one before ended, or from its own state where that is on disk."""
    trainee = Trainee(ready.tokenizer, len(ready.phonemes) + 1, SENTENCES.seed)
    for name, guide, batches in phases(ready):
        trainee.guide = guide
        for done, means in train(trainee, batches, work / f"{name}.pt"):
            said = ", ".join(f"{term} {value:.4f}" for term, value in means.items())
            log.info("%s: step %d of %d: %s", name, done, batches.plan.steps, said)
    return trainee


def schedule() -> str:
    """The phases in the card's words, a line each."""
    told = {
        f"single sentences of up to {LONGEST_SENTENCE:g} s": SENTENCES,
        "utterances of up to 16 s, which begin anywhere in a window": PASSAGES,
        "joined sentences": JOINED,
        "utterances of up to 16 s again": ANYWHERE,
        "the same with fewer timestamps": AGAIN,
        "single sentences again, anywhere in a window": SHORT,
        "utterances of up to 16 s a third time": LONG,
        "windows of 30 s": WINDOWS,
        "utterances, most of them single sentences, with silence up to anywhere in the window": SILENT_SHORT,
        "utterances of up to 16 s with such silence": SILENT_LONG,
        "windows of 30 s again": WINDOWS_AGAIN,
        "single sentences with silence, few with timestamps, English twice as often": PLAIN_SHORT,
        "utterances of up to 16 s with silence, in the same shares": PLAIN_LONG,
        "windows of 30 s, more of them with one utterance and without timestamps": LAST,
    }
    return "\n".join(
        f"- {plan.steps:,} steps of {plan.batch} {what} at a peak of {plan.peak:g}" for what, plan in told.items()
    )


@app.command()
def make(work: Work = WORK, out: Checkpoint = CHECKPOINT, threads: Threads = 1) -> None:
    """Generate the corpora, train, write the checkpoint and its card: about four hours on one core."""
    torch.set_num_threads(threads)
    ready = prepare(work)
    model = fit(ready, work).asr
    parameters = sum(parameter.numel() for parameter in model.parameters())
    publish.write_checkpoint(model, ready.tokenizer, out, REPOSITORY / "LICENSE")
    publish.write_card(
        out,
        table(evaluated(evaluate, NAME, out, work, threads)),
        parameters=parameters,
        utterances=sum(map(len, ready.corpora)),
        hours=sum(item.count for corpus in ready.corpora for item in corpus.items) / RATE / 3600,
        voices=len(VARIANTS),
        schedule=schedule(),
    )


@app.command(name="evaluate")
def evaluate_command(
    work: Work = WORK,
    checkpoint: Checkpoint = CHECKPOINT,
    threads: Threads = 2,
    fresh: Fresh = 0,
) -> None:
    """Print the accuracy of a checkpoint on the held-out set; exit 1 when it misses what it must reach."""
    figures = evaluated(evaluate, NAME, checkpoint, work, threads, fresh)
    tell(table(figures), missed(figures))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    app()
