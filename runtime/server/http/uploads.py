"""Streaming parser of multipart forms with one file, with limits on size, time, and number of parts.

A small file stays in memory. A larger one goes to an unnamed temporary file (``tempfile`` unlinks it at once, or never
names it), which disappears when it is closed or the process ends. The client's file name is ignored.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from tempfile import SpooledTemporaryFile
from typing import IO, BinaryIO, cast

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers
from starlette.types import Receive

from runtime.server.http.api_errors import ApiError, invalid, too_large, too_slow
from runtime.server.http.disconnects import ClientDisconnected
from runtime.server.limits import Limits

FILE_FIELD = "file"
# Largest file that stays in memory, for each request that is being received.
SPOOL_BYTES = 1 << 20
# Largest value of a field other than the file. A prompt can be long; other values are a word or two.
_MAX_FIELD_BYTES = 1 << 16
_MAX_PARTS = 64
# Bytes that boundaries, part headers and fields may add to the file.
_MAX_OVERHEAD_BYTES = 1 << 20


@dataclass(slots=True)
class Form:
    """Parsed form.

    Attributes:
        values: values by field name, in the order of the form.
        file: uploaded file, positioned at its start; None if the form has no file.
    """

    values: dict[str, list[str]]
    file: BinaryIO | None


@asynccontextmanager
async def receive_form(headers: Headers, receive: Receive, limits: Limits) -> AsyncIterator[Form]:
    """Read a multipart form. Its file is closed, and so removed, when the context ends.

    Args:
        headers: headers of the request.
        receive: ASGI channel with the body.
        limits: limits on size and time.

    Raises:
        ApiError: the body is not a multipart form, or is malformed (400).
        ApiError: the body arrives too slowly (408).
        ApiError: the file or the body is too large (413).
        ApiError: the disk has no space for the file (507).
        ClientDisconnected: the client disconnected before the end of the body.
    """
    boundary = _boundary(headers)
    _check_length(headers, limits)
    with SpooledTemporaryFile(max_size=SPOOL_BYTES) as file:
        parts = _PartCollector(limits.max_upload_bytes)
        parser = MultipartParser(boundary, parts.callbacks())  # type: ignore[arg-type]
        async for chunk in _chunks(receive, limits):
            try:
                parser.write(chunk)
            except FormParserError:
                raise invalid("The body is not a well-formed multipart form.") from None
            await _append(cast("IO[bytes]", file), parts)
        if not parts.ended:
            raise invalid("The body ends before the form: its closing boundary is missing.")
        file.seek(0)
        yield Form(parts.values, cast("BinaryIO", file) if parts.has_file else None)


def _boundary(headers: Headers) -> bytes:
    kind, options = parse_options_header(headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data":
        raise invalid("The body must be a form with Content-Type multipart/form-data.")
    if not 1 <= len(boundary) <= 70:  # RFC 2046, 5.1.1
        raise invalid("The Content-Type must have a boundary of 1 to 70 characters.")
    return boundary


def _check_length(headers: Headers, limits: Limits) -> None:
    """Refuse a body with an excessive Content-Length before reading it."""
    declared = headers.get("content-length", "0")
    if not declared.isascii() or not declared.isdigit():
        raise invalid("The Content-Length is not a number.")
    if len(declared) > 18 or int(declared) > limits.max_upload_bytes + _MAX_OVERHEAD_BYTES:
        raise _oversized(limits.max_upload_bytes)


def _oversized(limit: int) -> ApiError:
    return too_large(f"The file is larger than the limit of {limit / 1e6:g} MB.")


async def _chunks(receive: Receive, limits: Limits) -> AsyncIterator[bytes]:
    """Yield the chunks of the body, up to the limits on size, total time, and time without a chunk."""
    clock = asyncio.get_running_loop().time
    deadline, size = clock() + limits.deadline, 0
    while True:
        try:
            async with asyncio.timeout(min(limits.body_timeout, deadline - clock())):
                message = await receive()
        except TimeoutError:
            raise too_slow("The body did not arrive in time.") from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnected("the client disconnected while it was sending")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limits.max_upload_bytes + _MAX_OVERHEAD_BYTES:
            raise _oversized(limits.max_upload_bytes)
        if chunk:
            yield chunk
        if not message.get("more_body", False):
            return


async def _append(file: IO[bytes], parts: _PartCollector) -> None:
    """Append the received pieces to the file, in a thread once the file is on disk."""
    if not parts.pieces:
        return
    data = b"".join(parts.pieces)
    parts.pieces.clear()
    try:
        if parts.file_bytes > SPOOL_BYTES:
            await asyncio.to_thread(file.write, data)
        else:
            file.write(data)
    except OSError:
        message = "The server has no disk space for the file."
        raise ApiError(507, message, code="insufficient_storage", kind="server_error") from None


@dataclass(slots=True)
class _PartCollector:
    """Collects the parts of a form from the parser's callbacks.

    Attributes:
        max_file_bytes: limit on the size of the file.
        values: values by field name.
        pieces: received pieces of the file that are not written yet.
        file_bytes: bytes of the file received so far.
        has_file: the form has a file.
        ended: the closing boundary was received.
    """

    max_file_bytes: int
    values: dict[str, list[str]] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)
    file_bytes: int = 0
    has_file: bool = False
    ended: bool = False
    _count: int = 0
    _name: str = ""
    _value: bytearray = field(default_factory=bytearray)
    _header: bytearray = field(default_factory=bytearray)
    _header_value: bytearray = field(default_factory=bytearray)
    _disposition: bytes = b""

    def callbacks(self) -> dict[str, object]:
        """Return the callbacks for python-multipart, which limits a part to eight headers of 4 kB itself."""
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_part,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        self._count += 1
        if self._count > _MAX_PARTS:
            raise invalid(f"The form has more than {_MAX_PARTS} parts.")
        self._value, self._disposition = bytearray(), b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_part(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header, self._header_value = bytearray(), bytearray()

    def _headers_finished(self) -> None:
        kind, options = parse_options_header(self._disposition)
        if kind != b"form-data" or b"name" not in options:
            raise invalid("Every part of the form must have a Content-Disposition of form-data with a name.")
        self._name = _decoded(options[b"name"], "The name of a field")
        if self._name == FILE_FIELD:
            if self.has_file:
                raise invalid("The form must have only one file.", FILE_FIELD)
            self.has_file = True
        elif b"filename" in options:
            raise invalid(f"The field {self._name[:40]!r} cannot be a file; send the audio in `file`.", self._name[:40])

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == FILE_FIELD:
            self.file_bytes += end - start
            if self.file_bytes > self.max_file_bytes:
                raise _oversized(self.max_file_bytes)
            self.pieces.append(data[start:end])
        else:
            if len(self._value) + end - start > _MAX_FIELD_BYTES:
                raise invalid(
                    f"The field {self._name[:40]!r} is longer than {_MAX_FIELD_BYTES // 1024} KiB.", self._name[:40]
                )
            self._value += data[start:end]

    def _part_end(self) -> None:
        if self._name != FILE_FIELD:
            value = _decoded(bytes(self._value), f"The field {self._name[:40]!r}", self._name[:40])
            self.values.setdefault(self._name, []).append(value)

    def _end(self) -> None:
        self.ended = True


def _decoded(data: bytes, name: str, param: str | None = None) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise invalid(f"{name} is not UTF-8.", param) from None
