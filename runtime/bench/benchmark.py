"""Run a benchmark: every measurement in a process of its own, one after the other."""

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

# A cold start transcribes a short clip, long enough for one or two words.
_COLD_SECONDS = 2.0
# Where tokens are forced, a cold start forces the language header and a few tokens of text.
_COLD_TOKENS = 8
# The model's work is counted on a segment of this length.
_PROBE_SECONDS = 8.0

_CHILD = "runtime.bench.child"
# A module of the CLI, started by name: see there why it is not imported.
_COLD_START = "runtime.cli.cold_start"

Progress = Callable[[int, int, str], object]
"""Called with (measurements done, measurements in all, name of the next one)."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Measurements to take: each clip length with each batch size.

    Attributes:
        setup: how to open the model.
        seconds: clip lengths.
        batch: batch sizes.
        runs: counted runs of each configuration, after a warm-up.
        new_tokens: tokens to force for each clip or each second of it; None forces none.
        clips: clips to transcribe together; None: as many as give each row of a batch a segment.
        audio: recordings to cut clips from; empty: the bundled samples.
    """

    setup: Setup
    seconds: list[float]
    batch: list[int]
    runs: int
    new_tokens: NewTokens | None = None
    clips: int | None = None
    audio: list[Path] = []


class NewTokens(msgspec.Struct, frozen=True):
    """Number of tokens to force, for each clip or for each second of audio."""

    count: float
    per_second: bool

    @classmethod
    def parse(cls, text: str) -> NewTokens:
        """Parse ``180`` (a clip) or ``3/s`` (a second).

        Raises:
            OptionError: ``text`` has neither form, or the number is not positive.
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
        """Return the tokens for a clip of ``seconds`` seconds, at least 1."""
        return max(1, math.ceil(self.count * (seconds if self.per_second else 1.0)))

    def __str__(self) -> str:
        return f"{self.count:g}/s" if self.per_second else f"{self.count:g}"


def run_benchmark(plan: Plan, on_progress: Progress | None = None) -> Report:
    """Take all measurements of ``plan``. A configuration that fails does not stop the others.

    Args:
        plan: measurements to take.
        on_progress: called before each measurement.

    Raises:
        ArtifactNotFoundError: the model's folder or one of its files does not exist.
        ArtifactInvalidError: the model's manifest or one of its files is invalid.
        ProviderError: a provider is unknown or not available.
        CapabilityError: the model cannot be forced to a number of tokens.
        AudioNotFoundError: a recording does not exist.
        AudioInvalidError: a recording cannot be decoded.
        AudioUnsupportedError: a recording needs an optional package.
        MeasurementError: the model cannot be started at all.
    """
    artifact = open_artifact(plan.setup.model)
    check_request(artifact.manifest, capabilities_of(artifact), forcing=plan.new_tokens is not None)
    providers = plan.setup.providers
    for texts in (providers.provider, providers.encoder_provider, providers.decoder_provider):
        if texts:
            parse_providers(texts)
    rate = int(artifact.manifest.front_end["sample_rate"])
    files = plan.audio or sample_recordings()
    samples = load_recordings(files, rate, max(*plan.seconds, _COLD_SECONDS, _PROBE_SECONDS))
    threads = plan.setup.threads or usable_cores()
    pairs = [(seconds, batch) for seconds in plan.seconds for batch in plan.batch]

    def report_progress(done: int, name: str) -> None:
        if on_progress:
            on_progress(done, len(pairs) + 2, name)

    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        clips: dict[float, str] = {}
        for seconds in {*plan.seconds, _COLD_SECONDS, _PROBE_SECONDS}:
            path = Path(folder) / f"{len(clips)}.wav"
            write_clip(path, cut(samples, rate, seconds), rate)
            clips[seconds] = str(path)
        del samples
        report_progress(0, "cold start")
        cold_start = _cold_start(plan, clips[_COLD_SECONDS])
        report_progress(1, "the model's work, and the machine's limits")
        work = msgspec.json.decode(_run_job(WorkJob(plan.setup.model, clips[_PROBE_SECONDS])), type=Work)
        rates = [_measure_rates(threads)]
        configurations: list[Configuration] = []
        failures: list[Failure] = []
        for index, (seconds, batch) in enumerate(pairs):
            report_progress(index + 2, f"{seconds:g} s, batch {batch}")
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
                configurations.append(msgspec.json.decode(_run_job(job), type=Configuration))
            except MeasurementError as error:
                failures.append(Failure(seconds, batch, str(error)))
            # Measured after each configuration: on a shared machine only some of the measurements reach the full
            # rate. One is enough, so a failure here is ignored.
            with contextlib.suppress(MeasurementError):
                rates.append(_measure_rates(threads))
    limits = Limits(best_rates(rates), work)
    configurations = [msgspec.structs.replace(each, limits=shares(limits, each)) for each in configurations]
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
        cold_start=cold_start,
        load=Spread.of([each.load for each in configurations]) if configurations else None,
        limits=limits,
        configurations=configurations,
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


def _measure_rates(threads: int) -> Rates:
    return msgspec.json.decode(_run_job(RatesJob(threads)), type=Rates)


def _cold_start(plan: Plan, clip: str) -> ColdStart:
    """Measure the time from before a process is created until its text can be read.

    The first start is not counted; it warms the file cache.

    Raises:
        MeasurementError: a process ended without a text.
    """
    tokens = _COLD_TOKENS if plan.new_tokens else None
    job = msgspec.json.encode(ColdJob(plan.setup, clip, tokens))
    seconds = []
    for _ in range(plan.runs + 1):
        with tempfile.TemporaryFile() as errors:
            began = time.perf_counter()
            with _process(_COLD_START, errors.fileno()) as process:
                assert process.stdin is not None
                assert process.stdout is not None
                with contextlib.suppress(BrokenPipeError):  # it ended early; the reason is in `errors`
                    process.stdin.write(job)
                    process.stdin.close()
                text = process.stdout.readline()
                seconds.append(time.perf_counter() - began)
                process.stdout.read()
            if process.returncode or not text:
                errors.seek(0)
                raise _failure(process.returncode, errors.read())
    return ColdStart(Spread.of(seconds[1:]), _COLD_SECONDS, tokens, plan.runs)


def _run_job(job: Job) -> bytes:
    """Run a job in a new process.

    Returns:
        The result as JSON.

    Raises:
        MeasurementError: the process ended without a result.
    """
    with _process(_CHILD, subprocess.PIPE) as process:
        output, errors = process.communicate(msgspec.json.encode(job))
    if process.returncode:
        raise _failure(process.returncode, errors)
    return output


@contextlib.contextmanager
def _process(module: str, errors: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``module`` of this package in a new process, whatever the current folder is.

    The process ends with the block.

    Args:
        module: name of the module.
        errors: where its standard error goes, a file descriptor or ``subprocess.PIPE``.
    """
    package = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH", "")]))
    with subprocess.Popen(
        [sys.executable, "-m", module],
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


def _failure(code: int, errors: bytes) -> MeasurementError:
    """Return an error with the last line of a process's standard error, or with the signal that ended it."""
    lines = errors.decode(errors="replace").strip().splitlines()
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; memory may have run out" if name == "SIGKILL" else ""
        return MeasurementError(f"the measuring process was ended by {name}{hint}")
    return MeasurementError(lines[-1] if lines else f"the measuring process ended with exit code {code} and no result")


def parse_numbers(option: str, text: str) -> list[float]:
    """Parse positive numbers separated by commas.

    Returns:
        The numbers in ascending order, without duplicates.

    Raises:
        OptionError: an entry is not a positive, finite number.
    """
    return sorted({_positive(option, entry) for entry in text.split(",")})


def parse_counts(option: str, text: str) -> list[int]:
    """Parse positive whole numbers separated by commas.

    Returns:
        The numbers in ascending order, without duplicates.

    Raises:
        OptionError: an entry is not a positive whole number.
    """
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
