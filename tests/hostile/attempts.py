"""Hostile requests, their outcomes, and the registry of kinds."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import msgspec
import soundfile

from tests.conftest import DATA
from tests.helpers.load_client import BOUNDARY, form, request

KEY = "the-key-of-the-server"
WITH_KEY = {"Authorization": f"Bearer {KEY}"}
TRANSCRIPTIONS = "/v1/audio/transcriptions"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


class Attempt(msgspec.Struct, frozen=True):
    """Hostile request.

    Attributes:
        data: bytes sent at once.
        drip: bytes sent afterwards, one every :data:`tests.hostile.sending.DRIP_SECONDS`.
        half_close: close the sending side afterwards.
        to_end: read until the server closes the connection, since there may be several responses.
        frames: frames sent once a WebSocket was accepted.
        until_closed: the server must close the WebSocket; otherwise it must send an error event.
    """

    data: bytes
    drip: bytes = b""
    half_close: bool = False
    to_end: bool = False
    frames: tuple[bytes, ...] = ()
    until_closed: bool = False


class Outcome(msgspec.Struct, frozen=True):
    """Outcome of a request: statuses of the responses, or for an accepted WebSocket an error event or a close code."""

    kind: Literal["answered", "event", "websocket", "closed", "hangs"]
    statuses: tuple[int, ...] = ()
    code: int | None = None

    @property
    def refused(self) -> bool:
        """Whether the request was refused with 4xx, an error event, or the end of the connection."""
        if self.kind == "websocket":
            return self.code is None or 1001 < self.code < 1011
        return self.kind in ("event", "closed") or (
            self.kind == "answered" and all(400 <= status < 500 for status in self.statuses)
        )

    @property
    def name(self) -> str:
        """Short text for a table."""
        match self.kind:
            case "answered":
                return "/".join(map(str, self.statuses))
            case "websocket":
                return f"WebSocket closed with {self.code}"
            case "event":
                return "error event"
            case other:
                return other


Make = Callable[[random.Random], Attempt]
KINDS: dict[str, Make] = {}


def kind(make: Make) -> Make:
    """Register a kind under the name of its function."""
    KINDS[make.__name__.strip("_").replace("_", " ")] = make
    return make


def several(name: str, values: dict[str, Any], make: Callable[[random.Random, Any], Attempt]) -> None:
    """Register a kind for each of ``values``."""
    for each, value in values.items():

        def attempt(rng: random.Random, value: Any = value) -> Attempt:
            return make(rng, value)

        KINDS[f"{name}: {each}"] = attempt


@cache
def recording(container: str) -> bytes:
    """Return a few seconds of speech in a container of libsndfile."""
    if container == "OGG":  # libsndfile writes a random serial number
        return (DATA / "evaluation" / "en-11.ogg").read_bytes()
    samples, rate = soundfile.read(DATA / "en-1.wav", dtype="int16")
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container)
    return file.getvalue()


def post(fields: dict[str, str], audio: bytes | None, filename: str = "audio.wav") -> Attempt:
    """Return a request with these fields and a file."""
    return Attempt(request("POST", TRANSCRIPTIONS, FORM | WITH_KEY, form(fields, audio, filename)))


def good(**headers: str) -> tuple[dict[str, str], bytes]:
    """Return headers and body of a valid request, to be modified."""
    return FORM | WITH_KEY | headers, form({}, recording("WAV"))


def raw_form(parts: bytes, boundary: str = BOUNDARY) -> Attempt:
    """Return a request with ``parts`` as the body of a form."""
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"} | WITH_KEY
    return Attempt(request("POST", TRANSCRIPTIONS, headers, parts))
