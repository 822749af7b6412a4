"""Run a command line as a process: interrupts, standard streams that fail, and the exit code.

Imports nothing slow: :mod:`runtime.host.interrupts` handles an interrupt while the command is imported.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import importlib
import io
import os
import signal
import sys
from typing import Any, NoReturn, TextIO

from runtime.errors import AsrError, OutputError
from runtime.host.interrupts import INTERRUPTED, SENTENCE, end_at_once, raise_again

BAD_INPUT = 2

_REASONS = {
    errno.EPIPE: "the program that reads it has ended",
    errno.EBADF: "it is closed",
}


class _StandardStream(io.RawIOBase):
    """A file descriptor whose errors are one sentence (standard output), or are ignored (standard error).

    Nobody can read a message about standard error, and the exit code is right without it.
    """

    def __init__(self, descriptor: int, name: str, *, ignores_errors: bool, closed: bool) -> None:
        self._descriptor, self._name = descriptor, name
        self._ignores_errors, self._closed = ignores_errors, closed

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        try:
            if self._closed:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            return os.write(self._descriptor, data)
        except OSError as error:
            if self._ignores_errors:
                return len(memoryview(data).cast("B"))
            # What remains in the buffers would be written again, and fail again, when Python ends.
            self._ignores_errors = True
            reason = _REASONS.get(error.errno or 0, os.strerror(error.errno or 0))
            raise OutputError(f"{self._name}: cannot be written ({reason})") from None


def run(module: str, attribute: str = "app") -> NoReturn:
    """Import a command line and run it with the arguments of the process; end the process.

    One sentence on standard error and exit code 2 follow an :class:`AsrError` and a file or folder that the system
    refuses; exit code 130 follows an interrupt.

    Args:
        module: name of the module, imported here.
        attribute: name of the callable in it, which takes no arguments.
    """
    end_at_once()
    closed = _open_missing_descriptors()
    try:
        _guard_streams(closed)
        command = getattr(importlib.import_module(module), attribute)
        raise_again()
        code = _call(command)
    except KeyboardInterrupt:
        code = _fail(SENTENCE, INTERRUPTED)
    code = _flush(code)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the work is done; Python would report an interrupt of its end
    sys.exit(code)


def _call(command: Any) -> int:
    """Call a command line; return its exit code."""
    try:
        command()
    except SystemExit as end:
        if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):  # Typer prints nothing
            return _fail(SENTENCE, INTERRUPTED)
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except AsrError as error:
        return _fail(f"error: {error}\n", BAD_INPUT)
    except OSError as error:
        if error.errno is None:
            raise
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return _fail(f"error: {where}{os.strerror(error.errno)}\n", BAD_INPUT)
    return 0


def _fail(message: str, code: int) -> int:
    if sys.stderr is not None:
        sys.stderr.write(message)
        sys.stderr.flush()
    return code


def _flush(code: int) -> int:
    """Write what is left in the buffers; return the exit code."""
    try:
        sys.stdout.flush()
    except AsrError as error:
        if code == 0:
            code = _fail(f"error: {error}\n", BAD_INPUT)
    sys.stderr.flush()
    return code


def _open_missing_descriptors() -> frozenset[int]:
    """Open the null device where a standard descriptor is closed; return which were.

    Otherwise the next file that is opened would be standard output or standard error, and messages of libraries would
    be written into it.
    """
    closed = set()
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            closed.add(descriptor)
    return frozenset(closed)


def _guard_streams(closed: frozenset[int]) -> None:
    """Replace standard output and standard error by streams that handle their errors."""
    if os.name != "posix":  # consoles of Windows are no files
        return
    sys.stdout = _guarded(sys.stdout, 1, "standard output", ignores_errors=False, closed=1 in closed)
    sys.stderr = _guarded(sys.stderr, 2, "standard error", ignores_errors=True, closed=2 in closed)


def _guarded(stream: TextIO | None, descriptor: int, name: str, *, ignores_errors: bool, closed: bool) -> TextIO:
    raw = _StandardStream(descriptor, name, ignores_errors=ignores_errors, closed=closed)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding if stream else "utf-8",
        # Bytes of file names that are not UTF-8 are printed as they are, other unknown characters as escapes.
        errors="backslashreplace" if ignores_errors else "asr-deploy",
        line_buffering=ignores_errors or raw.isatty(),
        write_through=ignores_errors,
    )


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode what a stream's encoding lacks: surrogates of file names as their bytes, characters as escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    with contextlib.suppress(UnicodeEncodeError):
        return text.encode("ascii", "surrogateescape"), error.end
    return text.encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error("asr-deploy", _escape)
