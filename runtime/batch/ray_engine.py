"""Run a batch on Ray Data, with a model in each worker process, on this machine or on a cluster.

Needs the packages of ``asr-deploy[ray]``. Ray is imported when an engine is created, not with this module, because
its workers import this module too.
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
from runtime.batch.run import Engine, OnProgress, RequestedOption, Result, check_options, requested_options
from runtime.errors import AsrError, PackageMissingError, WorkerError
from runtime.ort.providers import AskedProviders
from runtime.ort.threads import usable_cores
from runtime.results import Transcript
from runtime.transcriber import Request, Transcriber

# Files that a worker gets at once, for each row of its batch: enough to keep the rows filled until the last few files.
_FILES_PER_ROW = 8
# Blocks of files for each worker: small enough that workers of different speed end at about the same time.
_BLOCKS_PER_WORKER = 4
# 128 MiB. Texts are small; Ray's default would reserve a third of the machine's memory.
_OBJECT_STORE_BYTES = 128 * 2**20
_REACH_SECONDS = 10.0


class WorkerOptions(msgspec.Struct, frozen=True):
    """Options with which a worker opens the model, as in :meth:`runtime.Transcriber.from_artifact`.

    ``model`` is an absolute path, or None for the bundled model.
    """

    model: str | None
    providers: AskedProviders
    threads: int | None
    max_batch: int
    memory: int | None
    segment_seconds: float | None
    vad: bool

    def open(self, threads: int | None = None) -> Transcriber:
        """Open the model; ``threads`` is used if the options set no number of threads."""
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
    """A job as it is sent to a worker. The path is bytes because a file name need not be UTF-8."""

    index: int
    audio: bytes
    language: str | None
    context: str
    channel: int | None
    track: int | None = None


class _Answer(msgspec.Struct, frozen=True, array_like=True):
    """A result as a worker sends it. ``fatal`` ends the whole batch: the model or an option cannot be used."""

    index: int
    transcript: Transcript | None = None
    error: str | None = None
    fatal: bool = False


class Ledger:
    """Record of the blocks and files that were started and did not end. Runs as an actor that outlives the workers.

    Ray runs a block again each time its worker dies, so a file that kills every worker (for example one that needs too
    much memory) would keep the batch running forever. A block that was started before is therefore run file by file,
    and a file that was started alone and did not end is not started again.
    """

    def __init__(self) -> None:
        self._blocks: set[tuple[int, ...]] = set()
        self._alone: set[int] = set()

    def begin_block(self, indices: list[int]) -> tuple[bool, list[int]]:
        """Record that a block starts.

        Returns:
            Whether it was started before, and the indices of its files that killed a worker.
        """
        block = tuple(indices)
        restarted = block in self._blocks
        self._blocks.add(block)
        return restarted, [index for index in indices if index in self._alone]

    def end_block(self, indices: list[int]) -> None:
        """Record that a block has ended."""
        self._blocks.discard(tuple(indices))

    def begin(self, index: int) -> None:
        """Record that a file starts alone."""
        self._alone.add(index)

    def end(self, index: int) -> None:
        """Record that a file has ended."""
        self._alone.discard(index)


class Worker:
    """Callable that Ray Data runs in each worker process: opens the model once, then runs blocks of tasks."""

    def __init__(self, options: WorkerOptions, threads: int, requested: list[RequestedOption], ledger: Any) -> None:
        """Open the model; a failure is reported by the first answer.

        Args:
            options: how to open the model.
            threads: threads, if ``options`` sets none.
            requested: languages and contexts to check.
            ledger: handle of a :class:`Ledger` actor.
        """
        self._ledger = ledger
        self._failure: str | None = None
        # An exception here would end the actor and reach the driver as a long traceback.
        try:
            self._transcriber = options.open(threads)
            check_options(self._transcriber, requested)
        except AsrError as error:
            self._failure = str(error)

    def __call__(self, block: Any) -> Iterator[Any]:
        """Yield the answers of a block of tasks as they finish, each as a pyarrow table with the column ``answer``.

        Args:
            block: pyarrow table with the column ``task``.
        """
        import pyarrow

        for answer in self._answers([msgspec.msgpack.decode(task, type=_Task) for task in block["task"].to_pylist()]):
            yield pyarrow.table({"answer": [msgspec.msgpack.encode(answer)]})

    def _answers(self, tasks: list[_Task]) -> Iterator[_Answer]:
        if self._failure is not None:
            yield _Answer(-1, error=self._failure, fatal=True)
            return
        indices = [task.index for task in tasks]
        restarted, deadly = self._call_ledger("begin_block", indices)
        for task in (task for task in tasks if task.index in deadly):
            message = f"{os.fsdecode(task.audio)}: the worker process died while transcribing it (out of memory?)"
            yield _Answer(task.index, error=message)
        remaining = [task for task in tasks if task.index not in deadly]
        if restarted:
            for task in remaining:
                self._call_ledger("begin", task.index)
                yield from self._transcribe([task])
                self._call_ledger("end", task.index)
        else:
            yield from self._transcribe(remaining)
        self._call_ledger("end_block", indices)

    def _transcribe(self, tasks: list[_Task]) -> Iterator[_Answer]:
        requests = (
            Request(Path(os.fsdecode(task.audio)), task.language, task.context, channel=task.channel, track=task.track)
            for task in tasks
        )
        for outcome in self._transcriber.transcribe_many(requests):
            error = str(outcome.error) if outcome.error else None
            yield _Answer(tasks[outcome.index].index, outcome.transcript, error)

    def _call_ledger(self, method: str, argument: Any) -> Any:
        import ray

        return ray.get(getattr(self._ledger, method).remote(argument))


def ray_engine(options: WorkerOptions, workers: int | None, language: str | None, context: str) -> Engine:
    """Return an engine that runs worker processes on Ray.

    The cluster is that of ``RAY_ADDRESS``, or one that is started on this machine and ends with the batch. Workers
    read the audio and the model, so on a cluster all machines must see both at the same paths.

    When a worker dies, Ray starts another, which runs its files one by one; only the file that killed the worker fails
    (see :class:`Ledger`).

    Args:
        options: how each worker opens the model; ``memory`` is the limit of one worker.
        workers: worker processes, which share the cores; None: one for each machine.
        language: language of jobs that set none; None: detected.
        context: context of jobs that set none.

    Raises:
        PackageMissingError: Ray Data is not installed.
    """
    # Set before Ray is imported: no usage statistics, and no log of its C++ part, unless the user has set them.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ImportError as error:
        raise PackageMissingError(f"--engine ray needs Ray Data ({error}): pip install 'asr-deploy[ray]'") from None

    def run(jobs: Sequence[Job], on_progress: OnProgress) -> Generator[Result, None, None]:
        tasks = {
            index: _Task(
                index,
                os.fsencode(job.audio.absolute()),
                language if job.language is None else job.language,
                context if job.context is None else job.context,
                job.channel,
                job.track,
            )
            for index, job in enumerate(jobs)
        }
        requested = requested_options(jobs, language, context)
        # A thread of Ray prints messages about dead workers to standard output.
        with contextlib.redirect_stdout(sys.stderr), _cluster(ray) as machines:
            count = workers or len(machines)
            share = cores_each(machines, count)
            size = block_size(len(tasks), count, options.max_batch)
            ledger = ray.remote(num_cpus=0)(Ledger).remote()
            # When a block runs again, Ray drops as many of its answers as it delivered before, by their order. If the
            # order differs, some are lost; such files run once more in the second round.
            for files in (size, 1):
                arguments = {
                    "options": options,
                    "threads": max(1, int(share)),
                    "requested": requested,
                    "ledger": ledger,
                }
                for answer in _stream(ray, list(tasks.values()), files, count, share, arguments):
                    if tasks.pop(answer.index, None) is None:  # already delivered before its worker died
                        continue
                    if answer.transcript is not None:
                        on_progress(answer.transcript.duration)
                    yield Result(answer.index, answer.transcript, answer.error)
                if not tasks:
                    return
        for index in tasks:
            yield Result(index, None, f"{jobs[index].audio}: was lost with a worker process; run the command again")

    return run


def block_size(files: int, workers: int, rows: int) -> int:
    """Return the number of files in a block: enough to fill a worker's rows, few enough that workers end together.

    Args:
        files: files in all.
        workers: worker processes.
        rows: rows of a worker's batch.
    """
    fair = math.ceil(files / workers)
    return max(1, min(rows, fair), min(rows * _FILES_PER_ROW, math.ceil(fair / _BLOCKS_PER_WORKER)))


def cores_each(machines: Sequence[float], workers: int) -> float:
    """Return the cores of each worker: a whole number, or a fraction below 1.

    Args:
        machines: cores of each machine.
        workers: workers, spread evenly over the machines.
    """
    share = min(machines) / math.ceil(workers / len(machines))
    return float(math.floor(share)) if share >= 1 else share


@contextlib.contextmanager
def _cluster(ray: Any) -> Iterator[list[float]]:
    """Connect to Ray. A cluster that was started for it ends with the block.

    Yields:
        The cores of each machine that has any.

    Raises:
        WorkerError: Ray cannot be started, or the cluster of ``RAY_ADDRESS`` cannot be used.
        WorkerError: no machine of the cluster has cores.
    """
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
            raise WorkerError(f"Ray cannot be started on this machine ({reason})") from None
        raise WorkerError(
            f"RAY_ADDRESS={address}: cannot be used ({reason}); the cluster must run the same version of Ray; if it "
            "requires a token, set RAY_AUTH_MODE=token"
        ) from None
    try:
        cores = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
        if not any(cores):
            raise WorkerError(f"RAY_ADDRESS={address}: no machine of this cluster has cores; add one")
        yield [count for count in cores if count]
    finally:
        with _silence():  # Ray reports tasks of the workers that it ends
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Check that a cluster accepts connections; Ray itself would try for minutes.

    Raises:
        WorkerError: nothing listens at the address.
    """
    match = re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", address)
    if not match:  # "auto" or "local": Ray reports at once
        return
    try:
        socket.create_connection((match[1], int(match[2])), timeout=_REACH_SECONDS).close()
    except OSError as error:
        raise WorkerError(f"RAY_ADDRESS={address}: no Ray cluster answers there ({error.strerror or error})") from None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Discard what Ray's C++ part writes to standard error; errors are raised as exceptions too."""
    stderr = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)


def _stream(
    ray: Any,
    tasks: list[_Task],
    files: int,
    workers: int,
    share: float,
    arguments: dict[str, Any],
) -> Iterator[_Answer]:
    """Run tasks on Ray and yield answers as they finish.

    Args:
        ray: the module ``ray``, connected.
        tasks: tasks to run.
        files: tasks in a block.
        workers: worker processes.
        share: cores reserved for each worker.
        arguments: arguments of :class:`Worker`.

    Raises:
        WorkerError: the workers cannot run.
        WorkerError: a worker cannot use the model or an option.
    """
    data = ray.data
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # each answer is a block of its own, so that it leaves the worker at once
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
            f"the workers cannot continue ({reason}); finished results are stored, run the command again"
        ) from None
