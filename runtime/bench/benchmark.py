"""A benchmark: every measurement in a process of its own, one after the other."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from runtime.bench.child import ColdJob, Job, MeasureJob, RatesJob, Setup, WorkJob
from runtime.bench.clips import cut, load_recordings, sample_recordings, write_clip
from runtime.bench.limits import best_rates, shares
from runtime.bench.machine import describe
from runtime.bench.results import (
    ColdStart,
    Configuration,
    Failure,
    Limits,
    Model,
    Rates,
    Report,
    Settings,
    Spread,
    Work,
)
from runtime.errors import MeasurementError, OptionError
from runtime.families import capabilities_of, check_request
from runtime.model.artifact import Artifact, open_artifact
from runtime.ort.providers import parse_providers
from runtime.ort.threads import usable_cores

# A cold start is that of a short clip: long enough to hold a word or two.
_COLD_SECONDS = 2.0
# Where tokens are forced, a cold start forces the header with the language and a few of text.
_COLD_TOKENS = 8
# The model's work is counted on a segment of this length, the machine's limits do not depend on it.
_PROBE_SECONDS = 8.0

Progress = Callable[[int, int, str], object]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure: every length with every batch size.

    ``new_tokens`` are forced for each clip, or for each second of it; ``clips`` null: as many as give each row of a
    batch a segment. Without ``audio`` the sample recordings are used.
    """

    setup: Setup
    seconds: list[float]
    batch: list[int]
    runs: int
    new_tokens: NewTokens | None = None
    clips: int | None = None
    audio: list[Path] = []


class NewTokens(msgspec.Struct, frozen=True):
    """A number of tokens to force, for a clip or for a second."""

    count: float
    per_second: bool

    @classmethod
    def parse(cls, text: str) -> NewTokens:
        """``180`` or ``3/s``.

        Raises:
            OptionError: neither.
        """
        number, slash, unit = text.strip().partition("/")
        try:
            count = float(number) if slash else float(int(number))
        except ValueError:
            count = math.nan
        if not 0 < count < math.inf or (slash and unit != "s"):
            raise OptionError(f"--new-tokens: {text!r} is not a number of tokens; give one such as 180, or 3/s")
        return cls(count, bool(slash))

    def of(self, seconds: float) -> int:
        """Tokens of a clip of so many seconds, at least one."""
        return max(1, math.ceil(self.count * (seconds if self.per_second else 1.0)))

    def __str__(self) -> str:
        return f"{self.count:g}/s" if self.per_second else f"{self.count:g}"


def run_benchmark(plan: Plan, progress: Progress | None = None) -> Report:
    """Measure everything that ``plan`` asks for; a configuration that fails does not stop the others.

    Args:
        plan: what to measure.
        progress: called before each measurement with (measurements done, in all, what comes now).

    Raises:
        ArtifactNotFoundError, ArtifactInvalidError, ProviderError, CapabilityError, audio errors: before anything is
            measured.
        MeasurementError: the model cannot be started at all.
    """
    artifact = open_artifact(plan.setup.model)
    check_request(artifact.manifest, capabilities_of(artifact), forcing=plan.new_tokens is not None)
    asked = plan.setup.providers
    for each in (asked.provider, asked.encoder_provider, asked.decoder_provider):
        if each:
            parse_providers(each)
    rate = int(artifact.manifest.front_end["sample_rate"])
    files = plan.audio or sample_recordings()
    samples = load_recordings(files, rate, max(*plan.seconds, _COLD_SECONDS, _PROBE_SECONDS))
    threads = plan.setup.threads or usable_cores()
    todo = [(seconds, batch) for seconds in plan.seconds for batch in plan.batch]

    def say(done: int, what: str) -> None:
        if progress:
            progress(done, len(todo) + 2, what)

    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        clips: dict[float, str] = {}
        for seconds in {*plan.seconds, _COLD_SECONDS, _PROBE_SECONDS}:
            path = Path(folder) / f"{len(clips)}.wav"
            write_clip(path, cut(samples, rate, seconds), rate)
            clips[seconds] = str(path)
        del samples
        say(0, "cold start")
        cold = _cold_start(plan, clips[_COLD_SECONDS])
        say(1, "the model's work, and the machine's limits")
        work = msgspec.json.decode(_child(WorkJob(plan.setup.model, clips[_PROBE_SECONDS])), type=Work)
        rates = [_rates(threads)]
        found: list[Configuration] = []
        failures: list[Failure] = []
        for index, (seconds, batch) in enumerate(todo):
            say(index + 2, f"{seconds:g} s, batch {batch}")
            job = MeasureJob(
                setup=plan.setup,
                clip=clips[seconds],
                seconds=seconds,
                batch=batch,
                runs=plan.runs,
                new_tokens=plan.new_tokens.of(seconds) if plan.new_tokens else None,
                clips=plan.clips,
            )
            try:
                found.append(msgspec.json.decode(_child(job), type=Configuration))
            except MeasurementError as error:
                failures.append(Failure(seconds, batch, str(error)))
            # Again and again, for a machine that others use too shows what it can do only now and then. Once is
            # enough to go on with.
            with contextlib.suppress(MeasurementError):
                rates.append(_rates(threads))
    limits = Limits(best_rates(rates), work)
    found = [msgspec.structs.replace(each, limits=shares(limits, each)) for each in found]
    return Report(
        machine=describe(),
        model=_model(artifact),
        settings=Settings(
            provider=plan.setup.providers.text,
            threads=threads,
            runs=plan.runs,
            new_tokens=str(plan.new_tokens) if plan.new_tokens else None,
            segment_seconds=plan.setup.segment_seconds,
            audio=[file.name for file in files],
        ),
        cold_start=cold,
        load=Spread.of([each.load for each in found]) if found else None,
        limits=limits,
        configurations=found,
        failures=failures,
    )


