"""Streams for decoders: a file without its name, and a file assembled from ranges of another one and from new bytes."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import IO, Any, Protocol

Range = tuple[int, int]
"""Offset of the first byte, and offset after the last one."""


class ByteStream(Protocol):
    """Seekable binary stream, as much of it as decoders use."""

    def read(self, count: int = -1, /) -> bytes: ...

    def readinto(self, buffer: Any, /) -> int: ...

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def tell(self) -> int: ...


class UnnamedStream:
    """Stream without a name. soundfile derives the format from a name, and reads ``talk.raw`` as headerless samples."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.read, self.seek, self.tell = stream.read, stream.seek, stream.tell
        self.readinto = stream.readinto  # type: ignore[attr-defined]


class ByteRanges:
    """Read-only stream of ranges of another stream and of new bytes, one after the other.

    Streams over the same base may be used in turns by one thread.
    """

    def __init__(self, base: ByteStream, pieces: Sequence[Range | bytes]) -> None:
        """Join ``pieces``: ranges of ``base``, or bytes to insert."""
        self._base = base
        self._pieces = pieces
        sizes = (len(piece) if isinstance(piece, bytes) else piece[1] - piece[0] for piece in pieces)
        self._starts = [0, *accumulate(sizes)]
        self._position = 0

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to ``offset`` bytes from the start, the position or the end; return the new position."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._starts[-1]}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` up to the end of the stream; return the number of bytes."""
        view = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(view) and self._position < self._starts[-1]:
            index = bisect_right(self._starts, self._position) - 1
            piece, offset = self._pieces[index], self._position - self._starts[index]
            count = min(len(view) - filled, self._starts[index + 1] - self._position)
            if isinstance(piece, bytes):
                data = piece[offset : offset + count]
            else:
                self._base.seek(piece[0] + offset)
                data = self._base.read(count)
                if not data:  # the base has become shorter
                    break
            view[filled : filled + len(data)] = data
            filled += len(data)
            self._position += len(data)
        return filled

    def read(self, count: int = -1) -> bytes:
        """Return up to ``count`` bytes; all that are left if negative."""
        left = max(0, self._starts[-1] - self._position)
        buffer = bytearray(left if count < 0 else min(count, left))
        return bytes(buffer[: self.readinto(buffer)])


class CallbackStream:
    """Stream for a C library, whose calls must not raise: Python would print the exception and go on.

    Attributes:
        failure: error of the system that ended the stream early, to be raised afterwards.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self.failure: OSError | None = None
        self.tell = stream.tell

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move as far as the stream allows; damaged headers lead to negative and huge offsets."""
        try:
            return self._stream.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return self._stream.seek(0, io.SEEK_SET if offset < 0 else io.SEEK_END)

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer``; return the number of bytes, 0 after an error of the system."""
        try:
            return self._stream.readinto(buffer)
        except OSError as error:
            self.failure = self.failure or error
            return 0

    def read(self, count: int = -1) -> bytes:
        """Return up to ``count`` bytes, none after an error of the system."""
        try:
            return self._stream.read(count)
        except OSError as error:
            self.failure = self.failure or error
            return b""


def read_at(stream: ByteStream, offset: int, count: int) -> bytes:
    """Return up to ``count`` bytes at ``offset``."""
    stream.seek(offset)
    return stream.read(count)
