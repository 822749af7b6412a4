"""Tests of the form parser: chunk sizes, limits, and temporary files."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from runtime.server.http.api_errors import ApiError
from runtime.server.http.disconnects import ClientDisconnected
from runtime.server.http.uploads import SPOOL_BYTES, receive_form
from runtime.server.limits import Limits

CONTENT = {"content-type": "multipart/form-data; boundary=edge"}


def part(name: str, value: bytes, filename: str | None = None, extra: bytes = b"") -> bytes:
    quoted = f'; filename="{filename}"' if filename is not None else ""
    head = f'--edge\r\nContent-Disposition: form-data; name="{name}"{quoted}\r\n'.encode()
    return head + extra + b"\r\n" + value + b"\r\n"


def whole(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--edge--\r\n"


def receiving(*pieces: bytes, then: Callable[[], Any] | None = None) -> Callable[[], Any]:
    """Return an ASGI ``receive`` with these pieces; afterwards it calls ``then``."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    if then is None:
        messages[-1]["more_body"] = False

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        assert then is not None, "received after the end of the body"
        return await then()

    return receive


def read(
    *pieces: bytes,
    headers: dict[str, str] | None = None,
    limits: Limits | None = None,
    then: Callable[[], Any] | None = None,
) -> tuple[dict[str, list[str]], bytes | None]:
    async def run() -> tuple[dict[str, list[str]], bytes | None]:
        received = Headers(CONTENT if headers is None else headers)
        async with receive_form(received, receiving(*pieces, then=then), limits or Limits()) as form:
            return form.values, form.file.read() if form.file else None

    return asyncio.run(run())


def refusal(*pieces: bytes, **options: Any) -> ApiError:
    with pytest.raises(ApiError) as refused:
        read(*pieces, **options)
    return refused.value


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@given(size=st.integers(1, 40), content=st.binary(max_size=200))
def test_chunks_of_any_size(size: int, content: bytes) -> None:
    body = whole(part("model", "模型".encode()), part("file", content, "../../etc/passwd"), part("include[]", b"x"))
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    values, file = read(*pieces)
    assert values == {"model": ["模型"], "include[]": ["x"]}
    assert file == content


def test_repeated_field_and_no_file() -> None:
    values, file = read(whole(part("include[]", b"a"), part("include[]", b"b")))
    assert values == {"include[]": ["a", "b"]}
    assert file is None


def test_large_file_is_unnamed_and_removed(temporary: Path) -> None:
    content = os.urandom(SPOOL_BYTES + 70_000)
    body = whole(part("file", content, "/etc/passwd"))
    pieces = [body[at : at + 60_000] for at in range(0, len(body), 60_000)]

    async def run() -> None:
        async with receive_form(Headers(CONTENT), receiving(*pieces), Limits()) as form:
            assert form.file is not None
            assert form.file.read() == content
            assert os.fstat(form.file.fileno()).st_nlink == 0
            assert not list(temporary.iterdir())
            file = form.file
        assert file.closed

    asyncio.run(run())
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    ("content_type", "message"),
    [
        (None, "must be a form"),
        ("application/json", "must be a form"),
        ("multipart/form-data", "boundary"),
        ("multipart/form-data; boundary=" + "x" * 71, "boundary"),
        ('multipart/form-data; boundary=""', "boundary"),
    ],
)
def test_bodies_that_are_not_forms(content_type: str | None, message: str) -> None:
    refused = refusal(b"{}", headers={"content-type": content_type} if content_type else {})
    assert refused.status == 400
    assert message in str(refused)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "closing boundary"),
        (b"no form at all", "not a well-formed"),
        (part("file", b"x"), "closing boundary"),
        (whole(part("model", b"\xff\xfe")), "'model' is not UTF-8"),
        (whole(part("model", b"x", "a.wav")), "'model' cannot be a file"),
        (whole(part("file", b"x"), part("file", b"y")), "only one file"),
        (whole(part("prompt", b"x" * 70_000)), "longer than 64 KiB"),
        (whole(*[part("include[]", b"x")] * 65), "more than 64 parts"),
        (whole(b"--edge\r\nContent-Disposition: form-data\r\n\r\nx\r\n"), "with a name"),
        (whole(b"--edge\r\nContent-Type: text/plain\r\n\r\nx\r\n"), "with a name"),
        (whole(b'--edge\r\nContent-Disposition: attachment; name="file"\r\n\r\nx\r\n'), "form-data with a name"),
        (whole(part("file", b"x", extra=b"X-Long: " + b"y" * 9_000 + b"\r\n")), "not a well-formed"),
        (whole(part("file", b"x", extra=b"X: y\r\n" * 50)), "not a well-formed"),
    ],
)
def test_malformed_forms(body: bytes, message: str, temporary: Path) -> None:
    refused = refusal(body)
    assert refused.status == 400
    assert message in str(refused)
    assert not list(temporary.iterdir())


def test_excessive_content_length_is_refused_before_reading() -> None:
    def fail() -> Any:
        raise AssertionError("the body was read")

    for length in ("3000000", "9" * 400):
        headers = {**CONTENT, "content-length": length}
        refused = refusal(headers=headers, limits=Limits(max_upload_bytes=1_000_000), then=fail)
        assert refused.status == 413
        assert "1 MB" in str(refused)


@pytest.mark.parametrize("length", ["-1", "1e3", "²", ""])
def test_invalid_content_length(length: str) -> None:
    assert refusal(b"", headers={**CONTENT, "content-length": length}).status == 400


def test_size_of_the_body_is_limited() -> None:
    limits = Limits(max_upload_bytes=1000)
    assert read(whole(part("file", b"x" * 1000)), limits=limits)[1] == b"x" * 1000
    assert refusal(whole(part("file", b"x" * 1001)), limits=limits).status == 413
    # Bytes outside of any part count too.
    assert refusal(whole(part("model", b"m")), *[b"z" * 65_536] * 20, limits=limits).status == 413


def test_incomplete_body_times_out() -> None:
    async def nothing() -> Any:
        await asyncio.Event().wait()

    refused = refusal(part("file", b"x"), limits=Limits(body_timeout=0.01), then=nothing)
    assert refused.status == 408
    assert refused.headers == {"connection": "close"}


def test_slow_body_times_out() -> None:
    async def drip() -> Any:
        await asyncio.sleep(0.001)
        return {"type": "http.request", "body": b"", "more_body": True}

    assert refusal(part("file", b"x"), limits=Limits(deadline=0.05), then=drip).status == 408


def test_disconnect_removes_the_file(temporary: Path) -> None:
    async def disconnect() -> Any:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientDisconnected):
        read(part("file", b"x" * (2 * SPOOL_BYTES)), then=disconnect)
    assert not list(temporary.iterdir())


def test_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(tempfile.SpooledTemporaryFile[bytes]):
        def write(self, data: Any) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("runtime.server.http.uploads.SpooledTemporaryFile", Full)
    refused = refusal(whole(part("file", b"x")))
    assert refused.status == 507
    assert refused.code == "insufficient_storage"
