"""What one client may take of a server, and all of them together."""

from __future__ import annotations

import msgspec

from runtime.errors import OptionError


class Limits(msgspec.Struct, frozen=True):
    """Bounds of a server. Those of requests and streams count for each model by itself.

    Attributes:
        max_queue: requests accepted and not yet finished; more are refused.
        max_streams: live streams open at once.
        max_upload_bytes: of one request's body.
        max_audio_seconds: length of one request's audio.
        deadline: seconds from the acceptance of a request to its end.
        stream_seconds: audio of one live stream.
        body_timeout: seconds without a byte of a body.
        header_timeout: seconds until a request's headers are there.
        max_connections: connections open at once.

    Raises:
        OptionError: one of them is not positive.
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
