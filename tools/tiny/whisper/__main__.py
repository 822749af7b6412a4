"""``python -m tools.tiny.whisper``: make and evaluate the small Whisper."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import typer
from tokenizers import Tokenizer

from tools.tiny import dataset
from tools.tiny.corpora import prepared
from tools.tiny.evaluate import report
from tools.tiny.loop import Plan, Source, run
from tools.tiny.options import CHECKPOINTS, LICENCE, WORK, Checkpoint, Fresh, Threads, Work
from tools.tiny.publishing import write_card
from tools.tiny.through_runtime import evaluated
from tools.tiny.whisper import publish
from tools.tiny.whisper.evaluate import evaluate, missed, table
from tools.tiny.whisper.tokenizer import train_tokenizer
from tools.tiny.whisper.train import ClipBatches, Guide, Trainee, WindowBatches

NAME = "whisper-turbo-tiny"
CHECKPOINT = CHECKPOINTS / NAME

app = typer.Typer(
    help="Make and evaluate the small Whisper.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Corpora, tokenizer and phoneme classes to train with."""

    corpora: list[dataset.Corpus]
    tokenizer: Tokenizer
    phonemes: dict[str, int]


def prepare(work: Path) -> Prepared:
    """Load the corpora, which are those of the small Qwen3-ASR, and the tokenizer; make them if they do not exist."""
    corpora = prepared(work)
    saved = work / "whisper-tokenizer.json"
    if not saved.exists():
        train_tokenizer().save(str(saved))
    return Prepared(corpora, Tokenizer.from_file(str(saved)), dataset.phoneme_table(corpora[0].items))


