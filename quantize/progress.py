"""Progress bars and step durations that export and quantize print to standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from runtime.host.memory import peak_resident_bytes


class Report:
    """Print progress to standard error; standard output is left to results.

    Use as a context manager. On a terminal, one bar counts the steps and another the units within a step. Each finished
    step prints a line with its duration, also when standard error is not a terminal.
    """

    def __init__(self) -> None:
        self.console = Console(file=sys.stderr, highlight=False)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[label]}"),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self._total_steps = self._completed_steps = 0
        self._step_task = self._progress.add_task("", total=None, label="")

    def __enter__(self) -> Report:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def expect(self, steps: int) -> None:
        """Add ``steps`` to the expected number of steps."""
        self._total_steps += steps
        self._progress.update(self._step_task, total=self._total_steps)

    @contextmanager
    def step(self, description: str) -> Iterator[None]:
        """Run the block as one step and print its duration when it ends without an error."""
        start = time.monotonic()
        label = f"step {self._completed_steps + 1} of {self._total_steps}"
        self._progress.update(self._step_task, description=description, label=label)
        yield
        self._completed_steps += 1
        self._progress.update(self._step_task, completed=self._completed_steps)
        self.console.print(f"{description}: {time.monotonic() - start:.1f} s", soft_wrap=True)

    @contextmanager
    def counted(self, description: str, total: int, label: str) -> Iterator[Callable[[int], object]]:
        """Run the block as one step of ``total`` units with a bar of its own.

        Args:
            description: Name of the step.
            total: Number of units.
            label: Text beside the bar.

        Yields:
            A function that takes the number of units finished since its last call.
        """
        with self.step(description):
            task = self._progress.add_task(description, total=total, label=label)
            try:
                yield lambda count: self._progress.advance(task, count)
            finally:
                self._progress.remove_task(task)

    @contextmanager
    def bytes(self, description: str, total: int) -> Iterator[Callable[[int], object]]:
        """Run the block as one step over ``total`` bytes; yields a function that takes the bytes of each piece."""
        with self.counted(description, total, f"{total / 1e6:.0f} MB") as advance:
            yield advance


def peak_memory() -> str:
    """Format the peak resident memory of this process, e.g. ``peak resident memory 0.9 GB``."""
    return f"peak resident memory {peak_resident_bytes() / 1e9:.1f} GB"
