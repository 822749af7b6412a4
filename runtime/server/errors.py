"""Errors of the transcription services.

Clients receive the text of every :class:`runtime.errors.AsrError`. They never receive the reason of an
:class:`EngineFailure`: it is only logged.
"""

# ruff: noqa: N818 (the names describe states of the server)

from __future__ import annotations

from runtime.errors import AsrError


class Busy(AsrError):
    """The queue or the number of streams is at its limit (HTTP 429).

    Attributes:
        retry_after: seconds after which the client should try again.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceeded(AsrError, TimeoutError):
    """The request was not finished before its deadline (HTTP 504)."""


class AudioTooLong(AsrError):
    """The audio is longer than the server accepts (HTTP 413)."""


class Closing(AsrError):
    """The server has not started yet or is shutting down (HTTP 503)."""


class EngineFailure(RuntimeError):
    """The engine failed while this request was in progress (HTTP 500). The reason is only logged."""

    def __init__(self) -> None:
        super().__init__("the model failed while this audio was transcribed")


class GivenUp(Exception):
    """The client disconnected or closed its stream; the result is no longer needed."""
