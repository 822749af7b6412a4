"""Find the jobs of a batch from files, folders, patterns and manifests, and name them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, NoReturn

import msgspec

from runtime.audio import AUDIO_SUFFIXES
from runtime.errors import AsrError, AudioInvalidError, AudioNotFoundError, DatasetInvalidError, OptionError
from runtime.host.files import printable

MANIFEST_SUFFIX = ".jsonl"


class Job(msgspec.Struct, frozen=True):
    """One audio to transcribe.

    Attributes:
        id: name of its output; does not depend on the other jobs.
        audio: path of the audio.
        language: language from a manifest; None: that of the batch.
        context: context from a manifest; None: that of the batch.
        channel: channel from a manifest, counted from 0; None: the mean of all.
        track: audio track, counted from 0; None: that of the batch, or the default one of the container.
        where: the input that named the audio, for messages.
    """

    id: str
    audio: Path
    language: str | None = None
    context: str | None = None
    channel: int | None = None
    track: int | None = None
    where: str = ""


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    audio: Annotated[str, msgspec.Meta(min_length=1)]
    id: str | None = None
    language: str | None = None
    context: str | None = None
    channel: Annotated[int, msgspec.Meta(ge=0)] | None = None
    track: Annotated[int, msgspec.Meta(ge=0)] | None = None


def find_jobs(inputs: Iterable[str]) -> list[Job]:
    """Return the jobs of all ``inputs`` in their order, without duplicates.

    An input is one of these:

    - a file; its job is named by the file name;
    - a folder, searched with its subfolders for audio files that are not hidden; jobs are named by the path below it;
    - a pattern (``talks/**/*.wav``); jobs are named by the path below the part without wildcards. Only files with an
      audio suffix match, unless the pattern itself ends in a suffix;
    - a manifest (``.jsonl``), an object in each line with ``audio`` (relative to the manifest) and optionally ``id``,
      ``language``, ``context``, ``channel`` and ``track``; jobs are named by ``id``, or by ``audio`` if there is none.

    Jobs of a folder or a pattern are sorted by name. An audio of a manifest need not exist, nor an audio file beside
    other inputs: its job fails later, and does not stop the others.

    Args:
        inputs: files, folders, patterns and manifests.

    Raises:
        AudioNotFoundError: a folder, pattern or manifest does not exist or has no audio, or all files are missing.
        AudioInvalidError: a folder cannot be read.
        DatasetInvalidError: a line of a manifest is malformed, has an unknown key or an id that cannot name a file.
        OptionError: two different audios have the same name.
    """
    jobs: dict[str, Job] = {}
    ids: dict[_Identity, str] = {}
    for text in inputs:
        for job in _jobs_of(text):
            identity = _identity(job)
            if ids.setdefault(identity, job.id) != job.id:
                continue
            other = jobs.setdefault(job.id, job)
            if _identity(other) != identity:
                raise OptionError(_same_name(other, job))
    if jobs and all(_is_missing_file(job) for job in jobs.values()):
        raise AudioNotFoundError(f"{next(iter(jobs.values())).audio}: no such file or folder")
    return list(jobs.values())


def _is_missing_file(job: Job) -> bool:
    """Return whether the input of ``job`` is itself an audio file that does not exist."""
    return job.where == str(job.audio) and not job.audio.exists()


_Identity = tuple[str, str | None, str | None, int | None, int | None]


def _identity(job: Job) -> _Identity:
    return os.path.realpath(job.audio), job.language, job.context, job.channel, job.track


def _same_name(first: Job, second: Job) -> str:
    if MANIFEST_SUFFIX in second.where:
        return f"{second.where}: the id {second.id!r} is already used by {first.where}; give each its own `id`"
    return (
        f"{first.audio} and {second.audio} would both be named {second.id!r}; give the folder that contains both, a "
        "quoted pattern, or a manifest with ids"
    )


def _jobs_of(text: str) -> Iterator[Job]:
    path = Path(text)
    try:
        if path.is_dir():
            return iter(_named(sorted(_audio_files(path)), path, text))
        if path.exists():
            return (
                _manifest(path) if path.suffix.lower() == MANIFEST_SUFFIX else iter(_named([path], path.parent, text))
            )
        if glob.has_magic(text):
            return iter(_matches(text))
        if path.suffix.lower() in AUDIO_SUFFIXES:
            return iter(_named([path], path.parent, str(path)))
    except OSError as error:
        if isinstance(error, AsrError) or error.errno is None:
            raise
        raise AudioInvalidError(f"{error.filename or path}: cannot be read ({os.strerror(error.errno)})") from None
    raise AudioNotFoundError(f"{path}: no such file or folder")


def _named(files: list[Path], base: Path, text: str) -> list[Job]:
    """Return jobs for ``files``, named by their paths below ``base``; ``text`` is the input."""
    if not files:
        raise AudioNotFoundError(f"{text}: has no audio file (suffixes: {', '.join(sorted(AUDIO_SUFFIXES))})")
    return [Job(printable(file.relative_to(base).as_posix()), file, where=text) for file in files]


def _audio_files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (
            path
            for name in names
            if not name.startswith(".") and (path := Path(parent, name)).suffix.lower() in AUDIO_SUFFIXES
        )


def _raise(error: OSError) -> NoReturn:
    raise error


def _matches(pattern: str) -> list[Job]:
    parts = Path(pattern).parts
    wild = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    if ".." in parts[wild:]:
        raise OptionError(f"{pattern}: has .. after a wildcard; give the folder itself")
    suffix = Path(parts[-1]).suffix
    explicit = bool(suffix) and not glob.has_magic(suffix)
    matches = glob.glob(pattern, recursive=True)  # noqa: PTH207 (Path.glob matches hidden files too)
    files = [path for path in map(Path, matches) if path.is_file()]
    if not files:
        raise AudioNotFoundError(f"{pattern}: no file matches")
    audio = {path for path in files if explicit or path.suffix.lower() in AUDIO_SUFFIXES}
    return _named(sorted(audio), Path(*parts[:wild]), pattern)


def _manifest(path: Path) -> Iterator[Job]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetInvalidError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    jobs = []
    # Only a line feed ends a line: JSON strings may contain the other separators.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            entry = msgspec.json.decode(line, type=_Line)
        except msgspec.DecodeError as error:
            raise DatasetInvalidError(f"{where}: is malformed ({error}); correct it") from None
        if "\0" in entry.audio:
            raise DatasetInvalidError(f"{where}: {entry.audio!r} is not a path; correct it")
        jobs.append(
            Job(
                _checked_id(entry, where),
                path.parent / entry.audio,
                entry.language,
                entry.context,
                entry.channel,
                entry.track,
                where,
            )
        )
    if not jobs:
        raise AudioNotFoundError(f"{path}: lists no audio")
    return iter(jobs)


def _checked_id(entry: _Line, where: str) -> str:
    """Return the line's id, or a name from its audio path.

    Raises:
        DatasetInvalidError: the name is not a relative path that stays inside the output folder.
    """
    audio = PurePosixPath(entry.audio)
    name = entry.id
    if name is None:
        name = audio.name if audio.is_absolute() or ".." in audio.parts else audio.as_posix()
    parts = name.split("/")
    if not name.isprintable() or any(not part or part.startswith(".") for part in parts):
        raise DatasetInvalidError(
            f"{where}: the id {name!r} cannot name a file; use a relative path without hidden parts"
        )
    return name
