"""Generate and read synthetic corpora: one int16 array of all samples and one JSON index."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from tools.tiny.espeak import Espeak
from tools.tiny.synth import Utterance, utterance

SILENT = {"_", "_:", "_|", ""}
CONTEXT_SHARE, JOINED_SHARE = 0.22, 0.16
BLOCK = 1500


class Item(msgspec.Struct, frozen=True):
    """One utterance of a corpus; ``start`` and ``count`` are in samples, times of marks in seconds."""

    language: str
    text: str
    context: str
    hot: list[str]
    voice: str
    start: int
    count: int
    words: list[tuple[float, str]]
    phonemes: list[tuple[float, str]]


def _make(seed: int, count: int, held_out: float, context: float, joined: float) -> list[Utterance]:
    engine, rng = Espeak(), random.Random(seed)
    utterances = []
    for index in range(count):
        language = ("en", "ru", "zh")[index % 3]
        utterances.append(
            utterance(
                engine,
                rng,
                language,
                with_context=rng.random() < context,
                joined=rng.random() < joined,
                held_out_voice=rng.random() < held_out,
            )
        )
    return utterances


def block_seeds(seed: int, blocks: int) -> list[int]:
    """Return the seeds of :mod:`random` for the blocks of a corpus."""
    return [seed * 1_000_003 + block for block in range(blocks)]


def generate(
    folder: Path,
    count: int,
    seed: int,
    *,
    held_out: float = 0.0,
    context: float = CONTEXT_SHARE,
    joined: float = JOINED_SHARE,
    workers: int = 2,
    block: int = BLOCK,
) -> None:
    """Write a corpus to ``folder``; the files do not depend on ``workers``.

    Each block is made by its own process, since espeak-ng carries state from one utterance to the next.

    Args:
        folder: where to write ``audio.i16`` and ``index.json``.
        count: number of utterances, a third in each language.
        seed: of all random choices.
        held_out: share of utterances in the voice that is not used in training.
        context: share of utterances with a context.
        joined: share of utterances that join several sentences.
        workers: number of processes.
        block: utterances per process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seeds = [
        (block_seed, min(block, count - index * block))
        for index, block_seed in enumerate(block_seeds(seed, -(-count // block)))
    ]
    start, items = 0, []
    with (
        (folder / "audio.tmp").open("wb") as audio,
        ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool,
    ):
        futures = [pool.submit(_make, s, n, held_out, context, joined) for s, n in seeds]
        for future in futures:
            for spoken in future.result():
                audio.write(spoken.samples.tobytes())
                items.append(
                    Item(
                        spoken.sentence.language,
                        spoken.sentence.text,
                        spoken.sentence.context,
                        list(spoken.sentence.hot),
                        spoken.voice,
                        start,
                        len(spoken.samples),
                        [(round(m.start, 4), m.label) for m in spoken.words],
                        [(round(m.start, 4), m.label) for m in spoken.phonemes],
                    )
                )
                start += len(spoken.samples)
    (folder / "audio.tmp").replace(folder / "audio.i16")
    (folder / "index.json").write_bytes(msgspec.json.encode(items))


class Corpus:
    """A generated corpus with memory-mapped samples."""

    def __init__(self, folder: Path) -> None:
        self.items = msgspec.json.decode((folder / "index.json").read_bytes(), type=list[Item])
        self._audio = np.memmap(folder / "audio.i16", np.int16, "r")

    def __len__(self) -> int:
        return len(self.items)

    def samples(self, item: Item) -> npt.NDArray[np.float32]:
        """Return the samples of an item: float32 [count] in [-1, 1] at 16 kHz."""
        return (self._audio[item.start : item.start + item.count] / np.float32(32768)).astype(np.float32)


def phoneme_table(items: list[Item]) -> dict[str, int]:
    """Return the class of each phoneme mnemonic from 1 on, in sorted order; class 0 is silence."""
    labels = {label for item in items for _, label in item.phonemes} - SILENT
    return {label: index + 1 for index, label in enumerate(sorted(labels))}


def sounding(item: Item) -> Iterator[tuple[float, str]]:
    """Yield phoneme marks without the word boundaries of no length that espeak writes between Chinese syllables."""
    for start, label in item.phonemes:
        if label != "_|" and not label.startswith("("):
            yield start, label


def phonemes_at(item: Item, times: npt.NDArray[np.float64], table: dict[str, int]) -> npt.NDArray[np.int64]:
    """Return the phoneme class at each of ``times`` (seconds): 0 is silence, -100 a phoneme not in the table."""
    marks = list(sounding(item))
    starts = np.array([start for start, _ in marks])
    classes = np.array([0 if label in SILENT else table.get(label, -100) for _, label in marks], np.int64)
    labels: npt.NDArray[np.int64] = classes[np.clip(np.searchsorted(starts, times, side="right") - 1, 0, None)]
    return labels
