"""Artifact folders that appear at once or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantize.errors import OutputError
from quantize.progress import Report
from runtime.errors import AsrError
from runtime.host.files import sha256_file
from runtime.model.manifest import FileSpec


def refuse_existing(out: Path) -> None:
    """:class:`OutputError` when ``out`` is there already: to be asked before hours of work, not after."""
    if out.exists() or out.is_symlink():
        raise OutputError(f"{out}: exists already; remove it or give another --out DIR")


@contextmanager
def scratch(out: Path) -> Iterator[Path]:
    """A hidden folder beside ``out``, for what is needed on the way there; it is always removed.

    Raises:
        OutputError: it cannot be made, or something in it cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.part-"))
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror})") from None
    try:
        yield work
    except OSError as error:
        if isinstance(error, AsrError) or error.errno is None:
            raise
        if error.filename and not Path(error.filename).is_relative_to(work):
            raise OutputError(f"{error.filename}: {os.strerror(error.errno)}") from error
        raise OutputError(f"{out}: cannot be written ({os.strerror(error.errno)})") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A hidden folder that becomes ``out`` when the block ends, and vanishes when it raises.

    Raises:
        OutputError: ``out`` exists, or cannot be written (the disk is full, say).
    """
    refuse_existing(out)
    with scratch(out) as work:
        yield work
        for path in work.iterdir():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        work.chmod(0o755)
        work.rename(out)


def hash_files(folder: Path, report: Report) -> dict[str, FileSpec]:
    """The manifest's ``files`` for everything that lies in ``folder``."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    with report.bytes("hashing the artifact", sum(path.stat().st_size for path in paths)) as advance:
        return {path.name: FileSpec(sha256_file(path, advance), path.stat().st_size) for path in paths}
