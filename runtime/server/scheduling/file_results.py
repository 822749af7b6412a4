"""The results of a file request, for its client's task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Self

from runtime.results import Segment, Transcript
from runtime.server.errors import DeadlineExceeded, GivenUp
from runtime.server.scheduling.file_ticket import FileTicket

Result = Segment | Transcript


def tell(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *values: object) -> None:
    """Call ``call`` in the event loop, from any thread; do nothing when the loop is closed."""
    if not loop.is_closed():
        try:
            loop.call_soon_threadsafe(call, *values)
        except RuntimeError:  # closed at this moment
            return


class Results(AsyncIterator[Result]):
    """Segments in order of the audio, each as soon as it is final, and last the transcript.

    An error is raised in place of the next result. Call :meth:`aclose` when it is not read to its end; the deadline
    ends it too.
    """

    def __init__(
        self,
        submit: Callable[[Callable[[Result | BaseException], None]], FileTicket],
        deadline: float,
        ended: Callable[[Transcript | BaseException], None],
    ) -> None:
        """Args:
        submit: hands the request to the scheduler, given the callback for results.
        deadline: seconds until the request fails.
        ended: called once in the event loop with the transcript or the error.
        """
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Result | BaseException] = asyncio.Queue()
        self._ended, self._over = ended, False
        self._ticket = submit(lambda item: tell(self._loop, self._receive, item))
        late = DeadlineExceeded(f"the request was not complete within {deadline:g} s, the longest time allowed")
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
        """Cancel the request: its rows are free at once. Return when no thread reads the source any more."""
        self._over = True
        self._ticket.fail(GivenUp())
        await self._released()

    async def _released(self) -> None:
        released = asyncio.Event()
        self._ticket.when_released(lambda: tell(self._loop, released.set))
        await released.wait()
