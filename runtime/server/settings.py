"""Settings of a server."""

from __future__ import annotations

import msgspec

from runtime.server.keys import is_valid_key
from runtime.server.limits import Limits


class Settings(msgspec.Struct, frozen=True):
    """Settings of a server.

    Attributes:
        keys: valid API keys for ``/v1``. Without keys, no authentication is required.
        limits: bounds on requests, streams and connections.
        log_text: write transcripts to the log.
        vad: split files into segments by voice activity detection.
        grace: seconds that accepted requests get to finish during shutdown.
        hosts: host names that browsers may use in addition to IP addresses and local names. Only used without keys.
    """

    keys: tuple[str, ...] = ()
    limits: Limits = Limits()
    log_text: bool = False
    vad: bool = True
    grace: float = 30.0
    hosts: tuple[str, ...] = ()

    def accepts_key(self, key: str | None) -> bool:
        """Return whether ``key`` grants access to ``/v1``. The time taken does not depend on the keys' contents."""
        return not self.keys or is_valid_key(key, self.keys)

    def __repr__(self) -> str:
        """Return a text without the keys, since it may be logged."""
        return f"Settings({len(self.keys)} keys, {self.limits}, log_text={self.log_text}, vad={self.vad})"
