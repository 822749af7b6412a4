"""The work of a batch on Ray Data: a model in each worker process, on this machine or on a cluster.

Needs the extra packages of ``asr-deploy[ray]``. Ray is imported when an engine is made, not with this module: its
workers import this module too.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import re
import socket
import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from runtime.batch.inputs import Job
from runtime.batch.run import Asked, Engine, Result, Seconds, check_asked, options_asked
from runtime.errors import AsrError, PackageMissingError, WorkerError
from runtime.ort.providers import AskedProviders
from runtime.ort.threads import usable_cores
from runtime.results import Transcript
from runtime.transcriber import Request, Transcriber

# A worker takes up to so many files for each row of its buffers at once: rows stay filled until the last few of them.
_FILES_A_ROW = 8
# The work is cut finely enough that workers, who are not equally fast, end at about the same time.
_BLOCKS_A_WORKER = 4
# Texts are small; Ray's own default would set aside a third of the machine's memory.
_OBJECT_STORE_BYTES = 128 * 2**20
_REACH_SECONDS = 10.0


class WorkerOptions(msgspec.Struct, frozen=True):
    """How a worker opens the model; see :meth:`runtime.Transcriber.from_artifact`. Relative paths are the driver's."""

    model: str | None
    providers: AskedProviders
    threads: int | None
    max_batch: int
    memory: int | None
    segment_seconds: float | None
    vad: bool

    def open(self, threads: int | None = None) -> Transcriber:
        """Open it, with so many threads if ``threads`` leaves them open."""
        return Transcriber.from_artifact(
            self.model,
            **msgspec.structs.asdict(self.providers),
            threads=self.threads or threads,
            max_batch=self.max_batch,
            memory=self.memory,
            segment_seconds=self.segment_seconds,
            vad=self.vad,
        )


class _Task(msgspec.Struct, frozen=True, array_like=True):
    """A job on its way to a worker. The path is bytes: a file name need not be UTF-8."""

    index: int
    audio: bytes
    language: str | None
    context: str
    channel: int | None


class _Answer(msgspec.Struct, frozen=True, array_like=True):
    """A result on its way back; ``fatal`` ends the whole batch: no model, or a language that it does not know."""

    index: int
    transcript: Transcript | None = None
    error: str | None = None
    fatal: bool = False


class Ledger:
    """An actor of its own that outlives workers: which blocks and files were begun and never ended.

    Ray runs a block again as often as its worker dies. A file that kills every worker (one too long for the memory,
    say) would keep the batch busy for ever, so a block that was begun before is done file by file, and the file that
    was begun alone and not ended is not begun again.
    """

    def __init__(self) -> None:
        self._blocks: set[tuple[int, ...]] = set()
        self._alone: set[int] = set()

    def begin_block(self, indices: list[int]) -> tuple[bool, list[int]]:
        """Whether the block was begun before, and which of its files killed the worker."""
        block = tuple(indices)
        again = block in self._blocks
        self._blocks.add(block)
        return again, [index for index in indices if index in self._alone]

    def end_block(self, indices: list[int]) -> None:
        self._blocks.discard(tuple(indices))

    def begin(self, index: int) -> None:
        self._alone.add(index)

    def end(self, index: int) -> None:
        self._alone.discard(index)


class Worker:
    """What Ray Data runs in each worker process: the model is opened once, then come blocks of tasks."""

    def __init__(self, options: WorkerOptions, threads: int, asked: list[Asked], ledger: Any) -> None:
        self._ledger = ledger
        self._failure: str | None = None
        # An error here would end the actor, and reach the driver as a page of traceback.
        try:
            self._transcriber = options.open(threads)
            check_asked(self._transcriber, asked)
        except AsrError as error:
            self._failure = str(error)

    def __call__(self, block: Any) -> Iterator[Any]:
        """Answers of a block of tasks (a pyarrow table with the column ``task``), each as soon as it is there."""
        import pyarrow

        for answer in self._answers([msgspec.msgpack.decode(task, type=_Task) for task in block["task"].to_pylist()]):
            yield pyarrow.table({"answer": [msgspec.msgpack.encode(answer)]})

    def _answers(self, tasks: list[_Task]) -> Iterator[_Answer]:
        if self._failure is not None:
            yield _Answer(-1, error=self._failure, fatal=True)
            return
        indices = [task.index for task in tasks]
        again, deadly = self._ask("begin_block", indices)
        for task in tasks:
            if task.index in deadly:
                yield _Answer(
                    task.index, error=f"{os.fsdecode(task.audio)}: the worker process died of it (out of memory?)"
                )
        left = [task for task in tasks if task.index not in deadly]
        if again:
            for task in left:
                self._ask("begin", task.index)
                yield from self._transcribe([task])
                self._ask("end", task.index)
        else:
            yield from self._transcribe(left)
        self._ask("end_block", indices)

    def _transcribe(self, tasks: list[_Task]) -> Iterator[_Answer]:
        requests = (
            Request(Path(os.fsdecode(task.audio)), task.language, task.context, channel=task.channel) for task in tasks
        )
        for outcome in self._transcriber.transcribe_many(requests):
            error = str(outcome.error) if outcome.error else None
            yield _Answer(tasks[outcome.index].index, outcome.transcript, error)

    def _ask(self, method: str, argument: Any) -> Any:
        import ray

        return ray.get(getattr(self._ledger, method).remote(argument))


