"""Events of a live stream."""

from __future__ import annotations

import msgspec

from runtime.results import Segment


class Speech(msgspec.Struct, frozen=True, tag="speech"):
    """Speech started: the segment with this number is open. ``start`` is in seconds of the stream."""

    segment: int
    start: float


class Partial(msgspec.Struct, frozen=True, tag="partial"):
    """Text of an open segment so far.

    ``stable`` never changes: every later text of the segment, the final one included, starts with it. ``unstable`` is
    the rest and may change; together they are one text, with the space between them in ``unstable``. ``end`` is the
    position in the stream, in seconds, up to which audio was decoded.
    """

    segment: int
    start: float
    end: float
    stable: str
    unstable: str
    language: str | None


class Final(msgspec.Struct, frozen=True, tag="final"):
    """The final text of a segment.

    ``as_offline`` is True when it equals the offline text of the same audio. It is False only where the offline text
    would change stable text: the stable text stays then, and the rest is decoded after it.
    """

    segment: int
    result: Segment
    as_offline: bool


Event = Speech | Partial | Final
