"""Hostile requests of many kinds, and the outcome of each.

Each kind is a function of a random number generator and makes the same request for the same seed. The server under
attack must have the key :data:`KEY` and the limits of :data:`OPTIONS`.
"""

from __future__ import annotations

from tests.hostile import audio, forms, http, websockets
from tests.hostile.attempts import KEY, KINDS, WITH_KEY, Outcome
from tests.hostile.audio import MAX_AUDIO_SECONDS
from tests.hostile.http import MAX_UPLOAD_BYTES
from tests.hostile.sending import attack

__all__ = [
    "ENDED_BY_CLIENT",
    "ENVIRONMENT",
    "KEY",
    "KINDS",
    "MAX_AUDIO_SECONDS",
    "MAX_UPLOAD_BYTES",
    "OPTIONS",
    "WITH_KEY",
    "Outcome",
    "attack",
    "audio",
    "forms",
    "http",
    "websockets",
]

ENVIRONMENT = {"ASR_DEPLOY_API_KEYS": KEY}
OPTIONS = ("--max-upload-mb", MAX_UPLOAD_BYTES / 1e6, "--max-audio-seconds", MAX_AUDIO_SECONDS)
# The client has closed the connection, so there is no response.
ENDED_BY_CLIENT = frozenset({"body that ends early", "head that ends early"})
