"""What callers give the transcriber, and what they get for each request."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, BinaryIO

import msgspec
import numpy.typing as npt

from runtime.engines.base import SegmentOptions, Span
from runtime.errors import AsrError
from runtime.results import Task, Transcript

AudioSource = str | os.PathLike[str] | BinaryIO | npt.NDArray[Any]


class Request(msgspec.Struct, frozen=True):
    """An audio to transcribe, and how.

    ``source`` is a path, a binary stream, or an array [n] or [n, channels] (which needs ``sample_rate`` in Hz).
    ``language`` is a name, an ISO 639 code or a locale (``pt-BR``); None or ``auto`` detects it for each segment.
    ``context`` is hot words or free text that guides spelling. ``channel`` selects one channel, counted from 0, instead
    of the mean. ``track`` selects an audio track of a container, counted from 0, instead of its default one.
    ``timestamps`` lets the model time the parts of its text: each becomes a segment. ``task`` is
    ``transcribe``, or ``translate`` into English. ``long_form`` decodes by the model's own windows instead of cutting
    at pauses; all of the audio is read before the first text.

    ``known`` are segments decoded earlier (:meth:`Transcriber.transcribe_many`): where the audio is cut at the same
    positions, they are reused; long form ignores them. ``name`` names a binary stream in error messages.
    """

    source: AudioSource
    language: str | None = None
    context: str = ""
    sample_rate: int | None = None
    channel: int | None = None
    known: Sequence[Span] = ()
    name: str = "standard input"
    timestamps: bool = False
    task: Task = "transcribe"
    long_form: bool = False
    track: int | None = None


class ValidatedRequest(msgspec.Struct, frozen=True):
    """A request that the model can fulfil, and the options of its segments; made by :meth:`Transcriber.validate`.

    ``dropped_context_tokens`` counts the tokens at the start of a context that was shortened.
    """

    request: Request
    options: SegmentOptions
    dropped_context_tokens: int = 0


class Outcome(msgspec.Struct, frozen=True):
    """Result of one request. Exactly one of ``transcript`` and ``error`` is set; ``index`` is its input position."""

    index: int
    transcript: Transcript | None = None
    error: AsrError | None = None

    def result(self) -> Transcript:
        """Return the transcript.

        Raises:
            AsrError: the request failed.
        """
        if self.transcript is None:
            raise self.error or AssertionError("an outcome without transcript and error")
        return self.transcript
