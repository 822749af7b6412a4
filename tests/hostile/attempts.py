"""What a hostile client sends, how the server took it, and the kinds of it by name."""

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
    """What a client sends.

    Attributes:
        data: sent at once.
        drip: sent after it byte by byte, one every :data:`tests.hostile.sending.DRIP_SECONDS`.
        half_close: sends that nothing more will come.
        to_end: read until the server closes the connection: there may be more than one answer.
        frames: of a WebSocket, once it was accepted.
        until_closed: the server is to close the WebSocket; else to tell an error.
    """

    data: bytes
    drip: bytes = b""
    half_close: bool = False
    to_end: bool = False
    frames: tuple[bytes, ...] = ()
    until_closed: bool = False


class Outcome(msgspec.Struct, frozen=True):
    """How the server took it: statuses of its answers; for a WebSocket that was accepted an error event, or a code."""

    kind: Literal["answered", "event", "websocket", "closed", "hangs"]
    statuses: tuple[int, ...] = ()
    code: int | None = None

    @property
    def refused(self) -> bool:
        """Whether it is what a hostile request should get: 4xx, or the end of the connection."""
        if self.kind == "websocket":
            return self.code is None or 1001 < self.code < 1011
        return self.kind in ("event", "closed") or (
            self.kind == "answered" and all(400 <= status < 500 for status in self.statuses)
        )

    @property
    def name(self) -> str:
        """A word for a table."""
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
    """A kind, named as the function."""
    KINDS[make.__name__.strip("_").replace("_", " ")] = make
    return make


def several(name: str, values: dict[str, Any], make: Callable[[random.Random, Any], Attempt]) -> None:
    """A kind for each of ``values``."""
    for each, value in values.items():

        def made(rng: random.Random, value: Any = value) -> Attempt:
            return make(rng, value)

        KINDS[f"{name}: {each}"] = made


@cache
def recording(container: str) -> bytes:
    """A few seconds of speech, in a container of libsndfile."""
    if container == "OGG":  # each that is written has a number of its own
        return (DATA / "evaluation" / "en-11.ogg").read_bytes()
    samples, rate = soundfile.read(DATA / "en-1.wav", dtype="int16")
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container)
    return file.getvalue()


def post(fields: dict[str, str], audio: bytes | None, filename: str = "audio.wav") -> Attempt:
    """Fields and a file."""
    return Attempt(request("POST", TRANSCRIPTIONS, FORM | WITH_KEY, form(fields, audio, filename)))


def good(**headers: str) -> tuple[dict[str, str], bytes]:
    """Headers and body of a request that would be answered, to be spoiled."""
    return FORM | WITH_KEY | headers, form({}, recording("WAV"))


def raw_form(parts: bytes, boundary: str = BOUNDARY) -> Attempt:
    """A body that says it is a form."""
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"} | WITH_KEY
    return Attempt(request("POST", TRANSCRIPTIONS, headers, parts))