def ray_engine(options: WorkerOptions, workers: int | None, language: str | None, context: str) -> Engine:
    """An engine of ``workers`` processes, by default one a machine; threads are shared out among them.

    The cluster is that of ``RAY_ADDRESS``, or one that is started on this machine and ends with the work. Audio and
    model are read by the workers: on a cluster they lie where all its machines see them. The memory of ``options`` is
    each worker's.

    When a worker dies, Ray starts another, and its files are done again one by one: only the one that killed it fails
    (see :class:`Ledger`).

    Raises:
        PackageMissingError: Ray Data is not installed.
    """
    # Before Ray is imported: no usage statistics, and its C++ side is quiet unless asked otherwise.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ImportError as error:
        raise PackageMissingError(f"--engine ray needs Ray Data ({error}): pip install 'asr-deploy[ray]'") from None

    def run(jobs: Sequence[Job], heard: Seconds) -> Generator[Result, None, None]:
        tasks = {
            index: _Task(
                index,
                os.fsencode(job.audio.absolute()),
                language if job.language is None else job.language,
                context if job.context is None else job.context,
                job.channel,
            )
            for index, job in enumerate(jobs)
        }
        asked = options_asked(jobs, language, context)
        # What Ray says about workers that die goes to standard output, from a thread of its own.
        with contextlib.redirect_stdout(sys.stderr), _cluster(ray) as machines:
            count = workers or len(machines)
            share = cores_each(machines, count)
            size = block_size(len(tasks), count, options.max_batch)
            ledger = ray.remote(num_cpus=0)(Ledger).remote()
            # Answers of a block that is done again take the places of those that came before, in order; where the
            # order differs some are lost. Such files are done once more.
            for files in (size, 1):
                arguments = {"options": options, "threads": max(1, int(share)), "asked": asked, "ledger": ledger}
                for answer in _stream(ray, list(tasks.values()), files, count, share, arguments):
                    if tasks.pop(answer.index, None) is None:  # it came before its worker died
                        continue
                    if answer.transcript is not None:
                        heard(answer.transcript.duration)
                    yield Result(answer.index, answer.transcript, answer.error)
                if not tasks:
                    return
        for index in tasks:
            yield Result(index, None, f"{jobs[index].audio}: was lost with a worker process; run the command again")

    return run


def block_size(files: int, workers: int, rows: int) -> int:
    """Files that a worker is given at once: enough to fill its rows, few enough that all workers end together."""
    fair = math.ceil(files / workers)
    return max(1, min(rows, fair), min(rows * _FILES_A_ROW, math.ceil(fair / _BLOCKS_A_WORKER)))


def cores_each(machines: Sequence[float], workers: int) -> float:
    """Cores of each worker when they are spread over machines with so many: whole ones, or a part of one."""
    share = min(machines) / math.ceil(workers / len(machines))
    return float(math.floor(share)) if share >= 1 else share


@contextlib.contextmanager
def _cluster(ray: Any) -> Iterator[list[float]]:
    """Connect to Ray; the cores of each of its machines. A cluster that was started here ends with the block."""
    address = os.environ.get("RAY_ADDRESS") or "local"
    _check_reachable(address)
    own = {"num_cpus": usable_cores(), "object_store_memory": _OBJECT_STORE_BYTES, "include_dashboard": False}
    try:
        with _silence():
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **(own if address == "local" else {}),
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        if address == "local":
            raise WorkerError(f"Ray cannot be started here ({reason})") from None
        raise WorkerError(
            f"RAY_ADDRESS={address}: cannot be used ({reason}); it must run the same Ray, and where it wants a token, "
            "set RAY_AUTH_MODE=token"
        ) from None
    try:
        cores = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
        if not any(cores):
            raise WorkerError(f"RAY_ADDRESS={address}: no machine of this cluster has cores; add one")
        yield [count for count in cores if count]
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ask a cluster's door whether it opens: Ray itself knocks for minutes."""
    match = re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", address)
    if not match:  # "auto" or "local": Ray answers at once
        return
    try:
        socket.create_connection((match[1], int(match[2])), timeout=_REACH_SECONDS).close()
    except OSError as error:
        raise WorkerError(f"RAY_ADDRESS={address}: no Ray cluster answers there ({error.strerror or error})") from None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep off standard error what C++ writes there: how it logs. What goes wrong is raised as well."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _stream(
    ray: Any,
    tasks: list[_Task],
    files: int,
    workers: int,
    share: float,
    arguments: dict[str, Any],
) -> Iterator[_Answer]:
    """Answers as they come.

    Args:
        ray: the module, connected.
        tasks: what is to be done.
        files: tasks in a block.
        workers: processes.
        share: cores that are set aside for each.
        arguments: of :class:`Worker`.

    Raises:
        WorkerError: no worker can be started, or one says that nothing will come of it.
    """
    data = ray.data
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # every answer is a block of its own: it leaves the worker at once
    context.target_min_block_size = 1
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    blocks = math.ceil(len(tasks) / files)
    source = data.from_items([{"task": msgspec.msgpack.encode(task)} for task in tasks], override_num_blocks=blocks)
    answers = source.map_batches(
        Worker,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=data.ActorPoolStrategy(size=min(workers, blocks)),
        fn_constructor_kwargs=arguments,
        num_cpus=share,
    )
    try:
        for batch in answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for encoded in batch["answer"].to_pylist():
                answer = msgspec.msgpack.decode(encoded, type=_Answer)
                if answer.fatal:
                    raise WorkerError(answer.error)
                yield answer
    except (ray.exceptions.RayActorError, ray.exceptions.RaySystemError, ray.exceptions.ObjectLostError) as error:
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        raise WorkerError(
            f"the workers cannot go on ({reason}); what is finished is kept, run the command again"
        ) from None
