"""Error responses in OpenAI's shape. They contain no internals of the server."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from starlette.responses import Response

from runtime.errors import AsrError, AudioInvalidError, AudioUnsupportedError, CapabilityError, OptionError
from runtime.server.errors import AudioTooLong, Busy, Closing, DeadlineExceeded, EngineFailure

# The service's name for an upload in error messages; clients know it as the field `file`.
_UPLOAD_PREFIX = "the audio: "
_INVALID = "invalid_request_error"
_SERVER = "server_error"
# Seconds after which a client should try again when the server is shutting down.
_RESTART_SECONDS = 5
# Form fields by the name of the library's option.
_FIELDS = {"context": "prompt", "words": "timestamp_granularities"}


class ApiError(AsrError):
    """Error that is sent to the client.

    Attributes:
        status: HTTP status.
        param: name of the wrong field, or None.
        code: machine-readable error code, or None.
        kind: ``type`` of OpenAI's error object.
        headers: additional response headers.
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
        """Return OpenAI's error object."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    def encoded(self) -> bytes:
        """Return OpenAI's error object as JSON."""
        return msgspec.json.encode(self.body())

    def response(self) -> Response:
        """Return the HTTP response."""
        return Response(self.encoded(), self.status, self.headers, "application/json")


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error for an invalid request (400)."""
    return ApiError(400, message, param=param, code=code)


def too_large(message: str) -> ApiError:
    """Return the error for a file that exceeds a limit (413)."""
    return ApiError(413, message, param="file", code="file_too_large")


def too_slow(message: str) -> ApiError:
    """Return the error for a client that sends too slowly (408). The connection is closed."""
    return ApiError(408, message, code="request_timeout", headers={"connection": "close"})


def head_too_large(size: int, count: int) -> ApiError:
    """Return the error for a head of more than ``size`` bytes or ``count`` headers (431)."""
    return ApiError(431, f"The head of a request may have at most {size // 1024} KiB and {count} headers.")


def unknown_key(has_key: bool) -> ApiError:
    """Return the error for a missing or wrong API key (401)."""
    message = "Incorrect API key provided." if has_key else "An API key is required: Authorization: Bearer KEY."
    return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def cross_site() -> ApiError:
    """Return the error for a request from a page of another site (403)."""
    return ApiError(403, "Pages of other sites may not use this server.", code="cross_site")


def unknown_host(host: str) -> ApiError:
    """Return the error for an unknown ``Host``, which may be a DNS rebinding attack on a server without keys (403)."""
    message = f"This server does not allow the host name {host[:80]!r}; start it with --allow-host or with API keys."
    return ApiError(403, message, code="host_not_allowed")


def unknown_model(model: str, models: list[str]) -> ApiError:
    """Return the error for an unknown model (404)."""
    message = f"The model {model[:80]!r} does not exist; available models: {', '.join(models)}."
    return ApiError(404, message, param="model", code="model_not_found")


def overloaded(message: str, seconds: int) -> ApiError:
    """Return the error for a full queue (429). The client should try again after ``seconds``."""
    headers = {"retry-after": str(seconds)}
    return ApiError(429, message, code="rate_limit_exceeded", kind="requests", headers=headers)


def unavailable(message: str) -> ApiError:
    """Return the error for a server that is starting, stopping or out of connections (503)."""
    headers = {"retry-after": str(_RESTART_SECONDS)}
    return ApiError(503, message, code="service_unavailable", kind=_SERVER, headers=headers)


def internal_error(request_id: str | None = None) -> ApiError:
    """Return the error for an internal failure (500). The log has the reason under the request's id."""
    suffix = f" (request {request_id})" if request_id else ""
    return ApiError(500, f"The server failed to answer this request{suffix}.", kind=_SERVER)


def routing_error(status: int, headers: dict[str, str] | None = None) -> ApiError:
    """Return the error for a request that no route accepts: unknown path (404) or method (405)."""
    allowed = next((value for name, value in (headers or {}).items() if name.lower() == "allow"), "")
    remedy = f"; use {allowed}" if allowed else ""
    messages = {404: "This path does not exist.", 405: f"This path does not support this method{remedy}."}
    message = messages.get(status, f"{HTTPStatus(status).phrase}.")
    kind = _INVALID if status < 500 else _SERVER
    return ApiError(status, message, code="not_found" if status == 404 else None, kind=kind, headers=headers)


def to_api_error(error: AsrError | EngineFailure, request_id: str | None = None) -> ApiError:
    """Convert an error to the response for the client.

    Errors that the client did not cause become status 500 without a reason.
    """
    message = str(error).removeprefix(_UPLOAD_PREFIX)
    match error:
        case ApiError():
            return error
        case Busy():
            return overloaded(message, error.retry_after)
        case AudioTooLong():
            return too_large(message)
        case DeadlineExceeded():
            return ApiError(504, message, code="deadline_exceeded", kind=_SERVER)
        case Closing():
            return unavailable(message)
        case AudioUnsupportedError():
            formats = "send wav, flac, ogg, opus, mp3 or aiff"
            return invalid(f"file: this server cannot decode its container; {formats}", "file", "unsupported_format")
        case AudioInvalidError():
            return invalid(f"file: {message}", "file", "invalid_audio")
        case CapabilityError():
            return invalid(message, _FIELDS.get(error.option or "", error.option), "unsupported_parameter")
        case OptionError():
            return invalid(message, _FIELDS.get(error.option, error.option) if error.option else None)
        case _:
            return internal_error(request_id)