Make = Callable[[Prepared, Plan], Source]


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase of the training; ``summary`` describes its data in the card."""

    name: str
    summary: str
    plan: Plan
    guide: Guide
    batches: Make


def _clips(corpus: int, **options: Any) -> Make:
    return lambda ready, plan: ClipBatches(ready.corpora[corpus], ready.tokenizer, ready.phonemes, plan, **options)


def _windows(**options: Any) -> Make:
    return lambda ready, plan: WindowBatches(ready.corpora, ready.tokenizer, ready.phonemes, plan, **options)


_SENTENCES, _PASSAGES = 0, 1
_BEGUN = Guide()
_GUIDED = Guide(((0, 0), (1, 1), (2, 1)), 0.4)
_BLURRED = replace(_GUIDED, blur=3)
_DOUBTING = replace(_BLURRED, doubt=0.1)
_LONGEST_SENTENCE = 4.5
_ANYWHERE = {"latest": 900}
# English has the largest vocabulary and had the highest error rate.
_PLAIN = {"timed": 0.1, "silent": True, "shares": {"en": 1.0, "ru": 0.5, "zh": 0.5}}

# A window costs as much as ten sentences. So training starts with single sentences, goes on with several of them
# anywhere in a window, and ends with whole windows.
PHASES = (
    Phase(
        "sentences",
        f"single sentences of up to {_LONGEST_SENTENCE:g} s",
        Plan(steps=3_000, batch=16, peak=2e-3, warmup=200, seed=17),
        _BEGUN,
        _clips(_SENTENCES, seconds=(0, _LONGEST_SENTENCE)),
    ),
    Phase(
        "passages",
        "utterances of up to 16 s, which begin anywhere in a window",
        Plan(steps=700, batch=16, peak=1.2e-3, warmup=60, seed=18),
        _BEGUN,
        _clips(_PASSAGES, **_ANYWHERE),
    ),
    Phase(
        "joined",
        "joined sentences",
        Plan(steps=600, batch=10, peak=1.2e-3, warmup=30, seed=20),
        _GUIDED,
        _clips(_PASSAGES, seconds=(_LONGEST_SENTENCE, float("inf")), timed=0.3),
    ),
    Phase(
        "anywhere",
        "utterances of up to 16 s again",
        Plan(steps=1_000, batch=12, peak=1.2e-3, warmup=30, seed=21),
        _BLURRED,
        _clips(_PASSAGES, **_ANYWHERE),
    ),
    Phase(
        "again",
        "the same with fewer timestamps",
        Plan(steps=1_200, batch=12, peak=1.2e-3, warmup=30, seed=22),
        _DOUBTING,
        _clips(_PASSAGES, **_ANYWHERE, timed=0.3),
    ),
    Phase(
        "short",
        "mostly single sentences again, anywhere in a window",
        Plan(steps=1_600, batch=16, peak=1.2e-3, warmup=30, seed=23),
        _DOUBTING,
        _clips(_SENTENCES, **_ANYWHERE, timed=0.3),
    ),
    Phase(
        "long",
        "utterances of up to 16 s a third time",
        Plan(steps=1_000, batch=12, peak=1e-3, warmup=30, seed=24),
        _DOUBTING,
        _clips(_PASSAGES, **_ANYWHERE, timed=0.3),
    ),
    Phase(
        "windows",
        "windows of 30 s",
        Plan(steps=400, batch=4, peak=6e-4, warmup=10, seed=19),
        _DOUBTING,
        _windows(),
    ),
    Phase(
        "silent-short",
        "mostly single sentences, with silence up to anywhere in the window",
        Plan(steps=600, batch=10, peak=8e-4, warmup=20, seed=25),
        _DOUBTING,
        _clips(_SENTENCES, timed=0.3, silent=True),
    ),
    Phase(
        "silent-long",
        "utterances of up to 16 s with such silence",
        Plan(steps=400, batch=8, peak=8e-4, warmup=20, seed=26),
        _DOUBTING,
        _clips(_PASSAGES, timed=0.3, silent=True),
    ),
    Phase(
        "windows-again",
        "windows of 30 s again",
        Plan(steps=500, batch=4, peak=6e-4, warmup=10, seed=27),
        _DOUBTING,
        _windows(),
    ),
    Phase(
        "plain-short",
        "mostly single sentences with such silence, few with timestamps, English twice as often",
        Plan(steps=500, batch=10, peak=8e-4, warmup=20, seed=28),
        _DOUBTING,
        _clips(_SENTENCES, **_PLAIN),
    ),
    Phase(
        "plain-long",
        "utterances of up to 16 s with it, in the same shares",
        Plan(steps=400, batch=8, peak=8e-4, warmup=20, seed=29),
        _DOUBTING,
        _clips(_PASSAGES, **_PLAIN),
    ),
    Phase(
        "last",
        "windows of 30 s, more of them with one utterance and without timestamps",
        Plan(steps=300, batch=4, peak=6e-4, warmup=10, seed=30),
        _DOUBTING,
        _windows(full=0.4, timed=0.25),
    ),
)


def fit(ready: Prepared, work: Path) -> Trainee:
    """Train all phases one after the other; a phase whose state is on disk continues from it."""
    trainee = Trainee(ready.tokenizer, len(ready.phonemes) + 1, PHASES[0].plan.seed)
    for phase in PHASES:
        trainee.guide, batches = phase.guide, phase.batches(ready, phase.plan)
        run(trainee, batches, work / f"whisper-{phase.name}.pt")
    return trainee


def schedule() -> str:
    """Return one line for each phase, for the card."""
    lines = []
    for phase in PHASES:
        plan = phase.plan
        lines.append(f"- {plan.steps:,} steps of {plan.batch} {phase.summary} at a peak of {plan.peak:g}")
    return "\n".join(lines)


@app.command()
def make(work: Work = WORK, out: Checkpoint = CHECKPOINT, threads: Threads = 1) -> None:
    """Generate the corpora, train, and write the checkpoint and its card; takes about three hours on one core."""
    torch.set_num_threads(threads)
    ready = prepare(work)
    model = fit(ready, work).asr
    publish.write_checkpoint(model, ready.tokenizer, out, LICENCE)
    items = [item for corpus in ready.corpora for item in corpus.items]
    tables = table(evaluated(evaluate, NAME, out, work, threads))
    write_card(out, publish.CARD, model, items, table=tables, schedule=schedule())


@app.command(name="evaluate")
def evaluate_command(
    work: Work = WORK,
    checkpoint: Checkpoint = CHECKPOINT,
    threads: Threads = 2,
    fresh: Fresh = 0,
) -> None:
    """Print the accuracy of a checkpoint on a held-out set; exit with 1 if it misses a target."""
    figures = evaluated(evaluate, NAME, checkpoint, work, threads, fresh)
    report(table(figures), missed(figures))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    app()
