"""Outputs of a batch: one file of JSON lines, or a folder with a file for each audio."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import msgspec

from runtime.batch.inputs import Job
from runtime.batch.journal import BatchSettings, Entry, Journal, cannot_write
from runtime.errors import OptionError, OutputError
from runtime.host.files import printable
from runtime.results import Transcript
from runtime.writers import FORMATS, as_json

JSON_LINES = ".jsonl"
JOURNAL = ".batch.jsonl"
ERRORS = "errors.jsonl"
SEGMENTS = ".segments.jsonl"
_REMEDY = "give another --out, or --restart to delete the earlier results"
# Names of the settings in messages.
_NAMES = {"manifest_sha256": "the model's manifest", "segment_seconds": "segment seconds", "vad": "voice activity"}


# Errors of one name, such as a too long one, or a folder where the file should be; others concern the whole output.
_UNUSABLE_NAMES = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EILSEQ, errno.EINVAL)
_LONGEST_NAME = 255  # bytes, on the file systems of Linux and macOS


class UnusableNameError(OutputError):
    """One result cannot be stored under its name; the others can."""


class Output(Protocol):
    """Storage of results. A killed run loses only the files it was working on; the next run continues after the others.

    Attributes:
        path: the file or folder.
        errors_path: the file with the errors.
        segments_path: file for finished segments of unfinished files.
    """

    path: Path
    errors_path: Path
    segments_path: Path

    def pending(self, jobs: Sequence[Job]) -> list[Job]:
        """Return the jobs without a transcript: new ones and failed ones.

        Raises:
            OutputError: a result is of other audio, or was written by another model or with other settings.
        """

    def add(self, job: Job, transcript: Transcript) -> None:
        """Store a transcript.

        Raises:
            UnusableNameError: the name of its output is not possible.
            OutputError: it cannot be written.
        """

    def fail(self, job: Job, message: str) -> None:
        """Store the reason why a job has no transcript.

        Raises:
            OutputError: it cannot be written.
        """

    def close(self) -> None:
        """Sync everything to the disk.

        Raises:
            OutputError: it cannot be written.
        """


def open_output(out: Path, format: str | None, settings: BatchSettings, *, restart: bool = False) -> Output:
    """Open the output at ``out``: a file of JSON lines if its name ends in ``.jsonl``, otherwise a folder.

    Args:
        out: file or folder. A folder is created if it does not exist; the folder of a file must exist.
        format: format of the files in a folder, a key of :data:`runtime.writers.FORMATS`; None: ``json``.
        settings: settings of all results. Existing results must have the same.
        restart: delete the results of earlier batches.

    Raises:
        OptionError: ``format`` is not possible for a file of JSON lines.
        OptionError: ``out`` is a single file of another type, or its folder does not exist.
        OutputError: ``out`` cannot be written.
        OutputError: ``out`` has results with other settings, or was not written by a batch.
    """
    if out.suffix.lower() == JSON_LINES:
        if format not in (None, "json"):
            raise OptionError(f"{out}: contains lines of JSON; for {format} give a folder to --out")
        if _is_dir(out) or not _is_dir(out.parent):
            raise OptionError(f"{out}: cannot be written; give a file in a folder that exists")
        return JsonLines(out, settings, restart=restart)
    is_dir = _is_dir(out)
    if (out.exists() and not is_dir) or (out.suffix[1:].lower() in FORMATS and not is_dir):
        raise OptionError(f"{out}: cannot store many results; give a folder, or a file that ends in {JSON_LINES}")
    return Folder(out, format or "json", settings, restart=restart)


def _is_dir(path: Path) -> bool:
    """Return whether ``path`` is a folder.

    Raises:
        OutputError: a folder above it may not be entered.
    """
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise cannot_write(path, error) from None


class JsonLines:
    """One file with a line for each audio: ``id``, ``audio``, settings (``batch``), and the transcript or ``error``."""

    def __init__(self, path: Path, settings: BatchSettings, *, restart: bool = False) -> None:
        self.path = self.errors_path = path
        self.segments_path = path.with_name(f".{path.name}.segments")
        self._settings = settings
        self._journal = Journal(path)
        with _closed_on_error(self._journal):
            if restart:
                self._journal.remove(lambda _: True)
            check_same_settings(self._journal, settings)

    def pending(self, jobs: Sequence[Job]) -> list[Job]:
        unfinished = [job for job in jobs if not self._is_finished(job)]
        retried = {job.id for job in unfinished}
        self._journal.remove(lambda entry: entry.id in retried)
        return unfinished

    def _is_finished(self, job: Job) -> bool:
        entry = self._journal.entries.get(job.id)
        return entry is not None and is_result_of(entry, job, self._settings, self.path)

    def add(self, job: Job, transcript: Transcript) -> None:
        line = as_json(transcript, id=job.id, audio=_audio(job), batch=settings_of(job, self._settings))
        self._journal.append(line.encode())

    def fail(self, job: Job, message: str) -> None:
        entry = Entry(job.id, _audio(job), settings_of(job, self._settings), error=printable(message))
        self._journal.append(msgspec.json.encode(entry))

    def close(self) -> None:
        self._journal.close()


class Folder:
    """A folder with a file for each audio, named by its id and the format; errors are in ``errors.jsonl``.

    A hidden journal records the settings of each file, so that a run never mistakes another file for its own result.
    A result is written under a temporary name, recorded in the journal and renamed; it is finished when both the entry
    and the file exist.
    """

    def __init__(self, path: Path, format: str, settings: BatchSettings, *, restart: bool = False) -> None:
        self.path, self.errors_path, self.segments_path = path, path / ERRORS, path / SEGMENTS
        self._format = format
        self._settings = settings
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from None
        self._journal = Journal(path / JOURNAL)
        with _closed_on_error(self._journal):
            if restart:
                self._remove_results()
            check_same_settings(self._journal, settings)

    def _remove_results(self) -> None:
        for entry in self._journal.entries.values():
            if entry.file:
                (self.path / entry.file).unlink(missing_ok=True)
        self.errors_path.unlink(missing_ok=True)
        self._journal.remove(lambda _: True)

    def pending(self, jobs: Sequence[Job]) -> list[Job]:
        unfinished = [job for job in jobs if not self._is_finished(job)]
        for job in unfinished:
            path = self._path(job)
            if self._file(job) not in self._journal.entries and os.path.lexists(path):
                raise OutputError(
                    f"{path}: exists, and this batch did not write it; move it away, or give another --out"
                )
        return unfinished

    def _is_finished(self, job: Job) -> bool:
        entry = self._journal.entries.get(self._file(job))
        return (
            entry is not None
            and is_result_of(entry, job, self._settings, self._journal.path)
            and os.path.lexists(self._path(job))
        )

    def _file(self, job: Job) -> str:
        return f"{job.id}.{self._format}"

    def _path(self, job: Job) -> Path:
        return self.path / self._file(job)

    def add(self, job: Job, transcript: Transcript) -> None:
        text = (
            as_json(transcript, id=job.id, audio=_audio(job)) + "\n"
            if self._format == "json"
            else FORMATS[self._format](transcript)
        )
        path = self._path(job)
        temporary = self._temporary(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                stream.write(text.encode())
                stream.flush()
                os.fsync(stream.fileno())
            self._record(Entry(job.id, _audio(job), settings_of(job, self._settings), self._file(job)))
            os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            if isinstance(error, OutputError):
                raise
            if error.errno in _UNUSABLE_NAMES:
                raise UnusableNameError(
                    f"{job.audio}: cannot be stored as {path} ({os.strerror(error.errno or 0)}); give a file of JSON "
                    "lines to --out, or a manifest with another id"
                ) from None
            raise cannot_write(path, error) from None

    @staticmethod
    def _temporary(path: Path) -> Path:
        """Return the name under which ``path`` is written; the next run overwrites that of a killed one."""
        name = f".{path.name}.part"
        if len(os.fsencode(name)) > _LONGEST_NAME >= len(os.fsencode(path.name)):
            name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()}.part"
        return path.with_name(name)

    def fail(self, job: Job, message: str) -> None:
        settings = settings_of(job, self._settings)
        self._record(Entry(job.id, _audio(job), settings, self._file(job), error=printable(message)))

    def _record(self, entry: Entry) -> None:
        self._journal.append(msgspec.json.encode(entry))

    def close(self) -> None:
        """Sync everything to the disk and rewrite ``errors.jsonl``, which has the last failure of each job.

        Raises:
            OutputError: it cannot be written.
        """
        with _closed_on_error(self._journal):
            self._write_errors()
        self._journal.close()

    def _write_errors(self) -> None:
        path, temporary = self.errors_path, self.path / f".{ERRORS}.part"
        lines = [
            msgspec.json.encode({"id": entry.id, "audio": entry.audio, "error": entry.error}) + b"\n"
            for entry in self._journal.entries.values()
            if entry.error is not None
        ]
        try:
            if lines:
                temporary.write_bytes(b"".join(lines))
                os.replace(temporary, path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise cannot_write(path, error) from None


@contextmanager
def _closed_on_error(journal: Journal) -> Iterator[None]:
    """Close the journal if the block raises an exception."""
    try:
        yield
    except BaseException:
        journal.close()
        raise


def settings_of(job: Job, settings: BatchSettings) -> BatchSettings:
    """Return the settings of one job: ``settings`` with the language, context, channel and track that the job sets."""
    return msgspec.structs.replace(
        settings,
        language=settings.language if job.language is None else job.language,
        context=settings.context if job.context is None else job.context,
        channel=job.channel,
        track=job.track,
    )


def check_same_settings(journal: Journal, settings: BatchSettings) -> None:
    """Check that the results in a journal have ``settings``, apart from language, context, channel and track.

    Raises:
        OutputError: they differ; the message lists the differences.
    """
    for earlier in {entry.batch for entry in journal.entries.values()}:
        now = msgspec.structs.replace(
            settings,
            language=earlier.language,
            context=earlier.context,
            channel=earlier.channel,
            track=earlier.track,
        )
        if earlier != now:
            differences = _differences(earlier, now)
            raise OutputError(f"{journal.path}: was written with other settings ({differences}); {_REMEDY}")


def is_result_of(entry: Entry, job: Job, settings: BatchSettings, journal: Path) -> bool:
    """Return whether an entry with the job's name is its transcript; False for an error, which is tried again.

    Args:
        entry: the entry.
        job: the job.
        settings: settings of the batch.
        journal: file of the entry, for messages.

    Raises:
        OutputError: the entry is of other audio.
        OutputError: the entry has other settings.
    """
    if entry.error is not None:
        return False
    if entry.audio != _audio(job):
        raise OutputError(f"{journal}: its {entry.id!r} is of {entry.audio}, not of {_audio(job)}; {_REMEDY}")
    now = settings_of(job, settings)
    if entry.batch != now:
        differences = _differences(entry.batch, now)
        raise OutputError(f"{journal}: its {entry.id!r} was written with other settings ({differences}); {_REMEDY}")
    return True


def _differences(earlier: BatchSettings, now: BatchSettings) -> str:
    return ", ".join(
        f"{_NAMES.get(name, name)}: {_brief(getattr(earlier, name))} there, {_brief(getattr(now, name))} now"
        for name in earlier.__struct_fields__
        if getattr(earlier, name) != getattr(now, name)
    )


def _brief(value: object) -> str:
    text = str(value) if not isinstance(value, str) or value else repr(value)
    return text if len(text) <= 24 else text[:23] + "…"


def _audio(job: Job) -> str:
    return printable(os.path.normpath(job.audio.absolute()))
