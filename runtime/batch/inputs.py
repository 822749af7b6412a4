"""What a batch works on: files, folders, patterns and manifests become a list of jobs with stable names."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, NoReturn

import msgspec

from runtime.audio import AUDIO_SUFFIXES
from runtime.errors import AsrError, AudioInvalidError, AudioNotFoundError, DatasetInvalidError, OptionError

MANIFEST_SUFFIX = ".jsonl"


class Job(msgspec.Struct, frozen=True):
    """One audio to transcribe.

    ``id`` names its output and does not depend on what else is transcribed. ``language``, ``context`` and ``channel``
    are what a manifest says; None leaves them to the whole batch. ``where`` is the input that named the audio, for
    messages.
    """

    id: str
    audio: Path
    language: str | None = None
    context: str | None = None
    channel: int | None = None
    where: str = ""


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    audio: Annotated[str, msgspec.Meta(min_length=1)]
    id: str | None = None
    language: str | None = None
    context: str | None = None
    channel: Annotated[int, msgspec.Meta(ge=0)] | None = None


def find_jobs(inputs: Iterable[str]) -> list[Job]:
    """Jobs of all ``inputs``, in their order; an audio that several of them name is transcribed once.

    An input is one of these, and its jobs are named after

    - a file: its name;
    - a folder, searched to its depth for audio files, hidden ones left out: the path below it;
    - a pattern (``talks/**/*.wav``): the path below its part without wildcards. Only audio files are taken unless the
      pattern itself ends in a suffix;
    - a manifest (``.jsonl``), an object a line with ``audio`` (relative to the manifest) and where wanted ``id``,
      ``language``, ``context`` and ``channel``: ``id``, or else ``audio`` as it is written.

    Names of a folder or a pattern are sorted. An audio that a manifest names need not exist: that is found when its
    turn comes.

    Raises:
        AudioNotFoundError: an input does not exist, or names no audio.
        AudioInvalidError: a folder cannot be read.
        DatasetInvalidError: a line of a manifest is malformed, has unknown keys or an id that cannot name a file.
        OptionError: two different audios have the same name.
    """
    jobs: dict[str, Job] = {}
    seen: dict[tuple[str, str | None, str | None, int | None], str] = {}
    for given in inputs:
        for job in _jobs_of(given):
            what = _identity(job)
            if seen.setdefault(what, job.id) != job.id:
                continue
            other = jobs.setdefault(job.id, job)
            if _identity(other) != what:
                raise OptionError(_same_name(other, job))
    return list(jobs.values())


def _identity(job: Job) -> tuple[str, str | None, str | None, int | None]:
    return os.path.realpath(job.audio), job.language, job.context, job.channel


def _same_name(first: Job, second: Job) -> str:
    if MANIFEST_SUFFIX in second.where:
        return f"{second.where}: the id {second.id!r} is that of {first.where} already; give each its own `id`"
    return (
        f"{first.audio} and {second.audio} would both be named {second.id!r}; give the folder that holds both, a "
        "quoted pattern, or a manifest with ids"
    )


def _jobs_of(given: str) -> Iterator[Job]:
    path = Path(given)
    try:
        if path.is_dir():
            return iter(_named(sorted(_audio_files(path)), path, given))
        if path.exists():
            return (
                _manifest(path) if path.suffix.lower() == MANIFEST_SUFFIX else iter(_named([path], path.parent, given))
            )
        if glob.has_magic(given):
            return iter(_matches(given))
    except OSError as error:
        if isinstance(error, AsrError) or error.errno is None:
            raise
        raise AudioInvalidError(f"{error.filename or path}: cannot be read ({os.strerror(error.errno)})") from None
    raise AudioNotFoundError(f"{path}: no such file or folder")


def _named(files: list[Path], base: Path, given: str) -> list[Job]:
    if not files:
        raise AudioNotFoundError(f"{given}: holds no audio file (looked for {', '.join(sorted(AUDIO_SUFFIXES))})")
    return [Job(_printable(file.relative_to(base).as_posix()), file, where=given) for file in files]


def _printable(name: str) -> str:
    """File names may hold bytes that are no UTF-8; names of outputs may not."""
    return name.encode(errors="replace").decode()


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
        raise OptionError(f"{pattern}: leads up behind a wildcard; give the folder itself")
    suffix = Path(parts[-1]).suffix
    explicit = bool(suffix) and not glob.has_magic(suffix)
    matches = glob.glob(pattern, recursive=True)  # noqa: PTH207 - which takes hidden files too
    found = [path for path in map(Path, matches) if path.is_file()]
    if not found:
        raise AudioNotFoundError(f"{pattern}: no file matches")
    taken = [path for path in found if explicit or path.suffix.lower() in AUDIO_SUFFIXES]
    return _named(sorted(set(taken)), Path(*parts[:wild]), pattern)


def _manifest(path: Path) -> Iterator[Job]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetInvalidError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    jobs = []
    # Only a line feed ends a line: JSON may hold the other separators.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            entry = msgspec.json.decode(line, type=_Line)
        except msgspec.DecodeError as error:
            raise DatasetInvalidError(f"{where}: is malformed ({error}); mend it") from None
        if "\0" in entry.audio:
            raise DatasetInvalidError(f"{where}: {entry.audio!r} is no path; mend it")
        jobs.append(
            Job(
                _checked_id(entry, where),
                path.parent / entry.audio,
                entry.language,
                entry.context,
                entry.channel,
                where,
            )
        )
    if not jobs:
        raise AudioNotFoundError(f"{path}: lists no audio")
    return iter(jobs)


def _checked_id(entry: _Line, where: str) -> str:
    """The line's id, or a name from its path: below a folder it becomes a path, so it must stay inside."""
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
