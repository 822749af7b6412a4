"""What a file request's client waits for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Self

from runtime.results import Segment, Transcript
from runtime.server.errors import DeadlineExceeded, GivenUp
from runtime.server.scheduling.file_ticket import FileTicket

Result = Segment | Transcript


def tell(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *values: object) -> None:
    """Have ``call`` called in the event loop, from any thread; without the loop there is nobody left to tell."""
    if not loop.is_closed():
        try:
            loop.call_soon_threadsafe(call, *values)
        except RuntimeError:  # closed in this moment
            return


class Results(AsyncIterator[Result]):
    """Segments in order of the audio, as soon as each is final, and the transcript last.

    Raises what was wrong, at the place where it became known. Close it (:meth:`aclose`) when it is not read to its end;
    the deadline ends it too.
    """

    def __init__(
        self,
        submit: Callable[[Callable[[Result | BaseException], None]], FileTicket],
        deadline: float,
        ended: Callable[[Transcript | BaseException], None],
    ) -> None:
        """Args:
        submit: hands the request to the scheduler, given where results go.
        deadline: seconds until they are no longer waited for.
        ended: told how it ended, once, in the event loop.
        """
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Result | BaseException] = asyncio.Queue()
        self._ended, self._over = ended, False
        self._ticket = submit(lambda item: tell(self._loop, self._receive, item))
        late = DeadlineExceeded(f"this was not done within {deadline:g} s, the time that a request may take")
        self._timer = self._loop.call_later(deadline, self._ticket.fail, late)

    def _receive(self, item: Result | BaseException) -> None:
        self._queue.put_nowait(item)
        if not isinstance(item, Segment):
            self._timer.cancel()
            self._ended(item)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Result:
        if self._over:
            raise StopAsyncIteration
        item = await self._queue.get()
        if isinstance(item, Segment):
            return item
        self._over = True
        if isinstance(item, BaseException):
            await self._released()
            raise item
        return item

    async def aclose(self) -> None:
        """Give up what is not done: rows are free at once. Returns when nobody reads the source any more."""
        self._over = True
        self._ticket.fail(GivenUp())
        await self._released()

    async def _released(self) -> None:
        released = asyncio.Event()
        self._ticket.when_released(lambda: tell(self._loop, released.set))
        await released.wait()