def _model(artifact: Artifact) -> Model:
    quantization = artifact.manifest.quantization
    return Model(
        name=artifact.manifest.name,
        family=artifact.manifest.family,
        recipe=quantization.recipe if quantization else "float32",
        bytes=artifact.size,
    )


def _rates(threads: int) -> Rates:
    return msgspec.json.decode(_child(RatesJob(threads)), type=Rates)


def _cold_start(plan: Plan, clip: str) -> ColdStart:
    """From before the process is made until its text can be read; the first time warms the file cache."""
    tokens = _COLD_TOKENS if plan.new_tokens else None
    job = msgspec.json.encode(ColdJob(plan.setup, clip, tokens))
    taken = []
    for _ in range(plan.runs + 1):
        with tempfile.TemporaryFile() as complaints:
            began = time.perf_counter()
            with _process(complaints.fileno()) as process:
                assert process.stdin is not None
                assert process.stdout is not None
                with contextlib.suppress(BrokenPipeError):  # it ended early; why is in its complaints
                    process.stdin.write(job)
                    process.stdin.close()
                text = process.stdout.readline()
                taken.append(time.perf_counter() - began)
                process.stdout.read()
            if process.returncode or not text:
                complaints.seek(0)
                raise _failed(process.returncode, complaints.read())
    return ColdStart(Spread.of(taken[1:]), _COLD_SECONDS, tokens, plan.runs)


def _child(job: Job) -> bytes:
    """A job's result, from a process that did nothing else.

    Raises:
        MeasurementError: it ended without one.
    """
    with _process(subprocess.PIPE) as process:
        said, complaints = process.communicate(msgspec.json.encode(job))
    if process.returncode:
        raise _failed(process.returncode, complaints)
    return said


@contextlib.contextmanager
def _process(errors: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process with the package that is running here, wherever the current folder is; it ends with the block."""
    package = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH", "")]))
    with subprocess.Popen(
        [sys.executable, "-m", "runtime.bench.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=os.environ | {"PYTHONPATH": path},
    ) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def _failed(code: int, complaints: bytes) -> MeasurementError:
    """Why a process ended: the last line that it wrote, or the signal that ended it."""
    lines = complaints.decode(errors="replace").strip().splitlines()
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; memory may have run out" if name == "SIGKILL" else ""
        return MeasurementError(f"the measuring process was ended by {name}{hint}")
    return MeasurementError(lines[-1] if lines else f"the measuring process ended with exit code {code} and no result")


def parse_numbers(option: str, text: str) -> list[float]:
    """Positive numbers separated by commas, ascending, each once.

    Raises:
        OptionError: an entry is none.
    """
    return sorted({_positive(option, entry) for entry in text.split(",")})


def parse_counts(option: str, text: str) -> list[int]:
    """The same of whole numbers."""
    numbers = parse_numbers(option, text)
    for number in numbers:
        if number != int(number):
            raise OptionError(f"{option}: {number:g} is not a whole number")
    return [int(number) for number in numbers]


def _positive(option: str, entry: str) -> float:
    try:
        number = float(entry)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise OptionError(f"{option}: {entry.strip()!r} is not a positive number; give some, such as 1,4,8")
    return number
