"""``python -m tools.tiny.whisper make``: the small Whisper from nothing — corpora, tokenizer, training, evaluation,
files.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tokenizers import Tokenizer

from tools.tiny import dataset
from tools.tiny.corpora import prepared
from tools.tiny.evaluate import tell
from tools.tiny.loop import Plan, Source, train
from tools.tiny.synth import RATE, VARIANTS
from tools.tiny.through_runtime import evaluated
from tools.tiny.whisper import publish
from tools.tiny.whisper.evaluate import evaluate, missed, table
from tools.tiny.whisper.tokenizer import train_tokenizer
from tools.tiny.whisper.train import ClipBatches, Guide, Trainee, WindowBatches

log = logging.getLogger("tiny.whisper")
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)

NAME = "whisper-turbo-tiny"
REPOSITORY = Path(__file__).resolve().parents[3]
WORK = REPOSITORY / "build" / "tiny"
CHECKPOINT = REPOSITORY / "artifacts" / "checkpoints" / NAME

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


Make = Callable[[Prepared, Plan], Source]


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the training, from where the one before ended. ``told`` is what is heard, in the card's words."""

    name: str
    told: str
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
# English has the most words to hear, and was heard least well.
_PLAIN = {"timed": 0.1, "silent": True, "shares": {"en": 1.0, "ru": 0.5, "zh": 0.5}}

# A window costs as much as ten sentences, so most is learned on sentences alone, then on several of them anywhere in a
# window, and at last on whole windows.
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
    """All phases, each from where the one before ended, or from its own state where that is on disk."""
    trainee = Trainee(ready.tokenizer, len(ready.phonemes) + 1, PHASES[0].plan.seed)
    for phase in PHASES:
        trainee.guide, batches = phase.guide, phase.batches(ready, phase.plan)
        for done, means in train(trainee, batches, work / f"whisper-{phase.name}.pt"):
            said = ", ".join(f"{term} {value:.4f}" for term, value in means.items())
            log.info("%s: step %d of %d: %s", phase.name, done, phase.plan.steps, said)
    return trainee


def schedule() -> str:
    """The phases in the card's words, a line each."""
    lines = []
    for phase in PHASES:
        plan = phase.plan
        lines.append(f"- {plan.steps:,} steps of {plan.batch} {phase.told} at a peak of {plan.peak:g}")
    return "\n".join(lines)


@app.command()
def make(work: Work = WORK, out: Checkpoint = CHECKPOINT, threads: Threads = 1) -> None:
    """Generate the corpora, train, write the checkpoint and its card: about three hours on one core."""
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
