"""What goes wrong, as the client is told: a status, and OpenAI's error object. Nothing of the server's insides."""

# ruff: noqa: N818 (an answer, as its name says)

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from starlette.responses import Response

from runtime.errors import AsrError, AudioInvalidError, AudioUnsupportedError, CapabilityError, OptionError
from runtime.server.errors import AudioTooLong, Busy, Closing, DeadlineExceeded, EngineFailure

# What a service calls an upload; a client knows it by its field.
_UPLOAD = "the audio: "
_INVALID = "invalid_request_error"
_SERVER = "server_error"
# A server that stops is replaced soon, or not at all.
_AFTER_RESTART = 5
# Fields of a request by what the library calls an option.
_FIELDS = {"context": "prompt", "words": "timestamp_granularities"}


class RequestProblem(AsrError):
    """An answer that is an error: HTTP status, message, and what OpenAI's error object says beside it.

    ``param`` is the field that is wrong, ``code`` a word for programs, ``headers`` what the answer carries.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = _INVALID,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.kind = status, param, code, kind
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    def encoded(self) -> bytes:
        """The same as JSON."""
        return msgspec.json.encode(self.body())

    def response(self) -> Response:
        """The answer."""
        return Response(self.encoded(), self.status, self.headers, "application/json")


def invalid(message: str, param: str | None = None, code: str | None = None) -> RequestProblem:
    """The request is wrong (400)."""
    return RequestProblem(400, message, param=param, code=code)


def too_large(message: str) -> RequestProblem:
    """The upload is larger than this server takes (413)."""
    return RequestProblem(413, message, param="file", code="file_too_large")


def too_slow(message: str) -> RequestProblem:
    """The client did not send in time (408); the connection ends with it."""
    return RequestProblem(408, message, code="request_timeout", headers={"connection": "close"})


def head_too_large(size: int, count: int) -> RequestProblem:
    """More than ``size`` bytes or ``count`` headers (431)."""
    return RequestProblem(431, f"The head of a request may have {size // 1024} KiB and {count} headers.")


def unknown_key(presented: bool) -> RequestProblem:
    """No key, or a wrong one (401)."""
    message = "Incorrect API key provided." if presented else "An API key is needed: Authorization: Bearer KEY."
    return RequestProblem(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def cross_site() -> RequestProblem:
    """A page of another site asks (403)."""
    return RequestProblem(403, "Pages of other sites may not use this server.", code="cross_site")


def unknown_host(host: str) -> RequestProblem:
    """Without keys, whoever comes by this name could be a page elsewhere that has its name point here (403)."""
    message = f"This server is not known as {host[:80]!r}: start it with --allow-host, or with API keys."
    return RequestProblem(403, message, code="host_not_allowed")


def unknown_model(model: str, known: list[str]) -> RequestProblem:
    """No such model (404)."""
    listed = ", ".join(known)
    message = f"The model {model[:80]!r} does not exist; this server has {listed}."
    return RequestProblem(404, message, param="model", code="model_not_found")


def overloaded(message: str, seconds: int) -> RequestProblem:
    """Not now (429): try again in so many seconds."""
    headers = {"retry-after": str(seconds)}
    return RequestProblem(429, message, code="rate_limit_exceeded", kind="requests", headers=headers)


def unavailable(message: str) -> RequestProblem:
    """Not here, or not now (503)."""
    headers = {"retry-after": str(_AFTER_RESTART)}
    return RequestProblem(503, message, code="service_unavailable", kind=_SERVER, headers=headers)


def failed(request_id: str | None = None) -> RequestProblem:
    """The server is at fault (500). The log says of what, under the request's id."""
    named = f" (request {request_id})" if request_id else ""
    return RequestProblem(500, f"The server failed to answer this request{named}.", kind=_SERVER)


def http_problem(status: int, headers: dict[str, str] | None = None) -> RequestProblem:
    """What the router refuses: no such path (404), no such method there (405)."""
    messages = {404: "There is nothing at this path.", 405: "This path does not take this method."}
    message = messages.get(status, f"{HTTPStatus(status).phrase}.")
    kind = _INVALID if status < 500 else _SERVER
    return RequestProblem(status, message, code="not_found" if status == 404 else None, kind=kind, headers=headers)


def problem(error: AsrError | EngineFailure, request_id: str | None = None) -> RequestProblem:
    """What the client is told of an error. What is not its fault is a 500 without a reason."""
    message = str(error).removeprefix(_UPLOAD)
    match error:
        case RequestProblem():
            return error
        case Busy():
            return overloaded(message, error.retry_after)
        case AudioTooLong():
            return too_large(message)
        case DeadlineExceeded():
            return RequestProblem(504, message, code="deadline_exceeded", kind=_SERVER)
        case Closing():
            return unavailable(message)
        case AudioUnsupportedError():
            supported = "send wav, flac, ogg, opus, mp3 or aiff"
            return invalid(f"file: this server cannot decode its container; {supported}", "file", "unsupported_format")
        case AudioInvalidError():
            return invalid(f"file: {message}", "file", "invalid_audio")
        case CapabilityError():
            return invalid(message, _FIELDS.get(error.option, error.option), "unsupported_parameter")
        case OptionError():
            return invalid(message)
        case _:
            return failed(request_id)
