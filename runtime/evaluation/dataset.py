"""Load recordings with reference texts from an index, a LibriSpeech tree, or text files beside the audio."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import msgspec

from runtime.audio import AUDIO_SUFFIXES
from runtime.errors import AsrError, AudioNotFoundError, DatasetInvalidError, DatasetNotFoundError, OptionError
from runtime.evaluation.languages import language_name

INDEXES = ("index.json", "index.jsonl", "metadata.jsonl")


class Utterance(msgspec.Struct, frozen=True):
    """A recording and its reference text.

    Attributes:
        audio: path of the recording.
        text: reference text; empty for no speech.
        language: English name or code, as in the data set; None if it has none.
        context: context for the model.
    """

    audio: Path
    text: str
    language: str | None = None
    context: str = ""


class _Entry(msgspec.Struct):
    file: str | None = None
    file_name: str | None = None
    audio_filepath: str | None = None
    text: str | None = None
    transcription: str | None = None
    language: str | None = None
    context: str | None = None


def load_utterances(folder: str | os.PathLike[str], language: str | None = None) -> list[Utterance]:
    """Load the utterances of a folder, sorted by path. Hidden files are ignored.

    The first of these formats that the folder has is used:

    - ``index.json`` (an array of objects), ``index.jsonl`` or ``metadata.jsonl`` (an object in each line), with
      ``file`` (or ``file_name``, ``audio_filepath``), ``text`` (or ``transcription``) and optionally ``language`` and
      ``context``;
    - LibriSpeech: ``*.trans.txt`` in any subfolder, with lines ``ID TEXT`` for ``ID.flac`` or ``ID.wav`` beside it;
    - audio in any subfolder with a ``.txt`` of the same stem beside it; audio without one is left out.

    Args:
        folder: folder of the data set. Files of an index must be inside it.
        language: language of utterances without one; English name or code. None: English for LibriSpeech, else none.

    Raises:
        DatasetNotFoundError: the folder does not exist or has none of these formats.
        DatasetInvalidError: an index or a text is malformed or not UTF-8.
        DatasetInvalidError: a path of an index points outside the folder.
        DatasetInvalidError: a file or a folder cannot be read.
        AudioNotFoundError: a listed audio does not exist.
        OptionError: ``language`` is unknown.
    """
    folder = Path(folder)
    if language is not None and language_name(language) is None:
        raise OptionError(f"unknown language {language!r}; give its English name or its ISO 639 code (English, en)")
    try:
        if not folder.is_dir():
            kind = "is a file, not a folder" if folder.exists() else "no such folder"
            raise DatasetNotFoundError(f"{folder}: {kind}; give a folder of audio with reference texts")
        for load in (_from_index, _from_librispeech, _from_pairs):
            if utterances := list(load(folder, language)):
                return sorted(utterances, key=lambda utterance: utterance.audio)
    except OSError as error:
        if isinstance(error, AsrError) or error.errno is None:
            raise
        raise DatasetInvalidError(f"{error.filename or folder}: cannot be read ({os.strerror(error.errno)})") from None
    raise DatasetNotFoundError(
        f"{folder}: has no reference texts; add an {INDEXES[0]}, an {INDEXES[1]}, a {INDEXES[2]}, a *.trans.txt, or a "
        ".txt beside each audio file"
    )


def _from_index(folder: Path, language: str | None) -> Iterator[Utterance]:
    path = next((path for name in INDEXES if (path := folder / name).is_file()), None)
    if path is None:
        return
    rows: list[tuple[str, str | msgspec.Raw]]
    if path.suffix == ".json":
        try:
            entries = msgspec.json.decode(_read(path), type=list[msgspec.Raw])
        except msgspec.DecodeError as error:
            raise DatasetInvalidError(f"{path}: is not an array in JSON ({error}); correct the file") from None
        rows = [(f"{path}: entry {number}", entry) for number, entry in enumerate(entries, 1)]
    else:
        rows = [(f"{path}: line {number}", line) for number, line in _lines(path)]
    if not rows:
        raise DatasetInvalidError(f"{path}: lists no utterance; add some, or remove the file")
    for where, row in rows:
        try:
            entry = msgspec.json.decode(row, type=_Entry)
        except msgspec.DecodeError as error:
            raise DatasetInvalidError(f"{where}: is malformed ({error}); correct it") from None
        name = next(filter(None, (entry.file, entry.file_name, entry.audio_filepath)), None)
        text = entry.text if entry.text is not None else entry.transcription
        if name is None or text is None:
            lacks = "file (nor file_name, audio_filepath)" if name is None else "text (nor transcription)"
            raise DatasetInvalidError(f"{where}: has no {lacks}; add it")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DatasetInvalidError(f"{where}: {name!r} points outside the folder; give a path relative to {folder}")
        if not (folder / name).is_file():
            raise AudioNotFoundError(f"{where}: {folder / name}: no such file; add it, or remove the entry")
        yield Utterance(folder / name, text.strip(), entry.language or language, entry.context or "")


def _from_librispeech(folder: Path, language: str | None) -> Iterator[Utterance]:
    for path in _files(folder):
        if not path.name.endswith(".trans.txt"):
            continue
        for number, line in _lines(path):
            name, *text = line.split(maxsplit=1)
            if Path(name).name != name:
                raise DatasetInvalidError(
                    f"{path}: line {number}: is malformed ({name!r} is not a plain name); write ID TEXT"
                )
            audio = next((a for suffix in (".flac", ".wav") if (a := path.with_name(name + suffix)).is_file()), None)
            if audio is None:
                raise AudioNotFoundError(
                    f"{path}: line {number}: neither {name}.flac nor {name}.wav is beside it; add one or drop the line"
                )
            yield Utterance(audio, "".join(text).strip(), language or "English")


def _from_pairs(folder: Path, language: str | None) -> Iterator[Utterance]:
    for path in _files(folder):
        if path.suffix.lower() in AUDIO_SUFFIXES and (text := path.with_suffix(".txt")).is_file():
            yield Utterance(path, " ".join(_read(text).split()), language)


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files below ``folder`` that are not hidden; macOS puts hidden resource forks beside copied files."""
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _raise(error: OSError) -> NoReturn:
    raise error


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetInvalidError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of the lines that are not blank, counted from 1.

    Only a line feed ends a line: JSON strings may contain other separators.
    """
    return ((number, line) for number, line in enumerate(_read(path).split("\n"), 1) if line.strip())
