"""A server in a process of its own, and HTTP clients that cost next to nothing: they share its cores."""

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

from tests.conftest import REPOSITORY

HOST = "127.0.0.1"
BOUNDARY = "tests-load-client"
_READY = re.compile(r"http://127\.0\.0\.1:(\d+) serves")
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LONGEST_HEAD = 1 << 16


class Lost(Exception):  # noqa: N818 (what became of a request)
    """A request without an answer."""


class Answer(msgspec.Struct, frozen=True):
    """Status and body."""

    status: int
    body: bytes


@dataclass(slots=True)
class ServerProcess:
    """``python -m runtime serve`` as it runs. ``folder`` is its temporary one."""

    process: subprocess.Popen[str]
    port: int
    folder: Path

    @property
    def resident_bytes(self) -> int:
        """Memory that it has now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    @property
    def cpu_seconds(self) -> float:
        """Processor time that it has had, of all threads."""
        # Fields 14 and 15 of the line (proc(5)); the command's name, field 2, may hold spaces.
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def open_files(self) -> int:
        """Descriptors that it holds: sockets, and temporary files, which have no names."""
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    @property
    def temporary_files(self) -> list[str]:
        """Names that it left in its temporary folder."""
        return sorted(path.name for path in self.folder.iterdir())


@contextmanager
def serving(*options: object, environment: Mapping[str, str] | None = None) -> Iterator[ServerProcess]:
    """The bundled small model behind a free port, until the context ends.

    Raises:
        RuntimeError: it did not start, or did not end with exit code 0.
    """
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "runtime", "serve", "--port", "0", *map(str, options)],
            cwd=REPOSITORY,
            env={**os.environ, "TMPDIR": folder, "ORT_DISABLE_TELEMETRY": "1", **(environment or {})},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr
        said: list[str] = []
        try:
            for line in process.stderr:
                said.append(line)
                if ready := _READY.search(line):
                    break
            else:
                raise RuntimeError(f"the server did not start:\n{''.join(said)}")
            # Its log must go somewhere, or it waits.
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
    """A multipart body with these fields, and ``audio`` as its file."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    if audio is not None:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n\r\n'
        parts += [head.encode("utf-8", "surrogateescape"), audio, b"\r\n"]
    return b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])


def request(method: str, path: str, headers: Mapping[str, str], body: bytes | None = None) -> bytes:
    """A request's bytes. ``Host`` and ``Content-Length`` are those that are right, unless ``headers`` have others."""
    usual = {"Host": HOST} | ({} if body is None else {"Content-Length": str(len(body))})
    lines = [f"{name}: {value}\r\n" for name, value in (usual | dict(headers)).items()]
    return f"{method} {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode("latin-1") + (body or b"")


def transcription(audio: bytes, headers: Mapping[str, str] | None = None, **fields: str) -> bytes:
    """A well-formed request to transcribe a file."""
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return request("POST", "/v1/audio/transcriptions", kind | dict(headers or {}), form(fields, audio))


class Connection:
    """One connection that is kept: a request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._close()

    async def exchange(self, data: bytes, seconds: float) -> Answer:
        """Send a request and read its answer.

        Raises:
            Lost: the connection failed, or ``seconds`` passed.
        """
        try:
            async with asyncio.timeout(seconds):
                if self._streams is None:
                    self._streams = await asyncio.open_connection(HOST, self._port, limit=_LONGEST_HEAD)
                reader, writer = self._streams
                writer.write(data)
                await writer.drain()
                head = await reader.readuntil(b"\r\n\r\n")
                status, length = _STATUS.match(head), _LENGTH.search(head)
                if not status or not length:
                    raise Lost(f"no answer of HTTP: {head[:200]!r}")
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
