"""What a client has sent and nobody has read yet."""

from __future__ import annotations

import asyncio
from collections import deque

# What a message takes beside its characters, about: a flood of tiny ones is bounded too.
_OVERHEAD = 100


class Inbox:
    """A queue of messages, bounded by their characters together.

    The connection is read ahead into it, so that a client that goes away is noticed while the server still works on
    what it sent, and its pings are answered. When it is full nothing more is read: the client's writes wait then.
    """

    def __init__(self, room: int) -> None:
        """``room``: characters; a longer message is taken when there is nothing else."""
        self._room, self._used = room, 0
        self._messages: deque[str | None] = deque()
        self._changed = asyncio.Condition()

    async def put(self, message: str | None) -> None:
        """Add a message, when there is room for it. None stands for one that was no text."""
        size = len(message or "") + _OVERHEAD
        async with self._changed:
            await self._changed.wait_for(lambda: not self._messages or self._used + size <= self._room)
            self._messages.append(message)
            self._used += size
            self._changed.notify_all()

    async def get(self) -> str | None:
        """The next message, when there is one."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._messages))
            message = self._messages.popleft()
            self._used -= len(message or "") + _OVERHEAD
            self._changed.notify_all()
            return message
