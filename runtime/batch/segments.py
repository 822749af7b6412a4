"""Finished segments of unfinished files: what a killed run leaves of a long recording for the next one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from runtime.batch.inputs import Job
from runtime.batch.journal import MadeBy, cannot_write
from runtime.engines.base import SegmentResult, Span
from runtime.results import FinishReason


class _Origin(msgspec.Struct, frozen=True):
    """What a segment was made of: an audio by its path, its size and when it was changed, and what was asked."""

    audio: str
    size: int
    changed: int
    batch: MadeBy


class _Line(msgspec.Struct, frozen=True):
    origin: _Origin
    start: int
    length: int
    result: SegmentResult
    decoded_again: FinishReason | None


def _origin(job: Job, made: MadeBy) -> _Origin | None:
    """None where the audio cannot be looked at: reading it will say why."""
    try:
        stat = job.audio.stat()
    except OSError:
        return None
    audio = str(job.audio.absolute()).encode(errors="replace").decode()
    return _Origin(audio, stat.st_size, stat.st_mtime_ns, made)


class SegmentLog:
    """A file of JSON lines beside a batch's results, with a line for every finished segment of a file that is not.

    It lies there while a batch runs, and after one that was interrupted or killed.
    """

    def __init__(self, path: Path, *, restart: bool = False) -> None:
        """Open ``path`` and read what an earlier run left, or throw it away.

        Raises:
            OutputError: it cannot be read or written.
        """
        self.path = path
        self._kept: dict[_Origin, list[_Line]] = {}
        try:
            if path.exists() and not restart:
                for line in path.read_bytes().splitlines():
                    self._read(line)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        except OSError as error:
            raise cannot_write(path, error) from None
        for lines in self._kept.values():
            self._write(lines)

    def _read(self, text: bytes) -> None:
        try:
            line = msgspec.json.decode(text, type=_Line)
        except msgspec.DecodeError:  # torn by a kill, or of another version: it is decoded again
            return
        self._kept.setdefault(line.origin, []).append(line)

    def known(self, job: Job, made: MadeBy) -> list[Span]:
        """What an earlier run heard of a job's audio, if neither the audio nor what makes its text has changed."""
        origin = _origin(job, made)
        lines = self._kept.get(origin, []) if origin else []
        return [Span(line.start, line.length, line.result, line.decoded_again) for line in lines]

    def add(self, job: Job, made: MadeBy, span: Span) -> None:
        """Note a segment of a file that is not finished.

        Raises:
            OutputError: the disk is full, or the like.
        """
        if origin := _origin(job, made):
            self._write([_Line(origin, span.start, span.length, span.result, span.decoded_again)])

    def _write(self, lines: Iterable[_Line]) -> None:
        data = memoryview(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def close(self) -> None:
        """Leave it for the next run."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def remove(self) -> None:
        """The batch came to its end: nothing is left to go on with."""
        self.close()
        self.path.unlink(missing_ok=True)
