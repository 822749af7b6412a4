"""What export and quantize tell while they work: bars on a terminal, a line a step everywhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from runtime.host.memory import peak_resident_bytes


class Report:
    """Writes to standard error; results belong to standard output and are not its business.

    Use as a context manager. On a terminal a bar counts the steps, and another one the bytes of a step that reads
    files; a finished step leaves a line with its duration, in a pipe too.
    """

    def __init__(self) -> None:
        self.console = Console(file=sys.stderr, highlight=False)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeElapsedColumn(),
        )
        self._bars = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self._steps = self._done = 0
        self._main = self._bars.add_task("", total=None, shown="")

    def __enter__(self) -> Report:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def expect(self, steps: int) -> None:
        """Say how many steps there will be, beside those that were expected before."""
        self._steps += steps
        self._bars.update(self._main, total=self._steps)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Name a step; its duration is printed when it ends."""
        began = time.monotonic()
        self._bars.update(self._main, description=what, shown=f"step {self._done + 1} of {self._steps}")
        yield
        self._done += 1
        self._bars.update(self._main, completed=self._done)
        self.console.print(f"{what}: {time.monotonic() - began:.1f} s", soft_wrap=True)

    @contextmanager
    def counted(self, what: str, total: int, shown: str) -> Iterator[Callable[[int], object]]:
        """A step over ``total`` units, with a bar of its own labelled ``shown``; yields what to call with a number."""
        with self.step(what):
            task = self._bars.add_task(what, total=total, shown=shown)
            try:
                yield lambda count: self._bars.advance(task, count)
            finally:
                self._bars.remove_task(task)

    @contextmanager
    def bytes(self, what: str, total: int) -> Iterator[Callable[[int], object]]:
        """A step over ``total`` bytes; yields what to call with the bytes of each piece."""
        with self.counted(what, total, f"{total / 1e6:.0f} MB") as advance:
            yield advance


def peak_memory() -> str:
    """Peak resident memory of this process so far, in words."""
    return f"peak resident memory {peak_resident_bytes() / 1e9:.1f} GB"
