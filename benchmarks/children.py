"""Processes that are timed: they read a job, then a line for each run, and answer each with a line of JSON."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

log = logging.getLogger("benchmarks")

REPOSITORY = Path(__file__).resolve().parents[1]
_COMPLAINT = 2000  # characters of what a process that failed said last


class ChildError(RuntimeError):
    """A process ended without an answer; the message has the end of what it wrote, ``reason`` its last line."""

    def __init__(self, command: str, code: int, said: str) -> None:
        super().__init__(f"{command} ended with {code}: {said}")
        self.reason = (said.strip().splitlines() or [f"exit code {code}"])[-1]


class Child:
    """A process that has been given its job. Where nobody asks any more, its input ends, and so does it."""

    def __init__(self, command: Sequence[str | Path], job: Mapping[str, Any]) -> None:
        """Start ``command`` and hand it ``job``, without waiting for anything."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by __exit__
        self._command = [str(part) for part in command]
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )
        self._send(json.dumps(job))

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def ask(self) -> dict[str, Any]:
        """Let it run once, and wait for what it says."""
        self._send("")
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line that it says.

        Raises:
            ChildError: it ended instead.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace")[-_COMPLAINT:]
            raise ChildError(" ".join(self._command), code, said)
        found: dict[str, Any] = json.loads(line)
        return found

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            log.debug("%s does not listen any more; its answer will say why", self._command)


def first_answer(command: Sequence[str | Path], job: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """Seconds from the start of a process to the first line that it says, and that line."""
    began = time.perf_counter()
    with Child(command, job) as child:
        answer = child.answer()
        return time.perf_counter() - began, answer


def module(name: str, python: str | Path = sys.executable) -> list[str | Path]:
    """The command that runs a module of this repository."""
    return [python, "-m", name]
