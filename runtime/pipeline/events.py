"""What a stream tells while audio arrives."""

from __future__ import annotations

import msgspec

from runtime.results import Segment


class Speech(msgspec.Struct, frozen=True, tag="speech"):
    """Somebody began to speak: the segment with this number is open. ``start`` is in seconds of the stream."""

    segment: int
    start: float


class Partial(msgspec.Struct, frozen=True, tag="partial"):
    """What an open segment is heard to say so far.

    ``stable`` is never taken back: every later text of the segment, the final one too, begins with it. ``unstable``
    is the rest, which may change; the two are one text, with the space between them in ``unstable``. ``end`` is how
    much of the stream, in seconds, was heard for it.
    """

    segment: int
    start: float
    end: float
    stable: str
    unstable: str
    language: str | None


class Final(msgspec.Struct, frozen=True, tag="final"):
    """A segment is over, and this is its text.

    ``as_offline`` says that it is the text which this audio gives offline. It is not only where offline the model
    takes back what was reported stable: the stable text stays then, and the rest is decoded after it.
    """

    segment: int
    result: Segment
    as_offline: bool


Event = Speech | Partial | Final
