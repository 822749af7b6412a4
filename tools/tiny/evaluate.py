"""Accuracy of a small checkpoint on held-out speech, for the table of its model card."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

import jiwer
import numpy as np
import numpy.typing as npt
import typer

from tools.tiny.dataset import Corpus, Item, generate
from tools.tiny.sentences import LANGUAGES
from tools.tiny.synth import HELD_OUT_VOICES, augment, noise_only

MAIN_SEED, CONTEXT_SEED, NOISE_SEED = 9001, 9002, 9003
UTTERANCES, CONTEXT_UTTERANCES, NOISE_CLIPS = 300, 180, 100
HELD_OUT_SHARE = 0.4

Floats = npt.NDArray[np.float32]
# (clips, contexts) → (language, text) of each clip
Recognizer = Callable[[Sequence[Floats], Sequence[str]], list[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """300 utterances and 180 with contexts, with the gain and noise of training, and 100 clips without speech."""

    items: list[Item]
    clips: list[Floats]
    context_items: list[Item]
    context_clips: list[Floats]
    noise: list[Floats]


def held_out(work: Path, fresh: int = 0) -> HeldOut:
    """Load the held-out set, generated if it does not exist; its seeds and one voice per language are not in training.

    ``fresh`` is the number of a set with other seeds, for which no training plan was tuned.
    """
    suffix = f"-{fresh}" if fresh else ""
    main, context = work / f"held-out{suffix}", work / f"held-out-context{suffix}"
    main_seed, context_seed = MAIN_SEED + 100 * fresh, CONTEXT_SEED + 100 * fresh
    if not (main / "index.json").exists():
        generate(main, UTTERANCES, main_seed, held_out=HELD_OUT_SHARE, context=0.0)
    if not (context / "index.json").exists():
        generate(context, CONTEXT_UTTERANCES, context_seed, held_out=HELD_OUT_SHARE, context=1.0)
    sets = []
    for seed, folder in ((main_seed, main), (context_seed, context)):
        corpus, rng = Corpus(folder), np.random.default_rng(seed)
        sets.append((corpus.items, [augment(corpus.samples(item), rng) for item in corpus.items]))
    rng = np.random.default_rng(NOISE_SEED + 100 * fresh)
    return HeldOut(*sets[0], *sets[1], [noise_only(rng) for _ in range(NOISE_CLIPS)])


def has_held_out_voice(item: Item) -> bool:
    """Return whether the voice is not used in training."""
    return item.voice.split("+")[1] == HELD_OUT_VOICES[item.language]


def normalize(text: str) -> str:
    """Return text in lower case without punctuation, as is usual for word error rates."""
    characters = (" " if unicodedata.category(c)[0] in "PS" else c for c in text.lower().replace("'", ""))
    return " ".join("".join(characters).split())


def error_rate(language: str, truth: Sequence[str], texts: Sequence[str]) -> float:
    """Return the word error rate, for Chinese the character error rate."""
    truth, texts = [normalize(text) for text in truth], [normalize(text) for text in texts]
    if language == "zh":
        return float(jiwer.cer([text.replace(" ", "") for text in truth], [text.replace(" ", "") for text in texts]))
    return float(jiwer.wer(list(truth), list(texts)))


class VoiceRates(NamedTuple):
    """Error rates over all voices, over those of training, and over the held-out one."""

    all: float
    training: float
    held_out: float


def voice_rates(language: str, items: Sequence[Item], texts: Sequence[str]) -> VoiceRates:
    """Return the error rates of the texts of ``items``, all in one language, by voice."""
    pairs = [(item.text, text, has_held_out_voice(item)) for item, text in zip(items, texts, strict=True)]

    def rate(voices: tuple[bool, ...]) -> float:
        chosen = [(truth, text) for truth, text, held_out in pairs if held_out in voices]
        return error_rate(language, [truth for truth, _ in chosen], [text for _, text in chosen])

    return VoiceRates(rate((True, False)), rate((False,)), rate((True,)))


def evaluate(recognize: Recognizer, data: HeldOut) -> dict[str, float]:
    """Return every figure of the card by name; rates are from 0 to 1."""
    results = recognize(data.clips, [""] * len(data.clips))
    figures: dict[str, float] = {}
    for code in LANGUAGES:
        rows = [i for i, item in enumerate(data.items) if item.language == code]
        items, texts = [data.items[i] for i in rows], [results[i][1] for i in rows]
        figures |= {f"{code} {name}": rate for name, rate in voice_rates(code, items, texts)._asdict().items()}
        figures[f"{code} exact"] = float(np.mean([text == item.text for item, text in zip(items, texts, strict=True)]))
    right = [result[0] == LANGUAGES[item.language] for result, item in zip(results, data.items, strict=True)]
    figures["language right"] = float(np.mean(right))
    with_context = recognize(data.context_clips, [item.context for item in data.context_items])
    without = recognize(data.context_clips, [""] * len(data.context_clips))
    for name, transcripts in (("hot words followed", with_context), ("hot words without context", without)):
        hits = [
            word in result[1] for result, item in zip(transcripts, data.context_items, strict=True) for word in item.hot
        ]
        figures[name] = float(np.mean(hits))
    figures["hot words"] = float(sum(len(item.hot) for item in data.context_items))
    figures["noise empty"] = float(np.mean([not text for _, text in recognize(data.noise, [""] * len(data.noise))]))
    return figures


TARGETS = {"en all": 0.03, "ru all": 0.03, "zh all": 0.03}
FLOORS = {"language right": 0.99, "noise empty": 0.95, "hot words followed": 0.80}


def missed(
    figures: dict[str, float], limits: Mapping[str, float] = TARGETS, floors: Mapping[str, float] = FLOORS
) -> list[str]:
    """Return one sentence for each figure above its limit or below its floor; NaN violates both."""
    above = [
        f"{name} is {figures[name]:.3f}, above {limit}" for name, limit in limits.items() if not figures[name] <= limit
    ]
    below = [
        f"{name} is {figures[name]:.3f}, below {floor}" for name, floor in floors.items() if not figures[name] >= floor
    ]
    return above + below


def table(figures: dict[str, float]) -> str:
    """Return the tables of the card in Markdown."""
    lines = [
        "| error rate | all | training voices | held-out voice | exact, with case and punctuation |",
        "|---|---|---|---|---|",
    ]
    for code, name in LANGUAGES.items():
        cells = [f"{figures[f'{code} {column}']:.2%}" for column in ("all", "training", "held_out", "exact")]
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


def report(tables: str, failures: Sequence[str]) -> NoReturn:
    """Print the tables, and each failure to standard error.

    Raises:
        typer.Exit: always; with code 1 if there are failures.
    """
    typer.echo(tables)
    for sentence in failures:
        typer.echo(f"missed: {sentence}", err=True)
    raise typer.Exit(1 if failures else 0)
