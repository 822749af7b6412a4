"""What joining pieces of speech to windows changes: word errors and encoded windows, on real recordings with pauses.

    python -m benchmarks.windows MODEL --recordings DIR --films DIR

Recordings of a language are joined to files of a minute or more, with a pause behind each; *mixed* files have four
recordings, each in another language than the one before. Every file is transcribed with and without joining.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import jiwer
import numpy as np
import numpy.typing as npt
import typer

from benchmarks.live_recordings import streams_of
from benchmarks.markdown import table
from benchmarks.recordings import RATE, Recordings
from benchmarks.stamp import measured, stamp
from runtime import Transcriber
from runtime.audio import load_audio
from runtime.errors import AsrError
from runtime.evaluation.metrics import normalize

Floats = npt.NDArray[np.float32]

PAUSE_SECONDS = 2.0
_MIXED_FILES, _MIXED_RECORDINGS, _MIXED_SECONDS = 20, 4, 3.0


@dataclass(frozen=True, slots=True, eq=False)
class File:
    """Audio at 16 kHz with its set, its language (None: several) and what is said."""

    group: str
    language: str | None
    samples: Floats
    text: str


@dataclass(slots=True)
class Count:
    """Figures of a set of files."""

    words: int = 0
    errors: list[int] = field(default_factory=lambda: [0, 0])
    windows: list[int] = field(default_factory=lambda: [0, 0])


def mixed(recordings: Recordings, clips: dict[str, Floats]) -> Iterator[list[str]]:
    """Yield recordings of each file in several languages; the choice is always the same."""
    choice = random.Random(1)
    names = [name for name in recordings.names if len(clips[name]) > _MIXED_SECONDS * RATE]
    for _ in range(_MIXED_FILES):
        chosen: list[str] = []
        while len(chosen) < _MIXED_RECORDINGS:
            name = choice.choice(names)
            if not chosen or recordings.languages[name] != recordings.languages[chosen[-1]]:
                chosen.append(name)
        yield chosen


def files_of(recordings: Recordings, texts: dict[str, str], films: Path | None) -> Iterator[File]:
    """Yield all files: recordings of one language, of several languages, films."""
    clips = {name: recordings.load(name) for name in recordings.names}
    silence = np.zeros(int(PAUSE_SECONDS * RATE), np.float32)

    def joined(group: str, language: str | None, names: Sequence[str]) -> File:
        samples = np.concatenate([part for name in names for part in (clips[name], silence)])
        return File(group, language, samples, " ".join(texts[name] for name in names))

    groups = streams_of(recordings, {name: len(clip) / RATE for name, clip in clips.items()})
    for group, names in groups.items():
        yield joined(group.partition("-")[0], recordings.languages[names[0]], names)
    for names in mixed(recordings, clips):
        yield joined("mixed", None, names)
    for path in sorted(films.glob("*.wav")) if films else ():
        yield File("films", "en", load_audio(path, RATE), path.with_suffix(".txt").read_text(encoding="utf-8"))


def counted(engine: Any) -> Callable[[], int]:
    """Return a function that returns the number of windows that the engine encoded until now."""
    encode, windows = engine.encode, 0

    def encode_and_count(*arguments: Any) -> Any:
        nonlocal windows
        windows += 1
        return encode(*arguments)

    engine.encode = encode_and_count
    return lambda: windows


def compare(transcriber: Transcriber, files: Sequence[File], *, given: bool) -> dict[str, Count]:
    """Transcribe ``files`` without (first value) and with joining (second); ``given``: with their language."""
    engine: Any = transcriber.engine
    window_seconds, windows = engine.window_seconds, counted(engine)
    counts: dict[str, Count] = {}
    for number, file in enumerate(files):
        typer.echo(f"{number + 1} of {len(files)}", err=True)
        count = counts.setdefault(file.group, Count())
        rules = transcriber.resolve_language(file.language) or ""
        reference = normalize(file.text, rules)
        count.words += len(reference.split())
        for index, seconds in enumerate((None, window_seconds)):
            engine.window_seconds, before = seconds, windows()
            transcript = transcriber.transcribe(file.samples, file.language if given else None, sample_rate=RATE)
            found = jiwer.process_words(reference, normalize(transcript.text, rules))
            count.errors[index] += found.substitutions + found.deletions + found.insertions
            count.windows[index] += windows() - before
    return counts


def _rows(counts: dict[str, Count]) -> Iterator[list[str]]:
    for group, count in counts.items():
        errors = (f"{each} ({100 * each / count.words:.1f} %)" for each in count.errors)
        yield [group, str(count.words), *errors, *map(str, count.windows)]


def main(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a Whisper artifact.")],
    recordings: Annotated[Path, typer.Option(help="Folder of recordings with index.json (file, language, text).")],
    films: Annotated[Path | None, typer.Option(help="Folder of .wav files in English with their texts.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; by default the usable cores.")] = None,
) -> None:
    """Print a table for the language given and one for the language detected."""
    try:
        source = Recordings(recordings)
        files = list(files_of(source, source.texts, films))
        for given in (True, False):
            transcriber = Transcriber.from_artifact(model, threads=threads)
            chosen = [file for file in files if file.language or not given]
            counts = compare(transcriber, chosen, given=given)
            head = [
                "",
                "words",
                "errors, piece by piece",
                "errors, joined",
                "windows, piece by piece",
                "windows, joined",
            ]
            typer.echo(table(head, list(_rows(counts)), caption=f"Language {'given' if given else 'detected'}:"))
            typer.echo("")
    except AsrError as error:
        raise typer.BadParameter(str(error)) from None
    typer.echo(measured(stamp()))


if __name__ == "__main__":
    typer.run(main)
