"""A log of the finished segments of unfinished files, so that a killed batch loses little of a long recording."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from runtime.batch.inputs import Job
from runtime.batch.journal import BatchSettings, cannot_write
from runtime.engines.base import SegmentResult, Span
from runtime.host.files import append_whole, printable
from runtime.results import DecodedAgain


class _Origin(msgspec.Struct, frozen=True):
    """Audio and settings of a segment. The audio is identified by path, size in bytes and modification time in ns."""

    audio: str
    size: int
    changed: int
    batch: BatchSettings


class _Line(msgspec.Struct, frozen=True):
    origin: _Origin
    start: int
    length: int
    result: SegmentResult
    decoded_again: DecodedAgain | None


def _origin(job: Job, settings: BatchSettings) -> _Origin | None:
    """Return the origin of a job's segments; None if the audio file cannot be accessed, which its decoding reports."""
    try:
        stat = job.audio.stat()
    except OSError:
        return None
    audio = printable(str(job.audio.absolute()))
    return _Origin(audio, stat.st_size, stat.st_mtime_ns, settings)


class SegmentLog:
    """A file of JSON lines beside the results of a batch, with a line for each finished segment of an unfinished file.

    The file exists while a batch runs and after one that was interrupted or killed.
    """

    def __init__(self, path: Path, *, restart: bool = False) -> None:
        """Open ``path`` and read the segments of an earlier run.

        Args:
            path: the file, created if it does not exist.
            restart: discard the segments of an earlier run.

        Raises:
            OutputError: the file cannot be read or written.
        """
        self.path = path
        self._earlier: dict[_Origin, list[_Line]] = {}
        try:
            if path.exists() and not restart:
                for line in path.read_bytes().splitlines():
                    self._read(line)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        except OSError as error:
            raise cannot_write(path, error) from None
        for lines in self._earlier.values():
            self._write(lines)

    def _read(self, text: bytes) -> None:
        try:
            line = msgspec.json.decode(text, type=_Line)
        except msgspec.DecodeError:  # torn by a kill, or of another version: the segment is decoded again
            return
        self._earlier.setdefault(line.origin, []).append(line)

    def known(self, job: Job, settings: BatchSettings) -> list[Span]:
        """Return the segments of a job from an earlier run; none if the audio or the settings have changed."""
        origin = _origin(job, settings)
        lines = self._earlier.get(origin, []) if origin else []
        return [Span(line.start, line.length, line.result, line.decoded_again) for line in lines]

    def add(self, job: Job, settings: BatchSettings, span: Span) -> None:
        """Store a finished segment of an unfinished file.

        Raises:
            OutputError: it cannot be written, for example because the disk is full.
        """
        if origin := _origin(job, settings):
            self._write([_Line(origin, span.start, span.length, span.result, span.decoded_again)])

    def _write(self, lines: Iterable[_Line]) -> None:
        try:
            append_whole(self._file, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def close(self) -> None:
        """Close the file; the next run reads it."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def remove(self) -> None:
        """Delete the file after a batch that was completed."""
        self.close()
        self.path.unlink(missing_ok=True)
