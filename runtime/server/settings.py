"""What a server was told: keys, limits, what it logs."""

from __future__ import annotations

import msgspec

from runtime.server.http.keys import matches
from runtime.server.limits import Limits


class Settings(msgspec.Struct, frozen=True):
    """How a server behaves.

    Attributes:
        keys: any of them opens ``/v1``; without one, everybody may use it.
        limits: what clients may take.
        log_text: write what was transcribed into the log.
        vad: the models look for speech, and cut at its pauses.
        grace: seconds that accepted requests get to finish when the server stops.
        hosts: without keys, names of the server beside its addresses and local names: pages find it under no others.
    """

    keys: tuple[str, ...] = ()
    limits: Limits = Limits()
    log_text: bool = False
    vad: bool = True
    grace: float = 30.0
    hosts: tuple[str, ...] = ()

    def allows(self, presented: str | None) -> bool:
        """Whether somebody with this key may use ``/v1``. How long that takes says nothing about the keys."""
        return not self.keys or matches(presented, self.keys)

    def __repr__(self) -> str:
        """Without the keys, for this may end in a log."""
        return f"Settings({len(self.keys)} keys, {self.limits}, log_text={self.log_text}, vad={self.vad})"
