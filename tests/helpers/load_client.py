"""Server in a separate process, and a lightweight HTTP client that leaves the cores to the server."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

from tests.conftest import ARTIFACT, REPOSITORY

HOST = "127.0.0.1"
BOUNDARY = "tests-load-client"
_READY = re.compile(r"http://127\.0\.0\.1:(\d+) serves")
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_MAX_HEAD_BYTES = 1 << 16


class Lost(Exception):  # noqa: N818 (a state of a request)
    """The request got no response."""


class Answer(msgspec.Struct, frozen=True):
    """Status and body of a response."""

    status: int
    body: bytes


@dataclass(slots=True)
class ServerProcess:
    """Running ``python -m runtime serve``. ``folder`` is its temporary folder."""

    process: subprocess.Popen[str]
    port: int
    folder: Path

    @property
    def resident_bytes(self) -> int:
        """Resident memory in bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    @property
    def cpu_seconds(self) -> float:
        """Processor time of all threads in seconds."""
        # Fields 14 and 15 of proc(5). Field 2, the command's name, may contain spaces.
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def open_files(self) -> int:
        """Number of open file descriptors: sockets and unnamed temporary files."""
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    @property
    def temporary_files(self) -> list[str]:
        """Names of the files in its temporary folder."""
        return sorted(path.name for path in self.folder.iterdir())


@contextmanager
def serving(*options: object, environment: Mapping[str, str] | None = None) -> Iterator[ServerProcess]:
    """Serve the small model, or the one of ``--model``, on a free port until the context ends.

    Raises:
        RuntimeError: the server did not start.
        RuntimeError: the server did not end with exit code 0.
    """
    named = [] if "--model" in options else ["--model", str(ARTIFACT)]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "runtime", "serve", "--port", "0", *named, *map(str, options)],
            cwd=REPOSITORY,
            env={**os.environ, "TMPDIR": folder, "ORT_DISABLE_TELEMETRY": "1", **(environment or {})},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr
        lines: list[str] = []
        try:
            for line in process.stderr:
                lines.append(line)
                if ready := _READY.search(line):
                    break
            else:
                raise RuntimeError(f"the server did not start:\n{''.join(lines)}")
            # Read its log, or it blocks when the pipe is full.
            drained = threading.Thread(target=_drain, args=(process.stderr,), daemon=True)
            drained.start()
            yield ServerProcess(process, int(ready[1]), Path(folder))
            process.terminate()
            if code := process.wait(60):
                raise RuntimeError(f"the server ended with exit code {code}")
        finally:
            process.kill()
            process.wait()


def _drain(log: Iterator[str]) -> None:
    for _ in log:
        pass


def form(fields: Mapping[str, str], audio: bytes | None, filename: str = "audio.wav") -> bytes:
    """Return a multipart body with these fields and ``audio`` as the file."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    if audio is not None:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n\r\n'
        parts += [head.encode("utf-8", "surrogateescape"), audio, b"\r\n"]
    return b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])


def request(method: str, path: str, headers: Mapping[str, str], body: bytes | None = None) -> bytes:
    """Return the bytes of a request. ``headers`` may override the correct ``Host`` and ``Content-Length``."""
    default = {"Host": HOST} | ({} if body is None else {"Content-Length": str(len(body))})
    lines = [f"{name}: {value}\r\n" for name, value in (default | dict(headers)).items()]
    return f"{method} {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode("latin-1") + (body or b"")


def transcription(audio: bytes, headers: Mapping[str, str] | None = None, **fields: str) -> bytes:
    """Return a well-formed request to transcribe a file."""
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return request("POST", "/v1/audio/transcriptions", kind | dict(headers or {}), form(fields, audio))


class Connection:
    """Persistent connection for one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._close()

    async def exchange(self, data: bytes, seconds: float) -> Answer:
        """Send a request and read its response.

        Raises:
            Lost: the connection failed.
            Lost: there was no response within ``seconds``.
        """
        try:
            async with asyncio.timeout(seconds):
                if self._streams is None:
                    self._streams = await asyncio.open_connection(HOST, self._port, limit=_MAX_HEAD_BYTES)
                reader, writer = self._streams
                writer.write(data)
                await writer.drain()
                head = await reader.readuntil(b"\r\n\r\n")
                status, length = _STATUS.match(head), _LENGTH.search(head)
                if not status or not length:
                    raise Lost(f"not an HTTP response: {head[:200]!r}")
                body = await reader.readexactly(int(length[1]))
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
            self._close()
            raise Lost(f"{type(error).__name__}: {error}") from None
        if b"\r\nconnection: close" in head.lower():
            self._close()
        return Answer(int(status[1]), body)

    def _close(self) -> None:
        if self._streams:
            self._streams[1].close()
            self._streams = None
