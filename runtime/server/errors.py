"""What a server refuses or gives up: each says in one sentence what was wrong and what to do.

The text of an :class:`runtime.errors.AsrError` is for the client, as everywhere. :class:`EngineFailure` is none: the
client is told that the server failed, and the log has the reason.
"""

# ruff: noqa: N818 (they are states of a server, and their names say so)

from __future__ import annotations

from runtime.errors import AsrError


class Busy(AsrError):
    """As much as may wait is waiting already (HTTP 429). ``retry_after`` is when to try again, in whole seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceeded(AsrError, TimeoutError):
    """The request was not done in the time that it may take (HTTP 504)."""


class AudioTooLong(AsrError):
    """The audio is longer than this server takes (HTTP 413)."""


class Closing(AsrError):
    """The server is shutting down, or not yet started (HTTP 503)."""


class EngineFailure(RuntimeError):
    """The model failed at this audio or beside it. Nothing of the reason is in the text; the log has it."""

    def __init__(self) -> None:
        super().__init__("the model failed while this audio was transcribed")


class GivenUp(Exception):
    """Nobody waits for the result any more: the client went away, or closed its stream."""
