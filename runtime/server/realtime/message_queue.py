"""Queue of messages that a client has sent and the server has not handled yet."""

from __future__ import annotations

import asyncio
from collections import deque

# Estimated size of a message in addition to its characters, so that many tiny messages are limited too.
_MESSAGE_OVERHEAD = 100


class MessageQueue:
    """Queue limited by the total number of characters of its messages.

    Reading ahead into the queue detects a disconnected client and answers its pings while earlier messages are
    handled. While the queue is full, nothing is read, so the client's writes block.
    """

    def __init__(self, max_characters: int) -> None:
        """Args:
        max_characters: limit on the queue's size. An empty queue accepts a message of any length.
        """
        self._max, self._size = max_characters, 0
        self._messages: deque[str | None] = deque()
        self._changed = asyncio.Condition()

    async def put(self, message: str | None) -> None:
        """Wait until there is space, then append a message. None stands for a binary message."""
        size = len(message or "") + _MESSAGE_OVERHEAD
        async with self._changed:
            await self._changed.wait_for(lambda: not self._messages or self._size + size <= self._max)
            self._messages.append(message)
            self._size += size
            self._changed.notify_all()

    async def get(self) -> str | None:
        """Wait for the next message and return it."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._messages))
            message = self._messages.popleft()
            self._size -= len(message or "") + _MESSAGE_OVERHEAD
            self._changed.notify_all()
            return message
