"""Sending hostile requests and reading their outcomes."""

from __future__ import annotations

import asyncio
import random
import re
import struct

import msgspec

from tests.helpers.load_client import HOST
from tests.hostile.attempts import KINDS, Attempt, Outcome
from tests.hostile.websockets import CLOSE, TEXT

# Seconds without a response after which the server hangs. Longer than its own limits, such as 30 s for a body.
PATIENCE = 60.0
# Seconds between the bytes of a slow request.
DRIP_SECONDS = 0.5

STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


async def attack(port: int, count: int, at_once: int, seed: int = 0) -> list[tuple[str, Outcome]]:
    """Send requests and return kind and outcome of each.

    Args:
        port: port of the server.
        count: number of requests; the kinds take turns.
        at_once: limit on concurrent requests. Slow requests do not count.
        seed: seed of the requests.
    """
    rng = random.Random(seed)
    kinds = list(KINDS)
    slots = asyncio.Semaphore(at_once)

    async def send_one(number: int, seed: int) -> tuple[str, Outcome]:
        kind = kinds[number % len(kinds)]
        attempt = KINDS[kind](random.Random(seed))
        if attempt.drip or kind.endswith("never comes"):
            return kind, await _sent(port, attempt)
        async with slots:
            return kind, await _sent(port, attempt)

    return await asyncio.gather(*(send_one(number, rng.getrandbits(64)) for number in range(count)))


async def _sent(port: int, attempt: Attempt) -> Outcome:
    reader, writer = await asyncio.open_connection(HOST, port)
    sending = asyncio.create_task(_send(writer, attempt))
    try:
        async with asyncio.timeout(PATIENCE):
            outcome = await _read(reader, attempt)
            if outcome.statuses != (101,):
                return outcome
            await sending
            sending = asyncio.create_task(_send_all(writer, attempt.frames))
            return await _read_frames(reader, attempt.until_closed)
    except TimeoutError:
        return Outcome("hangs")
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()


async def _send(writer: asyncio.StreamWriter, attempt: Attempt) -> None:
    await _send_all(writer, (attempt.data,))
    for byte in attempt.drip:
        await asyncio.sleep(DRIP_SECONDS)
        await _send_all(writer, (bytes([byte]),))
    if attempt.half_close:
        writer.write_eof()


async def _send_all(writer: asyncio.StreamWriter, pieces: tuple[bytes, ...]) -> None:
    for piece in pieces:
        writer.write(piece)
        await writer.drain()


async def _read(reader: asyncio.StreamReader, attempt: Attempt) -> Outcome:
    """Read the response, or all responses until the connection ends."""
    statuses: list[int] = []
    try:
        while not statuses or attempt.to_end:
            head = await reader.readuntil(b"\r\n\r\n")
            status, length = STATUS.match(head), LENGTH.search(head)
            assert status, head
            if status[1] == b"100":
                continue
            statuses.append(int(status[1]))
            if statuses == [101]:
                break
            assert length, head
            await reader.readexactly(int(length[1]))
    except (OSError, EOFError):  # the connection ended, possibly within a response
        pass
    return Outcome("answered", tuple(statuses)) if statuses else Outcome("closed")


async def _read_frames(reader: asyncio.StreamReader, until_closed: bool) -> Outcome:
    """Read unmasked frames until the server sends an error event or closes."""
    try:
        while True:
            first, size = await reader.readexactly(2)
            if size >= 126:
                form_ = ">H" if size == 126 else ">Q"
                (size,) = struct.unpack(form_, await reader.readexactly(struct.calcsize(form_)))
            payload = await reader.readexactly(size)
            if first & 15 == CLOSE:
                return Outcome("websocket", code=struct.unpack(">H", payload[:2])[0] if payload else None)
            if first & 15 == TEXT and not until_closed and msgspec.json.decode(payload)["type"] == "error":
                return Outcome("event")
    except (OSError, EOFError):
        return Outcome("closed")
