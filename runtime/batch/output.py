"""Where a batch's results go, one by one as they finish: lines of one file, or a file each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import msgspec

from runtime.batch.inputs import Job
from runtime.batch.journal import Entry, Journal, MadeBy, cannot_write
from runtime.errors import OptionError, OutputError
from runtime.results import Transcript
from runtime.writers import FORMATS, as_json

JSON_LINES = ".jsonl"
JOURNAL = ".batch.jsonl"
ERRORS = "errors.jsonl"
SEGMENTS = ".segments.jsonl"
_WAYS_OUT = "give another --out, or --restart to throw away what is there"
_NAMES = {"manifest_sha256": "the model's manifest", "segment_seconds": "segment seconds", "vad": "voice activity"}


class Output(Protocol):
    """Results that are kept. A run that is killed loses what was in flight; the next goes on after the rest.

    ``segments_path`` is where finished segments of unfinished files may be kept meanwhile.
    """

    path: Path
    errors_path: Path
    segments_path: Path

    def pending(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs that are not finished: new ones, and those that failed.

        Raises:
            OutputError: what is there was made of other audio, by another model or with other options.
        """

    def add(self, job: Job, transcript: Transcript) -> None:
        """Keep a transcript."""

    def fail(self, job: Job, message: str) -> None:
        """Keep the reason why there is none."""

    def close(self) -> None:
        """Bring everything to the disk."""


def open_output(out: Path, format: str | None, made_by: MadeBy, *, restart: bool = False) -> Output:
    """The output at ``out``: a file of JSON lines if its name ends in ``.jsonl``, otherwise a folder.

    Args:
        out: where; a folder is created, a file's folder is not.
        format: of a folder's files, a key of :data:`runtime.writers.FORMATS`; ``json`` by default.
        made_by: what all results depend on; those there already must agree.
        restart: throw away what a batch put there before.

    Raises:
        OptionError: the name and the format do not fit together.
        OutputError: it cannot be written, or holds something else.
    """
    if out.suffix.lower() == JSON_LINES:
        if format not in (None, "json"):
            raise OptionError(f"{out}: holds lines of JSON; for {format} give a folder to --out")
        if out.is_dir() or not out.parent.is_dir():
            raise OptionError(f"{out}: cannot be written; give a file in a folder that exists")
        return JsonLines(out, made_by, restart=restart)
    if out.is_file() or (out.suffix[1:].lower() in FORMATS and not out.is_dir()):
        raise OptionError(f"{out}: is no place for many results; give a folder, or a file that ends in {JSON_LINES}")
    return Folder(out, format or "json", made_by, restart=restart)


class JsonLines:
    """One file, a line an audio: ``id``, ``audio``, what made it (``batch``), and the transcript or an ``error``."""

    def __init__(self, path: Path, made_by: MadeBy, *, restart: bool = False) -> None:
        self.path = self.errors_path = path
        self.segments_path = path.with_name(f".{path.name}.segments")
        self._made_by = made_by
        self._journal = Journal(path)
        with _releasing(self._journal):
            if restart:
                self._journal.forget(lambda _: True)
            check_made_alike(self._journal, made_by)

    def pending(self, jobs: Sequence[Job]) -> list[Job]:
        """See :class:`Output`."""
        left = [job for job in jobs if not self._finished(job)]
        retried = {job.id for job in left}
        self._journal.forget(lambda entry: entry.id in retried)
        return left

    def _finished(self, job: Job) -> bool:
        entry = self._journal.entries.get(job.id)
        return entry is not None and is_result_of(entry, job, self._made_by, self.path)

    def add(self, job: Job, transcript: Transcript) -> None:
        """See :class:`Output`."""
        line = as_json(transcript, id=job.id, audio=_audio(job), batch=made_for(job, self._made_by))
        self._journal.append(line.encode())

    def fail(self, job: Job, message: str) -> None:
        """See :class:`Output`."""
        entry = Entry(job.id, _audio(job), made_for(job, self._made_by), error=_printable(message))
        self._journal.append(msgspec.json.encode(entry))

    def close(self) -> None:
        """See :class:`Output`."""
        self._journal.close()


