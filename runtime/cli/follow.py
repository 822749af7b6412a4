"""The loop of ``stream``: feed audio to a stream, show its events, end cleanly on Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy.typing as npt

from runtime.audio.live import LiveSource
from runtime.cli.common import segment_warning
from runtime.cli.live_output import Output
from runtime.errors import AsrError
from runtime.pipeline.events import Event, Final, Partial
from runtime.pipeline.streaming import Stream


class Follower:
    """Feeds the audio of a source to a stream and shows the stream's events."""

    def __init__(
        self, source: LiveSource, stream: Stream, output: Output, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Create a follower.

        Args:
            source: the audio.
            stream: transcribes the audio.
            output: shows the events.
            clock: returns the time in seconds.
        """
        self._source, self._stream, self._output, self._clock = source, stream, output, clock
        self._samples, self._segments = 0, 0
        self._compute = 0.0
        self._began: float | None = None
        self._first_text: float | None = None

    def run(self) -> AsrError | None:
        """Follow the source until it ends or fails, then finish the stream and show its last text.

        Returns:
            The error with which the source failed; None if it ended.

        Raises:
            AsrError: the stream cannot continue.
        """
        failure = None
        blocks = self._source.blocks()
        while failure is None:
            try:
                samples = next(blocks, None)
            except AsrError as error:
                failure = error
                break
            if samples is None:
                break
            self._began = self._clock() if self._began is None else self._began
            self._samples += len(samples)
            self._show(self._timed(self._stream.feed, samples))
        self._show(self._timed(self._stream.finish))
        return failure

    def _timed(self, call: Callable[..., list[Event]], *samples: npt.NDArray[Any]) -> list[Event]:
        began = self._clock()
        events = call(*samples)
        self._compute += self._clock() - began
        return events

    def _show(self, events: list[Event]) -> None:
        if self._first_text is None and self._began is not None and any(map(_text, events)):
            self._first_text = self._clock() - self._began
        self._output.show(events)
        for event in events:
            if isinstance(event, Final):
                self._segments += 1
                if message := segment_warning(event.result, self._source.name):
                    self._output.note(message)

    def stats(self) -> str:
        """Return one line: seconds of audio and of compute, real-time factor, time to the first text, segments."""
        seconds = self._samples / self._source.rate
        first = "no text" if self._first_text is None else f"first text {self._first_text:.2f} s after the first audio"
        return (
            f"{seconds:.1f} s of audio, {self._compute:.2f} s of compute, "
            f"RTF {self._compute / max(seconds, 1e-9):.3f}, {first}, "
            f"{self._segments} {'segment' if self._segments == 1 else 'segments'}"
        )


def _text(event: Event) -> str:
    match event:
        case Partial(stable=stable, unstable=unstable):
            return stable + unstable
        case Final(result=result):
            return result.text
    return ""


@contextmanager
def stopped_by_interrupt(source: LiveSource) -> Iterator[Callable[[], bool]]:
    """Stop ``source`` on the first Ctrl-C, so that its audio so far is transcribed; interrupt on the second.

    Yields:
        A function that returns whether there was a Ctrl-C.
    """
    previous = signal.getsignal(signal.SIGINT)
    pressed = False
    # Only the main thread may set handlers, and a process that ignores interrupts must keep doing so.
    if threading.current_thread() is not threading.main_thread() or previous == signal.SIG_IGN:
        yield lambda: False
        return

    def stop(_number: int, _frame: Any) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, previous)
        source.stop()

    signal.signal(signal.SIGINT, stop)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, previous)
