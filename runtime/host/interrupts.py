"""End a command at once and in one sentence when it is interrupted while it is still imported.

The first module that ``python -m runtime`` (or ``export``, ``quantize``, ``asr_deploy``) imports of this project: until
then, in the first hundredths of a second, an interrupt is Python's own.
"""

from __future__ import annotations

import os
import signal
import sys

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
SENTENCE = "error: interrupted\n"
_COMMANDS = ("runtime", "export", "quantize", "asr_deploy")


def _end(_number: int, _frame: object) -> None:
    """End the process. Nothing has begun, and an exception could be lost in the import of an extension module."""
    try:
        os.write(2, SENTENCE.encode())
    finally:
        os._exit(INTERRUPTED)


def end_at_once() -> None:
    """Until :func:`raise_again`, let an interrupt end the process; not where interrupts are ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_again() -> None:
    """Let an interrupt raise ``KeyboardInterrupt`` again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_command() -> bool:
    """Return whether Python is about to run one of the project's packages as a command."""
    arguments = sys.orig_argv
    return sys.argv[:1] == ["-m"] and arguments[arguments.index("-m") + 1] in _COMMANDS


if _is_command():
    end_at_once()
