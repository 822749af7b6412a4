"""Requests to the server's application, and checks of its error responses."""

from __future__ import annotations

from typing import Any

from starlette.testclient import TestClient

PATH = "/v1/audio/transcriptions"


def send(client: TestClient, *, file: Any = b"audio", headers: Any = None, **fields: Any) -> Any:
    """Post a form with ``fields``, and with ``file`` unless it is None."""
    if file is None:
        return client.post(PATH, files={name: (None, value) for name, value in fields.items()}, headers=headers)
    return client.post(PATH, data=fields, files={"file": ("../../etc/passwd", file)}, headers=headers)


def error_of(response: Any, status: int) -> dict[str, Any]:
    """Check an error response and return its error object, which must not contain internals of the server."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"].startswith("req_")
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"].endswith((".", ")")) or status not in (401, 404, 405)
    for internal in ("Traceback", "/srv", "/tmp", ".py", "Error(", "standard input", "SpooledTemporary", "passwd"):
        assert internal not in response.text
    return error
