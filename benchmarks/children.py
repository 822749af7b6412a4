"""Child processes to time: they read a job and then one line per run, and answer each with one line of JSON."""

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
_ERROR_CHARACTERS = 2000  # end of standard error that goes into the message of a failure


class ChildError(RuntimeError):
    """A process ended without an answer; ``reason`` is the last line of its standard error."""

    def __init__(self, command: str, code: int, errors: str) -> None:
        super().__init__(f"{command} exited with code {code}: {errors}")
        self.reason = (errors.strip().splitlines() or [f"exit code {code}"])[-1]


class Child:
    """A process that has read its job; it is killed when the context ends."""

    def __init__(self, command: Sequence[str | Path], job: Mapping[str, Any]) -> None:
        """Start ``command`` and write ``job`` to its standard input, without waiting for an answer."""
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

    def ask(self, request: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Start one run, described by ``request`` if the process needs that, and return its answer."""
        self._send("" if request is None else json.dumps(request))
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Return the next line of its output.

        Raises:
            ChildError: the process ended without one.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            errors = self._errors.read().decode(errors="replace")[-_ERROR_CHARACTERS:]
            raise ChildError(" ".join(self._command), code, errors)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            log.debug("%s closed its input; the reason follows when its answer is read", self._command)


def first_answer(command: Sequence[str | Path], job: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """Start a process and return the seconds until its first answer, and the answer."""
    began = time.perf_counter()
    with Child(command, job) as child:
        answer = child.answer()
        return time.perf_counter() - began, answer


def module(name: str, python: str | Path = sys.executable) -> list[str | Path]:
    """Return the command that runs a module of this repository."""
    return [python, "-m", name]
