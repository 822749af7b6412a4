"""Hash files, write them atomically, and find the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

_HASH_BLOCK = 4 * 2**20  # bytes


def sha256_file(path: Path, on_progress: Callable[[int], object] | None = None) -> str:
    """Return the SHA-256 of a file in hex.

    Args:
        path: the file.
        on_progress: called after each block with its number of bytes.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_HASH_BLOCK):
            digest.update(block)
            if on_progress:
                on_progress(len(block))
    return digest.hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to a temporary file in the same folder, then rename it: readers see the old file or the new one.

    Raises:
        OSError: the file cannot be written.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(temporary).chmod(0o644)  # mkstemp gives access to the owner only
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def printable(text: str) -> str:
    r"""Return ``text`` with each byte of a file name that is not UTF-8 as an escape (``\xe9``).

    JSON and names of outputs must be UTF-8; different names stay different.
    """
    try:
        return os.fsencode(text).decode(errors="backslashreplace")
    except UnicodeEncodeError:  # other lone surrogates, which names on Windows may have
        return text.encode(errors="backslashreplace").decode()


def append_whole(descriptor: int, data: bytes) -> None:
    """Append ``data`` to a file that no other process writes; if that fails, restore the file's earlier length.

    Raises:
        OSError: it cannot be written, for example because the disk is full.
    """
    size = os.fstat(descriptor).st_size
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def user_cache() -> Path | None:
    """Return asr-deploy's folder in the user's cache, or None for a user without a home, as in some containers."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "asr-deploy"
    except RuntimeError:
        return None
