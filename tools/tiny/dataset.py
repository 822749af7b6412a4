"""Generation of the synthetic corpus, and its form on disk: one int16 array of all samples and one JSON index."""

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
    """One utterance of the corpus; ``start`` and ``count`` in samples, mark times in seconds."""

    language: str
    text: str
    context: str
    hot: list[str]
    voice: str
    start: int
    count: int
    words: list[tuple[float, str]]
    phonemes: list[tuple[float, str]]


def _make(seed: int, count: int, unheard: float, context: float, joined: float) -> list[Utterance]:
    engine, rng = Espeak(), random.Random(seed)
    made = []
    for index in range(count):
        language = ("en", "ru", "zh")[index % 3]
        made.append(
            utterance(
                engine,
                rng,
                language,
                with_context=rng.random() < context,
                joined=rng.random() < joined,
                unheard=rng.random() < unheard,
            )
        )
    return made


def block_seeds(seed: int, blocks: int) -> list[int]:
    """The seeds of :mod:`random` from which the blocks of a corpus of this seed are made."""
    return [seed * 1_000_003 + block for block in range(blocks)]


def generate(
    folder: Path,
    count: int,
    seed: int,
    *,
    unheard: float = 0.0,
    context: float = CONTEXT_SHARE,
    joined: float = JOINED_SHARE,
    workers: int = 2,
    block: int = BLOCK,
) -> None:
    """Write ``count`` utterances to ``folder``; the same arguments give the same files whatever ``workers`` is.

    Each block is made by a process of its own: espeak-ng carries state from one utterance to the next.
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
        futures = [pool.submit(_make, s, n, unheard, context, joined) for s, n in seeds]
        for future in futures:
            for made in future.result():
                audio.write(made.samples.tobytes())
                items.append(
                    Item(
                        made.sentence.language,
                        made.sentence.text,
                        made.sentence.context,
                        list(made.sentence.hot),
                        made.voice,
                        start,
                        len(made.samples),
                        [(round(m.start, 4), m.label) for m in made.words],
                        [(round(m.start, 4), m.label) for m in made.phonemes],
                    )
                )
                start += len(made.samples)
    (folder / "audio.tmp").replace(folder / "audio.i16")
    (folder / "index.json").write_bytes(msgspec.json.encode(items))


class Corpus:
    """A generated corpus, its samples mapped from disk."""

    def __init__(self, folder: Path) -> None:
        self.items = msgspec.json.decode((folder / "index.json").read_bytes(), type=list[Item])
        self._audio = np.memmap(folder / "audio.i16", np.int16, "r")

    def __len__(self) -> int:
        return len(self.items)

    def samples(self, item: Item) -> npt.NDArray[np.float32]:
        """Float32 in [-1, 1], 16 kHz."""
        return (self._audio[item.start : item.start + item.count] / np.float32(32768)).astype(np.float32)


def phoneme_table(items: list[Item]) -> dict[str, int]:
    """Phoneme mnemonic → class; class 0 is silence. Sorted, so that it depends on the corpus alone."""
    labels = {label for item in items for _, label in item.phonemes} - SILENT
    return {label: index + 1 for index, label in enumerate(sorted(labels))}


def sounding(item: Item) -> Iterator[tuple[float, str]]:
    """Phoneme marks without the zero-length word boundaries that espeak writes between Chinese syllables."""
    for start, label in item.phonemes:
        if label != "_|" and not label.startswith("("):
            yield start, label


def phonemes_at(item: Item, times: npt.NDArray[np.float64], table: dict[str, int]) -> npt.NDArray[np.int64]:
    """The class of the phoneme that sounds at each of ``times`` (seconds); 0 is silence, -100 one not in the table."""
    marks = list(sounding(item))
    starts = np.array([start for start, _ in marks])
    classes = np.array([0 if label in SILENT else table.get(label, -100) for _, label in marks], np.int64)
    found: npt.NDArray[np.int64] = classes[np.clip(np.searchsorted(starts, times, side="right") - 1, 0, None)]
    return found
