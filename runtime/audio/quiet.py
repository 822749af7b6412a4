"""Keep messages that libmpg123 writes with C's ``stderr`` off the terminal, without touching file descriptor 2.

libsndfile decodes MP3 with libmpg123, which prints damaged frames and gives no option through libsndfile to turn that
off. Redirecting the descriptor would lose what other threads write. So only the C library's variable ``stderr`` points
to the null device while MP3 is decoded: Python, C++ streams and writes to the descriptor are not affected.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_lock = threading.Lock()
_users = 0
_original: int | None = None


@cache
def _variable() -> tuple[ctypes.c_void_p, int] | None:
    """Return the C library's variable and an open stream to the null device; None where the variable is constant."""
    library = ctypes.CDLL(None) if sys.platform != "win32" else None
    if library is None or not (name := _variable_name()):
        return None
    library.fopen.restype, library.fopen.argtypes = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_char_p)
    null = library.fopen(os.devnull.encode(), b"w")  # stays open: a thread may still hold the pointer
    return (ctypes.c_void_p.in_dll(library, name), null) if null else None


def _variable_name() -> str | None:
    """Return the name of the variable: glibc and macOS have one; in musl ``stderr`` is read-only."""
    if sys.platform == "darwin":
        return "__stderrp"
    if sys.platform.startswith("linux") and "CS_GNU_LIBC_VERSION" in os.confstr_names:
        try:
            return "stderr" if (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc") else None
        except (OSError, ValueError):
            return None
    return None


@contextmanager
def quiet_c_stderr() -> Iterator[None]:
    """Discard what C code of this process writes to the stream ``stderr`` within the ``with`` block."""
    global _users, _original
    pair = _variable()
    if pair is None:
        yield
        return
    variable, null = pair
    with _lock:
        _users += 1
        if _users == 1:
            _original, variable.value = variable.value, null
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                variable.value = _original
