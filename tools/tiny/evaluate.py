"""Accuracy of a small checkpoint on held-out speech: the table of its model card."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import jiwer
import numpy as np
import numpy.typing as npt
import typer

from tools.tiny.dataset import Corpus, Item, generate
from tools.tiny.sentences import LANGUAGES
from tools.tiny.synth import UNHEARD, augment, noise_only

MAIN_SEED, CONTEXT_SEED, NOISE_SEED = 9001, 9002, 9003
UTTERANCES, CONTEXT_UTTERANCES, NOISE_CLIPS = 300, 180, 100
UNHEARD_SHARE = 0.4

Floats = npt.NDArray[np.float32]
# (clips, contexts) → (language, text) of each
Recognizer = Callable[[Sequence[Floats], Sequence[str]], list[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """300 utterances with the gain and noise of training, 180 with contexts, 100 clips without speech."""

    items: list[Item]
    clips: list[Floats]
    context_items: list[Item]
    context_clips: list[Floats]
    noise: list[Floats]


def held_out(work: Path, fresh: int = 0) -> HeldOut:
    """Generate (once) and load the held-out set; seeds and one voice a language that training never sees.

    ``fresh`` numbers sets of other seeds, for figures on what no plan of training was ever changed for.
    """
    suffix = f"-{fresh}" if fresh else ""
    main, context = work / f"held-out{suffix}", work / f"held-out-context{suffix}"
    main_seed, context_seed = MAIN_SEED + 100 * fresh, CONTEXT_SEED + 100 * fresh
    if not (main / "index.json").exists():
        generate(main, UTTERANCES, main_seed, unheard=UNHEARD_SHARE, context=0.0)
    if not (context / "index.json").exists():
        generate(context, CONTEXT_UTTERANCES, context_seed, unheard=UNHEARD_SHARE, context=1.0)
    sets = []
    for seed, folder in ((main_seed, main), (context_seed, context)):
        corpus, rng = Corpus(folder), np.random.default_rng(seed)
        sets.append((corpus.items, [augment(corpus.samples(item), rng) for item in corpus.items]))
    rng = np.random.default_rng(NOISE_SEED + 100 * fresh)
    return HeldOut(*sets[0], *sets[1], [noise_only(rng) for _ in range(NOISE_CLIPS)])


def is_unheard(item: Item) -> bool:
    """Whether training never hears the voice."""
    return item.voice.split("+")[1] == UNHEARD[item.language]


def normalize(text: str) -> str:
    """Lower case without punctuation, as word error rates are usually counted."""
    kept = (" " if unicodedata.category(c)[0] in "PS" else c for c in text.lower().replace("'", ""))
    return " ".join("".join(kept).split())


def error_rate(language: str, truth: Sequence[str], found: Sequence[str]) -> float:
    """Word error rate; character error rate for Chinese."""
    truth, found = [normalize(t) for t in truth], [normalize(t) for t in found]
    if language == "zh":
        return float(jiwer.cer([t.replace(" ", "") for t in truth], [t.replace(" ", "") for t in found]))
    return float(jiwer.wer(list(truth), list(found)))


def evaluate(recognize: Recognizer, data: HeldOut, unheard: Callable[[Item], bool]) -> dict[str, float]:
    """Every figure of the card by its name; rates from 0 to 1."""
    found = recognize(data.clips, [""] * len(data.clips))
    figures: dict[str, float] = {}
    for code in LANGUAGES:
        for name, voices in (("all", (True, False)), ("heard", (False,)), ("unheard", (True,))):
            rows = [i for i, item in enumerate(data.items) if item.language == code and unheard(item) in voices]
            figures[f"{code} {name}"] = error_rate(
                code, [data.items[i].text for i in rows], [found[i][1] for i in rows]
            )
        rows = [i for i, item in enumerate(data.items) if item.language == code]
        figures[f"{code} exact"] = float(np.mean([found[i][1] == data.items[i].text for i in rows]))
    right = [result[0] == LANGUAGES[item.language] for result, item in zip(found, data.items, strict=True)]
    figures["language right"] = float(np.mean(right))
    with_context = recognize(data.context_clips, [item.context for item in data.context_items])
    without = recognize(data.context_clips, [""] * len(data.context_clips))
    for name, results in (("hot words followed", with_context), ("hot words without context", without)):
        hits = [
            word in result[1] for result, item in zip(results, data.context_items, strict=True) for word in item.hot
        ]
        figures[name] = float(np.mean(hits))
    figures["hot words"] = float(sum(len(item.hot) for item in data.context_items))
    figures["noise empty"] = float(np.mean([not text for _, text in recognize(data.noise, [""] * len(data.noise))]))
    return figures


TARGETS = {"en all": 0.03, "ru all": 0.03, "zh all": 0.03}
FLOORS = {"language right": 0.99, "noise empty": 0.95, "hot words followed": 0.80}


def missed(figures: dict[str, float]) -> list[str]:
    """Targets that the figures do not reach."""
    over = [f"{name} is {figures[name]:.3f}, above {most}" for name, most in TARGETS.items() if figures[name] > most]
    under = [f"{name} is {figures[name]:.3f}, below {least}" for name, least in FLOORS.items() if figures[name] < least]
    return over + under


def table(figures: dict[str, float]) -> str:
    """The card's tables in Markdown."""
    lines = [
        "| error rate | all | voices heard in training | unheard voice | exact, with case and punctuation |",
        "|---|---|---|---|---|",
    ]
    for code, name in LANGUAGES.items():
        cells = [f"{figures[f'{code} {column}']:.2%}" for column in ("all", "heard", "unheard", "exact")]
        lines.append(f"| {name} ({'characters' if code == 'zh' else 'words'}) | {' | '.join(cells)} |")
    lines += [
        "",
        "| | |",
        "|---|---|",
        f"| language right | {figures['language right']:.1%} of {UTTERANCES} |",
        f"| empty text on clips without speech | {figures['noise empty']:.1%} of {NOISE_CLIPS} |",
        f"| hot words followed | {figures['hot words followed']:.1%} of {figures['hot words']:.0f} |",
        f"| the same words without a context | {figures['hot words without context']:.1%} |",
    ]
    return "\n".join(lines)


def tell(told: str, short: Sequence[str]) -> NoReturn:
    """Print a table and the sentences on what was missed.

    Raises:
        typer.Exit: always; with code 1 when something was missed.
    """
    typer.echo(told)
    for sentence in short:
        typer.echo(f"missed: {sentence}", err=True)
    raise typer.Exit(1 if short else 0)
