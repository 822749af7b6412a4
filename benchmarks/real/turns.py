"""Let all systems recognize the recordings in turns, and store every result at once as a line of JSON.

A run that was interrupted goes on where it stopped: the first line of the file has its settings, and each further line
is one result.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from benchmarks import peers
from benchmarks.children import Child
from benchmarks.real.systems import ReportError, System
from runtime.audio import load_audio
from runtime.evaluation import Utterance, load_utterances, metric_language
from runtime.model.languages import find_language

log = logging.getLogger("benchmarks")

Task = Literal["text", "language"]
TASKS: tuple[Task, ...] = ("text", "language")
RATE = 16_000
_REPORT_SECONDS = 30.0  # between two lines of progress


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording.

    Attributes:
        utterance: file, script and language.
        clip: file of its samples, float32 at 16 kHz.
        code: ISO code of its language.
        seconds: its length.
    """

    utterance: Utterance
    clip: Path
    code: str
    seconds: float

    @property
    def name(self) -> str:
        """Name of its file, which no other recording has."""
        return self.utterance.audio.name


class Result(msgspec.Struct, frozen=True):
    """Result of one system for one recording.

    ``text`` is set for the task ``text``; ``language`` is an ISO code for the task ``language``, None without speech.
    ``seconds`` is the time from samples to result, ``peak_bytes`` the peak resident memory of the process so far.
    """

    task: Task
    system: str
    recording: str
    seconds: float
    peak_bytes: int
    text: str = ""
    language: str | None = None

    @property
    def key(self) -> tuple[Task, str, str]:
        """What the result is of."""
        return self.task, self.system, self.recording


def load_recordings(folders: Sequence[Path], clips: Path, limit: int | None = None) -> list[Recording]:
    """Load recordings and decode them into ``clips``, sorted by language and name.

    Args:
        folders: data sets with an index; a recording's name must be in one of them only.
        clips: folder of decoded samples.
        limit: use the first recordings of each language only.

    Raises:
        DatasetNotFoundError: a folder has no index.
        DatasetInvalidError: an index is malformed.
        AudioNotFoundError: a recording is missing.
        AudioInvalidError: a recording cannot be decoded.
        ReportError: two recordings have the same name, or one has no language with an ISO code.
    """
    clips.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Utterance]] = {}
    names: set[str] = set()
    for utterance in (each for folder in folders for each in load_utterances(folder)):
        if utterance.audio.name in names:
            raise ReportError(f"{utterance.audio}: another recording has the same name; rename one")
        names.add(utterance.audio.name)
        language = metric_language(utterance)
        if not language or find_language(language) is None:
            raise ReportError(f"{utterance.audio}: has no language that is known; add one to the index")
        found.setdefault(language, []).append(utterance)
    recordings = []
    for language, utterances in sorted(found.items()):
        known = find_language(language)
        assert known  # checked above
        for utterance in sorted(utterances, key=lambda each: each.audio.name)[:limit]:
            clip = clips / f"{utterance.audio.name}.npy"
            if not clip.exists():
                np.save(clip, load_audio(utterance.audio, RATE))
            seconds = len(np.load(clip, mmap_mode="r")) / RATE
            recordings.append(Recording(utterance, clip, known.language.code, seconds))
    return recordings


def describe(systems: Sequence[System], recordings: Sequence[Recording], checkpoint: str) -> dict[str, str]:
    """Return what results depend on; a run goes on only with the same settings."""

    def digest(value: object) -> str:
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]

    clips = [(each.name, each.code, each.utterance.text, each.seconds) for each in recordings]
    return {
        "checkpoint": checkpoint,
        "recordings": digest(clips),
        "systems": digest([(each.name, each.job, each.bytes) for each in systems]),
        "packages": digest(peers.REQUIREMENTS.read_text()),
    }


class Store:
    """The file of results. The last line may be incomplete after an interrupt, and then is removed."""

    def __init__(self, path: Path, settings: dict[str, str]) -> None:
        """Open or create the file.

        Raises:
            ReportError: it has results with other settings, or a line that is not a result.
        """
        self._path = path
        self.results: dict[tuple[Task, str, str], Result] = {}
        self.versions: dict[str, str] = {}
        data = path.read_bytes() if path.exists() else b""
        complete = data[: data.rfind(b"\n") + 1]
        if not complete:
            path.write_text(json.dumps(settings) + "\n", encoding="utf-8")
            return
        if len(complete) < len(data):
            path.write_bytes(complete)
        first, *lines = complete.decode("utf-8").splitlines()
        self._check(json.loads(first), settings)
        for number, line in enumerate(lines, 2):
            try:
                if "versions" in (value := json.loads(line)):
                    self.versions |= value["versions"]
                else:
                    result = msgspec.convert(value, Result)
                    self.results[result.key] = result
            except (ValueError, msgspec.ValidationError) as error:
                raise ReportError(f"{path}: line {number}: is not a result ({error}); remove the file") from None

    def _check(self, stored: dict[str, str], settings: dict[str, str]) -> None:
        changed = [key for key in {**stored, **settings} if stored.get(key) != settings.get(key)]
        if changed:
            raise ReportError(
                f"{self._path}: has results with other {', '.join(changed)}; remove it to begin again, or give another "
                "folder with --work"
            )

    def add(self, result: Result) -> None:
        """Store a result."""
        self.results[result.key] = result
        self._append(msgspec.to_builtins(result))

    def add_versions(self, versions: dict[str, str]) -> None:
        """Store versions of a system's packages."""
        self.versions |= versions
        self._append({"versions": versions})

    def _append(self, value: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value, ensure_ascii=False) + "\n")


def turns(systems: Sequence[System], recordings: Sequence[Recording]) -> Iterator[tuple[Task, System, Recording]]:
    """Yield all turns: first all texts, then all languages, recording by recording.

    The systems are shuffled for each recording, always in the same way, so that none always runs after the same other
    one, whose threads may still be spinning.
    """
    for task in TASKS:
        for recording in recordings:
            order = [system for system in systems if task == "text" or system.detects]
            random.Random(f"{task} {recording.name}").shuffle(order)  # not for secrets
            yield from ((task, system, recording) for system in order)


def run(systems: Sequence[System], recordings: Sequence[Recording], store: Store) -> None:
    """Run all turns that have no result yet, each system in a process that stays open.

    Raises:
        ChildError: a system ended.
    """
    left = [turn for turn in turns(systems, recordings) if (turn[0], turn[1].name, turn[2].name) not in store.results]
    needed = {system.name: system for _, system, _ in left}
    with ExitStack() as stack:
        children = {}
        for name, system in needed.items():
            warm_up = {"clip": str(recordings[0].clip.resolve()), "language": recordings[0].code}
            child = stack.enter_context(Child(system.command, system.job | {"warm_up": warm_up}))
            store.add_versions(child.answer()["versions"])
            children[name] = child
            log.info("%s: ready (%d of %d systems)", name, len(children), len(needed))
        began = reported = time.monotonic()
        for count, (task, system, recording) in enumerate(left):
            if count and time.monotonic() - reported > _REPORT_SECONDS:
                reported = time.monotonic()
                minutes = (reported - began) * (len(left) - count) / count / 60
                log.info("%s: turn %d of %d, about %.0f minutes left", task, count + 1, len(left), minutes)
            turn = {"clip": str(recording.clip.resolve()), "language": recording.code if task == "text" else ""}
            answer = children[system.name].ask(turn)
            store.add(Result(task, system.name, recording.name, **answer))
