"""A file of JSON lines that survives being killed: appended to as work finishes, read again to go on."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from runtime.errors import OutputError

if sys.platform != "win32":  # which has no such lock: there nobody notices a second writer
    import fcntl

# Appended lines survive the process at once; to survive the machine they are synced, at most once in this time.
_SYNC_SECONDS = 1.0
# How every line begins. What is cut away as a torn line must look like one of ours.
_BEGINNING = b'{"id":"'


class MadeBy(msgspec.Struct, frozen=True):
    """What a transcript depends on besides the audio: the model, and what was asked of it.

    The first five are one for a whole output. Threads and the rows decoded together are no part of it, nor is the
    engine: they decide how fast it goes.
    """

    model: str
    manifest_sha256: str
    provider: str
    segment_seconds: float | None
    vad: bool
    language: str | None = None
    context: str = ""
    channel: int | None = None


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line: what became of one audio. ``file`` is where its text lies, ``error`` why there is none."""

    id: str
    audio: str
    batch: MadeBy
    file: str | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        if self.file is not None and (Path(self.file).is_absolute() or ".." in Path(self.file).parts):
            raise ValueError(f"file {self.file!r} points outside the folder")

    @property
    def key(self) -> str:
        """What is there once: a file where there are files, otherwise an id."""
        return self.file or self.id


class Journal:
    """An open journal, locked against a second writer.

    Attributes:
        entries: the last line of each key, as far as it is not forgotten.
    """

    def __init__(self, path: Path) -> None:
        """Open or create ``path`` and read what it holds; a torn last line (a kill, a full disk) is cut away.

        Raises:
            OutputError: it cannot be opened, another process writes to it, or it holds lines that are not a batch's.
        """
        self.path = path
        self.entries: dict[str, Entry] = {}
        self._makers: dict[MadeBy, MadeBy] = {}
        self._synced = time.monotonic()
        self._file = self._open()
        try:
            self._read()
        except BaseException:
            os.close(self._file)
            raise

    def append(self, line: bytes) -> None:
        """Write one line, an :class:`Entry` with whatever else it holds, and note it."""
        data = memoryview(line + b"\n")
        try:
            while data:
                data = data[os.write(self._file, data) :]
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file)
                self._synced = time.monotonic()
        except OSError as error:
            raise cannot_write(self.path, error) from None
        self._note(msgspec.json.decode(line, type=Entry))

    def _note(self, entry: Entry) -> None:
        # One value for the many lines that were made alike: a hundred thousand of them stay small.
        batch = self._makers.setdefault(entry.batch, entry.batch)
        self.entries[entry.key] = msgspec.structs.replace(entry, batch=batch)

    def forget(self, which: Callable[[Entry], bool]) -> None:
        """Remove the lines that ``which`` is true of. The file is replaced whole, or left alone."""
        if not any(map(which, self.entries.values())):
            return
        temporary = self.path.with_name(f".{self.path.name}.part")
        try:
            with self.path.open("rb") as lines, temporary.open("wb") as kept:
                kept.writelines(line for line in lines if not which(msgspec.json.decode(line, type=Entry)))
                kept.flush()
                os.fsync(kept.fileno())
            os.replace(temporary, self.path)
        except OSError as error:
            raise cannot_write(self.path, error) from None
        os.close(self._file)
        self._file = self._open()
        self.entries = {key: entry for key, entry in self.entries.items() if not which(entry)}

    def close(self) -> None:
        """Bring what was appended to the disk."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise cannot_write(self.path, error) from None
        finally:
            os.close(self._file)

    def _open(self) -> int:
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise cannot_write(self.path, error) from None
        try:
            if sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise OutputError(
                f"{self.path}: another batch is writing to it; wait for it, or give another --out"
            ) from None
        return file

    def _read(self) -> None:
        whole = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    entry = msgspec.json.decode(line, type=Entry)
                except msgspec.DecodeError:
                    if not line.endswith(b"\n") and line.startswith(_BEGINNING[: len(line)]) and _is_torn(line):
                        break
                    raise OutputError(
                        f"{self.path}: line {number} was not written by batch; give another --out"
                    ) from None
                if not line.endswith(b"\n"):  # the line is whole, but for its end
                    break
                self._note(entry)
                whole += len(line)
        if whole < os.fstat(self._file).st_size:
            os.ftruncate(self._file, whole)


def _is_torn(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except msgspec.DecodeError:
        return True
    return False


def cannot_write(path: Path, error: OSError) -> OutputError:
    """The same in one sentence."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return OutputError(f"{path}: cannot be written ({reason}); mend that, or give another --out")
