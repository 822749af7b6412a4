"""A file of JSON lines that survives a kill: a batch appends its results to it and reads it to continue."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from runtime.errors import OutputError
from runtime.host.files import append_whole

if sys.platform != "win32":  # Windows has no flock, so a second writer is not detected there
    import fcntl

# Appended lines survive the end of the process at once. To survive a crash of the machine they are synced to the disk,
# at most once in this time.
_SYNC_SECONDS = 1.0
# The beginning of every line. Only a last line that begins like this is removed as a torn one.
_BEGINNING = b'{"id":"'


class BatchSettings(msgspec.Struct, frozen=True):
    """Everything besides the audio on which a transcript depends.

    The first five fields are the same for a whole output. Threads, batch size and engine are not among the fields,
    since they only change the speed.

    Attributes:
        model: name of the model.
        manifest_sha256: hash of the model's manifest.
        provider: execution providers, as text.
        segment_seconds: longest segment; None: the model's default.
        vad: whether only detected speech is transcribed.
        language: English name of the language; None: detected.
        context: text that guides the spelling.
        channel: channel of the audio; None: the mean of all.
        track: audio track; None: the default one.
    """

    model: str
    manifest_sha256: str
    provider: str
    segment_seconds: float | None
    vad: bool
    language: str | None = None
    context: str = ""
    channel: int | None = None
    track: int | None = None


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of a journal: the result of one audio.

    Attributes:
        id: id of the job.
        audio: absolute path of the audio.
        batch: settings of the result.
        file: file of the transcript in an output folder; None in a file of JSON lines.
        error: why there is no transcript; None if there is one.
    """

    id: str
    audio: str
    batch: BatchSettings
    file: str | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        if self.file is not None and (Path(self.file).is_absolute() or ".." in Path(self.file).parts):
            raise ValueError(f"file {self.file!r} points outside the folder")

    @property
    def key(self) -> str:
        """Key that is unique in a journal: ``file`` if there is one, otherwise ``id``."""
        return self.file or self.id


class Journal:
    """An open journal, locked against a second writer.

    Attributes:
        path: path of the file.
        entries: the last line of each key.
    """

    def __init__(self, path: Path) -> None:
        """Open or create ``path`` and read its lines. A torn last line (a kill, a full disk) is removed.

        Raises:
            OutputError: the file cannot be opened.
            OutputError: another process writes to it.
            OutputError: a line was not written by a batch.
        """
        self.path = path
        self.entries: dict[str, Entry] = {}
        self._settings: dict[BatchSettings, BatchSettings] = {}
        self._synced = time.monotonic()
        self._file = self._open()
        try:
            self._read()
        except BaseException:
            os.close(self._file)
            raise

    def append(self, line: bytes) -> None:
        """Write one line: the JSON of an :class:`Entry`, possibly with more fields.

        Raises:
            OutputError: the line cannot be written.
        """
        try:
            append_whole(self._file, line + b"\n")
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file)
                self._synced = time.monotonic()
        except OSError as error:
            raise cannot_write(self.path, error) from None
        self._add(msgspec.json.decode(line, type=Entry))

    def _add(self, entry: Entry) -> None:
        # Entries with equal settings share one value, so that a hundred thousand entries stay small.
        batch = self._settings.setdefault(entry.batch, entry.batch)
        self.entries[entry.key] = msgspec.structs.replace(entry, batch=batch)

    def remove(self, matches: Callable[[Entry], bool]) -> None:
        """Remove the lines for which ``matches`` is true. The file is replaced atomically.

        Raises:
            OutputError: the new file cannot be written; the old one is unchanged.
        """
        if not any(map(matches, self.entries.values())):
            return
        temporary = self.path.with_name(f".{self.path.name}.part")
        try:
            with self.path.open("rb") as lines, temporary.open("wb") as stream:
                stream.writelines(line for line in lines if not matches(msgspec.json.decode(line, type=Entry)))
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise cannot_write(self.path, error) from None
        os.close(self._file)
        self._file = self._open()
        self.entries = {key: entry for key, entry in self.entries.items() if not matches(entry)}

    def close(self) -> None:
        """Sync the file to the disk and close it.

        Raises:
            OutputError: the file cannot be synced.
        """
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
        size = 0
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
                if not line.endswith(b"\n"):  # only the line feed is missing
                    break
                self._add(entry)
                size += len(line)
        if size < os.fstat(self._file).st_size:
            os.ftruncate(self._file, size)


def _is_torn(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except msgspec.DecodeError:
        return True
    return False


def cannot_write(path: Path, error: OSError) -> OutputError:
    """Return an error with the reason of ``error`` in one sentence."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return OutputError(f"{path}: cannot be written ({reason}); correct that, or give another --out")
