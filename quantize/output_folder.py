"""Create artifact folders atomically: the folder appears complete or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from quantize.errors import OutputError
from quantize.progress import Report
from runtime.errors import AsrError
from runtime.host.files import sha256_file
from runtime.model.manifest import FileSpec


def refuse_existing(out: Path) -> None:
    """Check that ``out`` does not exist. Call it before long computations.

    Raises:
        OutputError: ``out`` exists, be it a file, a folder or a symbolic link.
        OutputError: a folder above ``out`` may not be entered.
    """
    try:
        out.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror}); give another --out DIR") from None
    else:
        raise OutputError(f"{out}: exists already; remove it or give another --out DIR")


@contextmanager
def scratch(out: Path) -> Iterator[Path]:
    """Create a hidden temporary folder beside ``out`` and always remove it at the end.

    Yields:
        The folder, on the same file system as ``out``.

    Raises:
        OutputError: The folder cannot be created.
        OutputError: The block raised an ``OSError`` with an error number, for example because the disk is full.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.part-"))
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror})") from None
    try:
        yield folder
    except OSError as error:
        if isinstance(error, AsrError) or error.errno is None:
            raise
        if error.filename and not Path(error.filename).is_relative_to(folder):
            raise OutputError(f"{error.filename}: {os.strerror(error.errno)}") from error
        raise OutputError(f"{out}: cannot be written ({os.strerror(error.errno)})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """Create the folder ``out`` atomically.

    The block fills a hidden folder, which is renamed to ``out`` when the block ends and removed when it raises.

    Yields:
        The hidden folder.

    Raises:
        OutputError: ``out`` exists.
        OutputError: The folder cannot be written, for example because the disk is full.
    """
    refuse_existing(out)
    with scratch(out) as folder:
        yield folder
        for path in folder.iterdir():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        folder.chmod(0o755)
        folder.rename(out)


def hash_files(folder: Path, report: Report) -> dict[str, FileSpec]:
    """Compute the manifest's ``files`` entry: SHA-256 and size of every file in ``folder``, by file name."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    with report.bytes("hashing the artifact", sum(path.stat().st_size for path in paths)) as advance:
        return {path.name: file_spec(path, advance) for path in paths}


def file_spec(path: Path, on_progress: Callable[[int], object] | None = None) -> FileSpec:
    """Compute the manifest's entry of one file; ``on_progress`` takes the number of bytes of each piece read."""
    return FileSpec(sha256_file(path, on_progress), path.stat().st_size)
