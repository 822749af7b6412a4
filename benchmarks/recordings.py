"""Real recordings with an index, and results that are stored one by one so that a run can be continued."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import typer

from runtime.audio import load_audio

Floats = npt.NDArray[np.float32]
Record = dict[str, Any]

RATE = 16_000
_PACKAGES = ("onnxruntime", "torch", "transformers")


class Recordings:
    """Recordings of a folder with ``index.json``: a list of objects with ``file``, ``language`` (code) and ``text``."""

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        """Read the index; ``limit``: number of recordings, spread over the index.

        Raises:
            typer.BadParameter: there is no index, or it has another form.
        """
        path = folder / "index.json"
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            self.languages = {str(entry["file"]): str(entry["language"]) for entry in entries}
            self.texts = {str(entry["file"]): str(entry["text"]) for entry in entries}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise typer.BadParameter(
                f"{path}: cannot be read as a list of recordings with file, language and text ({error})"
            ) from None
        self.folder = folder
        names = list(self.languages)
        self.names = names[:: max(1, len(names) // limit)][:limit] if limit else names

    def load(self, name: str) -> Floats:
        """Return the samples [n] of a recording.

        Raises:
            AudioNotFoundError: the file does not exist.
            AudioInvalidError: the audio is empty or damaged.
        """
        return load_audio(self.folder / name, RATE)


class Records:
    """Results in files of JSON lines, one file for each part; a second run continues after the last whole line."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is made when the first result is stored."""
        self.folder = folder

    def read(self, part: str) -> dict[str, Record]:
        """Return the stored results of a part by name."""
        path = self.folder / f"{part}.jsonl"
        if not path.exists():
            return {}
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        return {record["name"]: record for record in records}

    def complete(
        self, part: str, names: Sequence[str], make: Callable[[list[str]], list[Record]], together: int = 1
    ) -> dict[str, Record]:
        """Make and store the results that a part lacks, ``together`` at a time; return those of ``names``.

        Progress goes to standard error.
        """
        stored = self.read(part)
        missing = [name for name in names if name not in stored]
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{part}.jsonl"
        # Written anew, without a line that an interrupted run left half written.
        path.write_text("".join(map(_line, stored.values())), encoding="utf-8")
        with path.open("a", encoding="utf-8") as file:
            for start in range(0, len(missing), together):
                group = missing[start : start + together]
                for name, record in zip(group, make(group), strict=True):
                    stored[name] = {"name": name} | record
                    file.write(_line(stored[name]))
                file.flush()
                done = len(names) - len(missing) + start + len(group)
                typer.echo(f"{part}: {done} of {len(names)}", err=True)
        return {name: stored[name] for name in names}


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def fingerprint(*folders: Path) -> str:
    """Return a name for results of these checkpoints and artifacts with the installed packages.

    Raises:
        typer.BadParameter: a folder does not exist.
    """
    digest = hashlib.sha256()
    for package in _PACKAGES:
        digest.update(f"{package} {importlib.metadata.version(package)}\n".encode())
    for folder in folders:
        if not folder.is_dir():
            raise typer.BadParameter(f"{folder}: is not a folder")
        for path in sorted(folder.iterdir()):
            if path.is_file():
                with path.open("rb") as file:
                    digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]
