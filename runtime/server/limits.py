"""Limits on requests, streams and connections of a server."""

from __future__ import annotations

import msgspec

from runtime.errors import OptionError

# Bytes of one WebSocket message: 16 s of 16-bit samples at 24 kHz in base64. uvicorn has the same limit.
MAX_MESSAGE_BYTES = 1 << 20


class Limits(msgspec.Struct, frozen=True):
    """Limits of a server. Limits on requests and streams apply to each model separately.

    Attributes:
        max_queue: accepted requests that are not finished; further requests are refused.
        max_streams: live streams that are open at once.
        max_upload_bytes: size of an uploaded file in bytes.
        max_audio_seconds: duration of an uploaded file in seconds.
        deadline: seconds from accepting a request to the end of its response.
        stream_seconds: duration of the audio of one live stream in seconds.
        body_timeout: seconds without receiving any byte of a request body, or without the client reading its response.
        header_timeout: seconds until the head of a request is complete.
        max_connections: connections that are open at once.

    Raises:
        OptionError: a limit is not positive.
    """

    max_queue: int = 256
    max_streams: int = 32
    max_upload_bytes: int = 200 * 10**6
    max_audio_seconds: float = 4 * 3600
    deadline: float = 1800.0
    stream_seconds: float = 4 * 3600
    body_timeout: float = 30.0
    header_timeout: float = 10.0
    max_connections: int = 1000

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not value > 0:
                raise OptionError(f"limit {name} must be positive, not {value:g}")
