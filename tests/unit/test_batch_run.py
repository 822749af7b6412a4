"""The loop, sizes of blocks, and how files that kill workers are found."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import Transcriber, Transcript
from runtime.batch import (
    BatchSettings,
    Job,
    Result,
    Summary,
    check_options,
    open_output,
    requested_options,
    transcribe_jobs,
)
from runtime.batch.ray_engine import Ledger, Worker, WorkerOptions, block_size, cores_each, ray_engine
from runtime.batch.run import OnProgress, RequestedOption, requests
from runtime.cli.common import parse_bytes
from runtime.errors import OptionError, PackageMissingError
from runtime.ort.providers import AskedProviders
from runtime.results import Timings, TokenCounts
from runtime.transcriber import Outcome, Request

SETTINGS = BatchSettings("tiny", "ab" * 32, "cpu", None, True)
OPTIONS = WorkerOptions(None, AskedProviders(), 1, 2, None, None, True)


def transcript(text: str) -> Transcript:
    return Transcript(text, "English", 1.5, [], Timings(), TokenCounts(0, 0, 0), "tiny", "cpu", {})


def test_results_are_stored_as_they_finish_in_any_order(tmp_path: Path) -> None:
    jobs = [Job(name, Path("/audio", name)) for name in ("a", "b", "c")]
    out = tmp_path / "out.jsonl"
    summary = Summary(files=5, skipped=2)
    stored: list[list[str]] = []
    closed = []

    def engine(_jobs: Sequence[Job], on_progress: OnProgress) -> Generator[Result, None, None]:
        try:
            on_progress(1.5)
            yield Result(2, transcript("third"))
            yield Result(0, None, "a: is empty")
            on_progress(1.5)
            yield Result(1, transcript("second"))
        finally:
            closed.append(True)

    def changed() -> None:
        stored.append([msgspec.json.decode(line)["id"] for line in out.read_bytes().splitlines()])

    with closing(open_output(out, None, SETTINGS)) as output:
        transcribe_jobs(jobs, engine, output, summary, on_change=changed, on_transcript=lambda *_: None)
    assert stored == [[], ["c"], ["c", "a"], ["c", "a"], ["c", "a", "b"]]
    assert (summary.done, summary.audio_seconds, summary.finished) == (2, 3.0, 5)
    assert summary.failures == [(jobs[0], "a: is empty")]
    assert closed == [True]


def test_options_of_a_job_override_those_of_the_batch() -> None:
    jobs = [Job("a", Path("a")), Job("b", Path("b"), "ru", "", 1), Job("c", Path("c"), "zh", "names")]
    assert list(requests(jobs, "English", "all")) == [
        Request(Path("a"), "English", "all"),
        Request(Path("b"), "ru", "", channel=1),
        Request(Path("c"), "zh", "names"),
    ]


def test_each_language_is_checked_once_and_reported_with_its_input(transcriber: Transcriber) -> None:
    jobs = [Job("a", Path("a"), "ru", where="list: line 1"), Job("b", Path("b"), "ru", where="list: line 2")]
    assert requested_options(jobs, None, "") == [RequestedOption("list: line 1", "ru")]
    assert requested_options([], None, "") == []
    check_options(transcriber, requested_options(jobs, "en", ""))
    with pytest.raises(OptionError, match=r"^list: line 9: .*'rusian'.*Russian"):
        check_options(
            transcriber, requested_options([*jobs, Job("c", Path("c"), "rusian", where="list: line 9")], "en", "")
        )
    with pytest.raises(OptionError, match=r"^unknown language 'xx'"):
        check_options(transcriber, requested_options(jobs, "xx", ""))


def test_one_context_is_checked_and_reported_with_its_input() -> None:
    jobs = [Job("a", Path("a")), Job("b", Path("b"), context="Kris", where="list: line 2"), Job("c", Path("c"))]
    assert requested_options(jobs, None, "") == [RequestedOption("list: line 2", context="Kris")]
    assert requested_options(jobs, None, "names") == [RequestedOption("", context="names")]


@given(st.integers(1, 10**6), st.integers(1, 200), st.integers(1, 64))
def test_blocks_fill_rows_and_leave_no_worker_idle(files: int, workers: int, rows: int) -> None:
    size = block_size(files, workers, rows)
    assert 1 <= size <= 8 * rows
    assert size >= min(rows, math.ceil(files / workers))
    blocks = math.ceil(files / size)
    assert blocks >= min(workers, files) / 2
    if files >= 8 * rows * workers:
        assert blocks >= 2 * workers


@pytest.mark.parametrize(
    ("machines", "workers", "expected"),
    [([2.0], 2, 1.0), ([2.0], 1, 2.0), ([7.0], 2, 3.0), ([2.0], 4, 0.5), ([16.0, 8.0], 2, 8.0), ([16.0, 8.0], 3, 4.0)],
)
def test_every_worker_has_its_share_of_cores(machines: list[float], workers: int, expected: float) -> None:
    assert cores_each(machines, workers) == expected


class Died(BaseException):
    """Stands for the death of the process."""


class Deadly:
    """A transcriber whose process dies when it starts one of the deadly files."""

    def __init__(self, deadly: set[str]) -> None:
        self.deadly = deadly
        self.begun: list[str] = []

    def transcribe_many(self, requests: Any) -> Any:
        for index, request in enumerate(requests):
            self.begun.append(request.source.name)
            if request.source.name in self.deadly:
                raise Died
            yield Outcome(index, transcript(request.source.name), None)


def test_a_file_that_kills_workers_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray does, the test runs the same block again each time its worker dies."""
    transcriber = Deadly({"c", "e"})
    monkeypatch.setattr(WorkerOptions, "open", lambda *_: transcriber)
    ledger = Ledger()
    worker = Worker(OPTIONS, 1, [], None)
    monkeypatch.setattr(worker, "_call_ledger", lambda method, argument: getattr(ledger, method)(argument))
    from runtime.batch.ray_engine import _Task

    tasks = [_Task(index, name.encode(), None, "", None) for index, name in enumerate("abcdef")]
    deaths = 0
    while True:
        answers = {}
        try:
            for answer in worker._answers(tasks):
                answers[answer.index] = answer.transcript.text if answer.transcript else answer.error
        except Died:
            deaths += 1
            assert deaths < 10
            continue
        break
    assert deaths == 3  # once as a block, once for each deadly file alone
    errors = {index: answers.pop(index) for index in (2, 4)}
    assert answers == {0: "a", 1: "b", 3: "d", 5: "f"}
    for index, name in ((2, "c"), (4, "e")):
        assert str(errors[index]).startswith(f"{name}: ")
        assert "worker process died" in str(errors[index])
    # After a block has ended, it runs as a whole again.
    transcriber.begun.clear()
    transcriber.deadly = set()
    assert len(list(worker._answers(tasks[:2]))) == 2
    assert ledger.begin_block([0, 1]) == (False, [])


def test_a_worker_without_a_model_reports_it_in_one_sentence() -> None:
    options = msgspec.structs.replace(OPTIONS, model="/nowhere")
    (answer,) = Worker(options, 1, [], None)._answers([])
    assert answer.fatal
    assert answer.error is not None
    assert answer.error.startswith("/nowhere: no such model folder")


def test_without_ray_the_error_has_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(
        PackageMissingError, match=r"--engine ray needs Ray Data \(.*\): pip install 'asr-deploy\[ray\]'"
    ):
        ray_engine(OPTIONS, 2, None, "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1),
        ("512MB", 512 * 10**6),
        ("512 mb", 512 * 10**6),
        ("2G", 2 * 10**9),
        ("1.5GiB", 3 * 2**29),
        ("10KiB", 10240),
        ("0.5T", 5 * 10**11),
        ("7B", 7),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "0", "0.2", "-1GB", "GB", "1PB", "1,5GB", "1e9", "2GiBs", "１GB"])
def test_an_invalid_size_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"not a size in bytes.*512MB"):
        parse_bytes(text)
