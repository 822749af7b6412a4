"""What a client appends: base64 of 16-bit samples, or of G.711 at 8 kHz."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from runtime.server.realtime.session import Encoding, EventError

Samples = npt.NDArray[np.int16]


def decode_audio(audio: object, encoding: Encoding) -> Samples:
    """Samples [n] of the base64 text in an event's field ``audio``; [0] of an empty one.

    Raises:
        EventError: it is no text, no base64, or ends within a sample.
    """
    if not isinstance(audio, str):
        raise EventError("audio must be a string with the audio in base64", code="invalid_audio", param="audio")
    try:
        data = base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError):
        raise EventError("audio is not valid base64; nothing of it was used", "invalid_audio", "audio") from None
    if encoding == "audio/pcm":
        if len(data) % 2:
            raise EventError(
                f"audio has {len(data)} bytes, which are no whole 16-bit samples; nothing of it was used",
                code="invalid_audio",
                param="audio",
            )
        return np.frombuffer(data, "<i2").astype(np.int16, copy=False)
    return _TABLES[encoding][np.frombuffer(data, np.uint8)]


def _mu_law() -> Samples:
    """Sample of every byte: ITU-T G.711, table 2; scaled to 16 bits."""
    code = ~np.arange(256, dtype=np.uint8)
    step, exponent = (code & 0x0F).astype(np.int32), (code >> 4 & 0x07).astype(np.int32)
    magnitude = (((step << 3) + 0x84) << exponent) - 0x84
    return np.where(code & 0x80, -magnitude, magnitude).astype(np.int16)


def _a_law() -> Samples:
    """Sample of every byte: ITU-T G.711, table 1; scaled to 16 bits. Every other bit is sent inverted."""
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    step, exponent = (code & 0x0F).astype(np.int32), (code >> 4 & 0x07).astype(np.int32)
    linear = (step << 4) + 8
    magnitude = np.where(exponent, (linear + 0x100) << np.maximum(exponent - 1, 0), linear)
    return np.where(code & 0x80, magnitude, -magnitude).astype(np.int16)


_MAKERS: dict[str, Callable[[], Samples]] = {"audio/pcmu": _mu_law, "audio/pcma": _a_law}
_TABLES = {name: make() for name, make in _MAKERS.items()}
