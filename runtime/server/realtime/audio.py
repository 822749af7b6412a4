"""Decoding of appended audio: base64 of 16-bit PCM, or of G.711 at 8 kHz."""

from __future__ import annotations

import base64
import binascii

import numpy as np
import numpy.typing as npt

from runtime.server.realtime.session import Encoding, EventError

Samples = npt.NDArray[np.int16]


def decode_audio(audio: object, encoding: Encoding) -> Samples:
    """Decode the field ``audio`` of an event.

    Args:
        audio: base64 text; any other type is refused.
        encoding: encoding of the bytes. PCM is 16-bit little-endian.

    Returns:
        Samples [n], int16; [0] for an empty text.

    Raises:
        EventError: ``audio`` is not a string.
        EventError: ``audio`` is not valid base64.
        EventError: PCM with an odd number of bytes.
    """
    if not isinstance(audio, str):
        raise EventError("audio must be a base64 string", code="invalid_audio", param="audio")
    try:
        data = base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError):
        raise EventError("audio is not valid base64; all of it was ignored", "invalid_audio", "audio") from None
    if encoding == "audio/pcm":
        if len(data) % 2:
            raise EventError(
                f"audio has {len(data)} bytes, not a whole number of 16-bit samples; all of it was ignored",
                code="invalid_audio",
                param="audio",
            )
        return np.frombuffer(data, "<i2").astype(np.int16, copy=False)
    return _TABLES[encoding][np.frombuffer(data, np.uint8)]


def _mu_law() -> Samples:
    """Return the sample of each code [256]: ITU-T G.711, table 2, scaled to 16 bits."""
    code = ~np.arange(256, dtype=np.uint8)
    step, exponent = (code & 0x0F).astype(np.int32), (code >> 4 & 0x07).astype(np.int32)
    magnitude = (((step << 3) + 0x84) << exponent) - 0x84
    return np.where(code & 0x80, -magnitude, magnitude).astype(np.int16)


def _a_law() -> Samples:
    """Return the sample of each code [256]: ITU-T G.711, table 1, scaled to 16 bits. Every other bit is inverted."""
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    step, exponent = (code & 0x0F).astype(np.int32), (code >> 4 & 0x07).astype(np.int32)
    linear = (step << 4) + 8
    magnitude = np.where(exponent, (linear + 0x100) << np.maximum(exponent - 1, 0), linear)
    return np.where(code & 0x80, magnitude, -magnitude).astype(np.int16)


_TABLES: dict[str, Samples] = {"audio/pcmu": _mu_law(), "audio/pcma": _a_law()}
