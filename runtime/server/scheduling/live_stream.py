"""A live stream from the view of its client's connection: audio in, events out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Executor
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.audio.stream_resampler import StreamResampler
from runtime.errors import AudioInvalidError
from runtime.pipeline.events import Event, Partial
from runtime.server.errors import AudioTooLong, Closing, GivenUp
from runtime.server.scheduling.file_results import tell
from runtime.server.scheduling.stream_ticket import StreamTicket

# A stream that is further behind than this takes no more audio until it has caught up.
MOST_BEHIND_SECONDS = 30.0
# Longer audio is fed in parts, so that results can be taken between them.
_PART_SECONDS = 1


class LiveStream:
    """Audio in, events out; opened by ``Service.open_stream`` and used in its event loop.

    Concurrent calls of :meth:`feed`, :meth:`commit` and :meth:`finish` keep their order. One task at a time reads
    :meth:`events`.
    """

    def __init__(
        self,
        attach: Callable[
            [Callable[[list[Event] | BaseException | None], None], Callable[[], None]],
            StreamTicket,
        ],
        executor: Executor,
        incoming: StreamResampler,
        *,
        sample_rate: int,
        longest: float,
        on_audio: Callable[[float], object],
        ended: Callable[[LiveStream, BaseException | None], None],
    ) -> None:
        """Args:
        attach: hands the stream to the scheduler, given the callbacks for events and for progress.
        executor: runs resampling and cutting.
        incoming: converts fed samples to the engine's rate.
        sample_rate: of the fed samples, in Hz.
        longest: longest stream, in seconds.
        on_audio: called with the seconds of each part that was fed.
        ended: called once in the event loop with the error, or None.
        """
        self._loop, self._executor, self._incoming = asyncio.get_running_loop(), executor, incoming
        self._rate, self._longest, self._on_audio, self._ended = sample_rate, longest, on_audio, ended
        self._samples = 0
        self._order = asyncio.Lock()
        self._finished = self._shutting = self._over = False
        self._error: BaseException | None = None
        self._waiting: deque[Event] = deque()
        self._wake, self._progress = asyncio.Event(), asyncio.Event()
        self._ticket = attach(
            lambda item: tell(self._loop, self._receive, item),
            lambda: tell(self._loop, self._progress.set),
        )

    async def feed(self, samples: npt.NDArray[Any]) -> None:
        """Mono samples [n] at the stream's rate, int16 or float32. Waits while the stream is too far behind.

        Raises:
            AudioInvalidError: samples of another kind, or the stream is over.
            AudioTooLong: the stream exceeds its limit; nothing of ``samples`` was taken, and it can be finished.
            Closing: the server is shutting down; audio fed before is finished.
            BaseException: the error that the stream failed with.
        """
        array = np.atleast_1d(samples)
        async with self._order:
            self._check()
            if self._samples + array.size > self._longest * self._rate:
                raise AudioTooLong(
                    f"the stream is longer than the {self._longest:g} s that are allowed; open another one"
                )
            self._samples += array.size
            step = self._rate * _PART_SECONDS
            for start in range(0, len(array), step):
                part = array[start : start + step]
                await self._caught_up()
                await self._loop.run_in_executor(self._executor, self._feed, part)
                self._on_audio(part.size / self._rate)

    async def commit(self) -> None:
        """End the open segment now; raise the errors of :meth:`feed`."""
        async with self._order:
            self._check()
            await self._loop.run_in_executor(self._executor, self._ticket.commit)

    async def finish(self) -> None:
        """End the stream: :meth:`events` end after the last final text. Further calls do nothing."""
        async with self._order:
            if not self._finished:
                self._finished = True
                await self._loop.run_in_executor(self._executor, self._finish)

    async def events(self) -> AsyncIterator[Event]:
        """Yield events in order; of several unread partial texts of a segment only the last.

        Raises:
            BaseException: the error that the stream failed with.
        """
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            if self._over:
                if self._error:
                    raise self._error
                return
            self._wake.clear()
            await self._wake.wait()

    async def close(self) -> None:
        """Cancel the stream at once; :meth:`events` end. Do nothing when the stream is over."""
        self._finished = True
        self._ticket.fail(GivenUp())

    def shut(self) -> Coroutine[Any, Any, None]:
        """Refuse more audio at once, for a shutdown; awaiting the result finishes the audio that was fed."""
        self._shutting = True
        self._progress.set()
        return self.finish()

    def _check(self) -> None:
        if self._error:
            raise self._error
        if self._shutting:
            raise Closing("the server is shutting down and takes no more audio; audio sent before is finished")
        if self._finished or self._over:
            raise AudioInvalidError("the stream is finished or closed; open another one")

    async def _caught_up(self) -> None:
        while not (self._over or self._shutting):
            self._progress.clear()
            if self._ticket.behind <= MOST_BEHIND_SECONDS:
                return
            await self._progress.wait()
        self._check()

    def _feed(self, samples: npt.NDArray[Any]) -> None:
        if len(made := self._incoming.take(samples)):
            self._ticket.feed(made)

    def _finish(self) -> None:
        if len(rest := self._incoming.end()):
            self._ticket.feed(rest)
        self._ticket.finish()

    def _receive(self, item: list[Event] | BaseException | None) -> None:
        if self._over:
            return
        if isinstance(item, list):
            for event in item:
                self._append(event)
        else:
            self._over = True
            self._error = None if isinstance(item, GivenUp) else item
            self._progress.set()
            self._ended(self, item)
        self._wake.set()

    def _append(self, event: Event) -> None:
        """Queue an event; a partial text replaces an unread one of the same segment."""
        last = self._waiting[-1] if self._waiting else None
        if isinstance(event, Partial) and isinstance(last, Partial) and last.segment == event.segment:
            self._waiting.pop()
        self._waiting.append(event)