class Folder:
    """A folder with a file an audio, named by its id and the format; errors in ``errors.jsonl``.

    A hidden journal says what made each file, so that a run never takes another's file for its own. A result is
    written under a temporary name, entered into the journal and renamed: it is finished when both are there.
    """

    def __init__(self, path: Path, format: str, made_by: MadeBy, *, restart: bool = False) -> None:
        self.path, self.errors_path, self.segments_path = path, path / ERRORS, path / SEGMENTS
        self._format = format
        self._made_by = made_by
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from None
        self._journal = Journal(path / JOURNAL)
        with _releasing(self._journal):
            if restart:
                self._remove_results()
            check_made_alike(self._journal, made_by)

    def _remove_results(self) -> None:
        for entry in self._journal.entries.values():
            if entry.file:
                (self.path / entry.file).unlink(missing_ok=True)
        self.errors_path.unlink(missing_ok=True)
        self._journal.forget(lambda _: True)

    def pending(self, jobs: Sequence[Job]) -> list[Job]:
        """See :class:`Output`."""
        left = [job for job in jobs if not self._finished(job)]
        for job in left:
            path = self._path(job)
            if self._file(job) not in self._journal.entries and path.exists():
                raise OutputError(
                    f"{path}: exists, and this batch did not write it; move it away, or give another --out"
                )
        return left

    def _finished(self, job: Job) -> bool:
        entry = self._journal.entries.get(self._file(job))
        return (
            entry is not None
            and is_result_of(entry, job, self._made_by, self._journal.path)
            and self._path(job).exists()
        )

    def _file(self, job: Job) -> str:
        return f"{job.id}.{self._format}"

    def _path(self, job: Job) -> Path:
        return self.path / self._file(job)

    def add(self, job: Job, transcript: Transcript) -> None:
        """See :class:`Output`."""
        text = (
            as_json(transcript, id=job.id, audio=_audio(job)) + "\n"
            if self._format == "json"
            else FORMATS[self._format](transcript)
        )
        path = self._path(job)
        temporary = path.with_name(f".{path.name}.part")  # a killed run's is overwritten by the next
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                stream.write(text.encode())
                stream.flush()
                os.fsync(stream.fileno())
            self._enter(Entry(job.id, _audio(job), made_for(job, self._made_by), self._file(job)))
            os.replace(temporary, path)
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise cannot_write(path, error) from None

    def fail(self, job: Job, message: str) -> None:
        """See :class:`Output`."""
        self._enter(
            Entry(job.id, _audio(job), made_for(job, self._made_by), self._file(job), error=_printable(message))
        )

    def _enter(self, entry: Entry) -> None:
        self._journal.append(msgspec.json.encode(entry))

    def close(self) -> None:
        """Bring everything to the disk, and write ``errors.jsonl`` anew: what failed last time it was tried."""
        with _releasing(self._journal):
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
            raise cannot_write(path, error) from None


@contextmanager
def _releasing(journal: Journal) -> Iterator[None]:
    """Close the journal if the block fails: its owner will not be there to do it."""
    try:
        yield
    except BaseException:
        journal.close()
        raise


def made_for(job: Job, made_by: MadeBy) -> MadeBy:
    """What the job's transcript depends on: its own language, context and channel before those of the whole batch."""
    return msgspec.structs.replace(
        made_by,
        language=made_by.language if job.language is None else job.language,
        context=made_by.context if job.context is None else job.context,
        channel=job.channel,
    )


def check_made_alike(journal: Journal, made_by: MadeBy) -> None:
    """Refuse to mix results of different models or settings in one place.

    Raises:
        OutputError: it says what differs.
    """
    for other in {entry.batch for entry in journal.entries.values()}:
        alike = msgspec.structs.replace(made_by, language=other.language, context=other.context, channel=other.channel)
        if other != alike:
            raise OutputError(f"{journal.path}: was made otherwise ({_differences(other, alike)}); {_WAYS_OUT}")


def is_result_of(entry: Entry, job: Job, made_by: MadeBy, index: Path) -> bool:
    """Whether an entry of that name is the job's result; False if it is an error, which is tried again.

    Raises:
        OutputError: it is the result of other audio, or of other options.
    """
    if entry.error is not None:
        return False
    if entry.audio != _audio(job):
        raise OutputError(f"{index}: its {entry.id!r} is of {entry.audio}, not of {_audio(job)}; {_WAYS_OUT}")
    now = made_for(job, made_by)
    if entry.batch != now:
        raise OutputError(
            f"{index}: its {entry.id!r} was made otherwise ({_differences(entry.batch, now)}); {_WAYS_OUT}"
        )
    return True


def _differences(there: MadeBy, now: MadeBy) -> str:
    return ", ".join(
        f"{_NAMES.get(name, name)} {_brief(getattr(there, name))} there, {_brief(getattr(now, name))} now"
        for name in there.__struct_fields__
        if getattr(there, name) != getattr(now, name)
    )


def _brief(value: object) -> str:
    text = str(value) if not isinstance(value, str) or value else repr(value)
    return text if len(text) <= 24 else text[:23] + "…"


def _audio(job: Job) -> str:
    return _printable(os.path.normpath(job.audio.absolute()))


def _printable(text: str) -> str:
    """File names may hold bytes that are no UTF-8; JSON may not."""
    return text.encode(errors="replace").decode()
