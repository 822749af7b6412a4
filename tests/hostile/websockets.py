"""Hostile WebSockets (RFC 6455) and realtime events."""

from __future__ import annotations

import base64
import random
import struct
from typing import Any

import msgspec

from tests.helpers.load_client import request
from tests.hostile.attempts import (
    WITH_KEY,
    Attempt,
    kind,
    several,
)


def _upgrade(headers: dict[str, str], path: str = "/v1/realtime?intent=transcription") -> bytes:
    default = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
    }
    return request("GET", path, {name: value for name, value in (default | headers).items() if value})


several(
    "WebSocket that is refused",
    {
        "no key": {},
        "another key": {"Authorization": "Bearer sk-0000"},
        "wrong key as a protocol": {"Sec-WebSocket-Protocol": "realtime, openai-insecure-api-key.sk-0000"},
        "foreign page without a key": {"Origin": "https://evil.example"},
        "another version": WITH_KEY | {"Sec-WebSocket-Version": "7"},
        "handshake without its key": WITH_KEY | {"Sec-WebSocket-Key": ""},
        "handshake with a short key": WITH_KEY | {"Sec-WebSocket-Key": "YQ=="},
    },
    lambda _, headers: Attempt(_upgrade(headers)),
)
several(
    "WebSocket at a wrong path",
    {"path": "/v1/audio/transcriptions", "root": "/ws"},
    lambda _, path: Attempt(_upgrade(WITH_KEY, path)),
)
several(
    "WebSocket with a wrong query",
    {"model": "model=../../etc/passwd", "intent": "intent=conversation", "unknown": "intent=transcription&debug=1"},
    lambda _, query: Attempt(_upgrade(WITH_KEY, f"/v1/realtime?{query}"), until_closed=True),
)

TEXT, _BINARY, CLOSE, _PING, _CONTINUED = 1, 2, 8, 9, 0


def _frame(opcode: int, payload: bytes, *, first: int = 0x80, masked: bool = True, length: int | None = None) -> bytes:
    """Return a frame.

    ``first`` has the bits of the first byte other than the opcode; ``length`` overrides the length field.
    """
    size = len(payload) if length is None else length
    mask = 0x80 if masked else 0
    if size < 126:
        head = bytes([first | opcode, mask | size])
    elif size < 1 << 16:
        head = bytes([first | opcode, mask | 126]) + struct.pack(">H", size)
    else:
        head = bytes([first | opcode, mask | 127]) + struct.pack(">Q", size)
    return head + (bytes(4) if masked else b"") + payload  # a mask of zeros does not change the payload


def _session(*frames: bytes, until_closed: bool = False) -> Attempt:
    return Attempt(_upgrade(WITH_KEY), frames=frames, until_closed=until_closed)


def _event(**fields: Any) -> bytes:
    return _frame(TEXT, msgspec.json.encode(fields))


several(
    "event",
    {
        "garbage": b"\x7b\x7b\x7b",
        "deep": b"[" * 200_000,
        "list": b"[]",
        "no type": b'{"audio": ""}',
        "type that is not a string": b'{"type": 7}',
        "unknown type": b'{"type": "response.create"}',
        "bad base64": b'{"type": "input_audio_buffer.append", "audio": "%%%%"}',
        "audio that is a number": b'{"type": "input_audio_buffer.append", "audio": 5}',
        "half a sample": b'{"type": "input_audio_buffer.append", "audio": "YQ=="}',
        "commit of nothing": b'{"type": "input_audio_buffer.commit"}',
        "session that is a list": b'{"type": "session.update", "session": []}',
        "unknown rate": b'{"type": "session.update", "session": {"type": "transcription", "audio": {"input": '
        b'{"format": {"type": "audio/pcm", "rate": 1e308}}}}}',
        "unknown field": b'{"type": "session.update", "session": {"type": "transcription", "__proto__": 1}}',
        "wrong model": b'{"type": "session.update", "session": {"type": "transcription", "audio": {"input": '
        b'{"transcription": {"model": "/etc/passwd"}}}}}',
    },
    lambda _, payload: _session(_frame(TEXT, payload)),
)


@kind
def _binary_message(rng: random.Random) -> Attempt:
    return _session(_frame(_BINARY, rng.randbytes(1_000)))


@kind
def _message_larger_than_allowed(rng: random.Random) -> Attempt:
    audio = "A" * rng.randrange(1 << 20, 1 << 21)
    return _session(_event(type="input_audio_buffer.append", audio=audio), until_closed=True)


@kind
def _flood_of_garbage(rng: random.Random) -> Attempt:
    return _session(*[_frame(TEXT, rng.randbytes(5).hex().encode())] * 500, until_closed=True)


several(
    "frame",
    {
        "without a mask": _frame(TEXT, b"{}", masked=False),
        "unknown opcode": _frame(5, b"{}"),
        "reserved bits": _frame(TEXT, b"{}", first=0xF0),
        "not utf-8": _frame(TEXT, b"\xff\xfe\xfd"),
        "continues nothing": _frame(_CONTINUED, b"{}"),
        "ping in parts": _frame(_PING, b"a", first=0),
        "ping too long": _frame(_PING, b"a" * 126),
        "close with half a code": _frame(CLOSE, b"\x03"),
        "close with a reserved code": _frame(CLOSE, struct.pack(">H", 1005)),
        "longer than can be": _frame(TEXT, b"", length=2**63 + 1),
        "longer than allowed": _frame(TEXT, b"", length=2**40),
    },
    lambda _, frame: _session(frame, until_closed=True),
)
