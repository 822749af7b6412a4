"""Forms with a file, read as they arrive: bounded in every direction, and gone when the request is.

The file lies in memory while it is small and in a temporary file without a name beyond (``tempfile`` unlinks it at
once, or never names it): when it is closed, or the process dies, nothing is left. What the client calls it is not
looked at.
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

from runtime.server.http.clients import ClientGone
from runtime.server.http.problems import RequestProblem, invalid, too_large, too_slow
from runtime.server.limits import Limits

FILE_FIELD = "file"
# A small file stays in memory; each request that is being received may hold this much.
SPOOL_BYTES = 1 << 20
# Everything of a form but its file: a prompt can be long, the rest is a word or two.
_FIELD_BYTES = 1 << 16
_MOST_PARTS = 64
# What boundaries, headers of parts and fields may add to the file.
_ROOM = 1 << 20


@dataclass(slots=True)
class Form:
    """A form's values by field, in the order in which they came, and its file, at its beginning."""

    values: dict[str, list[str]]
    file: BinaryIO | None


@asynccontextmanager
async def received_form(headers: Headers, receive: Receive, limits: Limits) -> AsyncIterator[Form]:
    """Read a multipart form; its file is closed, and so removed, when the context ends.

    Raises:
        RequestProblem: no such form, malformed, too large, too slow, or there is no room for it.
        ClientGone: the client went away before all was there.
    """
    boundary = _boundary(headers)
    _check_length(headers, limits)
    with SpooledTemporaryFile(max_size=SPOOL_BYTES) as file:
        parts = _Parts(limits.max_upload_bytes)
        parser = MultipartParser(boundary, parts.callbacks())  # type: ignore[arg-type]
        async for chunk in _chunks(receive, limits):
            try:
                parser.write(chunk)
            except FormParserError:
                raise invalid("The body is not a well-formed multipart form.") from None
            await _append(cast("IO[bytes]", file), parts)
        if not parts.ended:
            raise invalid("The body ends before the form does: its closing boundary is missing.")
        file.seek(0)
        yield Form(parts.values, cast("BinaryIO", file) if parts.has_file else None)


def _boundary(headers: Headers) -> bytes:
    kind, options = parse_options_header(headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data":
        raise invalid("The body must be a form: Content-Type multipart/form-data.")
    if not 1 <= len(boundary) <= 70:  # RFC 2046, 5.1.1
        raise invalid("The Content-Type needs a boundary of 1 to 70 characters.")
    return boundary


def _check_length(headers: Headers, limits: Limits) -> None:
    """Refuse what says that it is too large before a byte of it is read."""
    declared = headers.get("content-length", "0")
    if not declared.isascii() or not declared.isdigit():
        raise invalid("The Content-Length is not a number.")
    if len(declared) > 18 or int(declared) > limits.max_upload_bytes + _ROOM:
        raise _oversized(limits.max_upload_bytes)


def _oversized(limit: int) -> RequestProblem:
    return too_large(f"The file is larger than this server takes, {limit / 1e6:g} MB.")


async def _chunks(receive: Receive, limits: Limits) -> AsyncIterator[bytes]:
    """The body as it comes, counted. No byte for a while, or too few for too long, ends it."""
    clock = asyncio.get_running_loop().time
    last, seen = clock() + limits.deadline, 0
    while True:
        try:
            async with asyncio.timeout(min(limits.body_timeout, last - clock())):
                message = await receive()
        except TimeoutError:
            raise too_slow("The body did not arrive in time.") from None
        if message["type"] == "http.disconnect":
            raise ClientGone("the client went away while it was sending")
        chunk = message.get("body", b"")
        seen += len(chunk)
        if seen > limits.max_upload_bytes + _ROOM:
            raise _oversized(limits.max_upload_bytes)
        if chunk:
            yield chunk
        if not message.get("more_body", False):
            return


async def _append(file: IO[bytes], parts: _Parts) -> None:
    """Put what has come of the file behind what is there; in a thread once it goes to a disk."""
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
        message = "The server has no room for the file."
        raise RequestProblem(507, message, code="insufficient_storage", kind="server_error") from None


@dataclass(slots=True)
class _Parts:
    """What a parser tells of a form's parts: fields are kept, pieces of the file wait in ``pieces`` to be written."""

    most_file_bytes: int
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
        """For python-multipart, which itself bounds a part's headers: eight of 4 kB at the most."""
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
        if self._count > _MOST_PARTS:
            raise invalid(f"The form has more than {_MOST_PARTS} parts.")
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
            raise invalid("Every part of the form needs a Content-Disposition of form-data with a name.")
        self._name = _decoded(options[b"name"], "The name of a field")
        if self._name == FILE_FIELD:
            if self.has_file:
                raise invalid("There can be one file.", FILE_FIELD)
            self.has_file = True
        elif b"filename" in options:
            raise invalid(f"The field {self._name[:40]!r} cannot be a file; the audio goes into `file`.")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == FILE_FIELD:
            self.file_bytes += end - start
            if self.file_bytes > self.most_file_bytes:
                raise _oversized(self.most_file_bytes)
            self.pieces.append(data[start:end])
        else:
            if len(self._value) + end - start > _FIELD_BYTES:
                raise invalid(f"The field {self._name[:40]!r} is longer than {_FIELD_BYTES // 1024} KiB.")
            self._value += data[start:end]

    def _part_end(self) -> None:
        if self._name != FILE_FIELD:
            value = _decoded(bytes(self._value), f"The field {self._name[:40]!r}")
            self.values.setdefault(self._name, []).append(value)

    def _end(self) -> None:
        self.ended = True


def _decoded(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise invalid(f"{what} is not UTF-8.") from None
