"""Sends attempts, and finds out what became of them."""

from __future__ import annotations

import asyncio
import random
import re
import struct

import msgspec

from tests.helpers.load_client import HOST
from tests.hostile.attempts import KINDS, Attempt, Outcome
from tests.hostile.websockets import CLOSE, TEXT

# A server that says nothing for so long hangs: longer than its own limits, 30 s for a body.
PATIENCE = 60.0
# Seconds between the bytes of a slow one.
DRIP_SECONDS = 0.5

STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


async def attack(port: int, count: int, at_once: int, seed: int = 0) -> list[tuple[str, Outcome]]:
    """Send ``count`` requests, of every kind in turn; kind and outcome of each.

    The slow ones are all there at once, beside ``at_once`` of the others.
    """
    rng = random.Random(seed)
    kinds = list(KINDS)
    indices = asyncio.Semaphore(at_once)

    async def one(number: int, own: int) -> tuple[str, Outcome]:
        kind = kinds[number % len(kinds)]
        attempt = KINDS[kind](random.Random(own))
        if attempt.drip or kind.endswith("never comes"):
            return kind, await _sent(port, attempt)
        async with indices:
            return kind, await _sent(port, attempt)

    return await asyncio.gather(*(one(number, rng.getrandbits(64)) for number in range(count)))


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
    """The answer, or all answers up to the end of the connection."""
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
    except (OSError, EOFError):  # the end, in the middle of something or not
        pass
    return Outcome("answered", tuple(statuses)) if statuses else Outcome("closed")


async def _read_frames(reader: asyncio.StreamReader, until_closed: bool) -> Outcome:
    """Until the server tells an error, or closes; its frames have no masks."""
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
