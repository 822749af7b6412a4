"""``python -m runtime benchmark``: structure of the report, its page, errors before any measurement."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from runtime.__main__ import app
from runtime.bench import benchmark
from runtime.bench.child import Job, MeasureJob, RatesJob, WorkJob
from runtime.bench.report import as_page
from runtime.bench.results import Failure, Limits, Report, Shares, Work
from runtime.bench.table import as_table
from runtime.model.artifact import open_artifact
from tests.conftest import ARTIFACT, DATA
from tests.unit.test_page import HOSTILE, read

AUDIO = str(DATA / "en-1.wav")


pytestmark = pytest.mark.usefixtures("small_default")


@pytest.fixture(scope="module")
def benchmark_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Standard output of a small benchmark, and the folder with its files."""
    folder = tmp_path_factory.mktemp("benchmark")
    options = ["--seconds", "2,0.5", "--batch", "1,2", "--runs", "2", "--new-tokens", "6", "--audio", AUDIO]
    files = ["--json", str(folder / "x.json"), "--html", str(folder / "x.html")]
    result = CliRunner().invoke(app, ["benchmark", "--model", str(ARTIFACT), *options, *files])
    assert result.exit_code == 0, result.output
    assert not result.stderr
    return result.stdout, folder


@pytest.fixture(scope="module")
def report(benchmark_run: tuple[str, Path]) -> Report:
    return msgspec.json.decode((benchmark_run[1] / "x.json").read_bytes(), type=Report, strict=True)


def test_every_configuration_is_measured(report: Report) -> None:
    measured = report.configurations
    assert [(each.seconds, each.batch, each.clips) for each in measured] == [
        (0.5, 1, 1), (0.5, 2, 2), (2.0, 1, 1), (2.0, 2, 2),
    ]  # fmt: skip
    assert not report.failures
    for each in measured:
        assert each.tokens.generated == 6 * each.clips
        assert each.tokens.steps == 5
        assert each.total.low <= each.total.median <= each.total.high
        assert each.rtf.median == pytest.approx(each.total.median / (each.seconds * each.clips))
        # Medians of two runs are means, so the parts add up to the whole (more, should stages overlap).
        assert sum(stage.median for stage in each.stages.values()) >= each.total.median * 0.999
        assert each.per_token is not None
        assert each.step is not None
        assert each.step.median >= each.per_token.median
        assert each.peak_bytes > 10_000_000
        assert each.limits is not None
    assert report.load is not None
    assert report.cold_start.runs == 2
    assert report.cold_start.total.low > 0
    assert report.model.bytes == open_artifact(ARTIFACT).size


def test_the_schema_is_stable(benchmark_run: tuple[str, Path]) -> None:
    """Names of fields that readers of the file use."""
    data = json.loads((benchmark_run[1] / "x.json").read_text())
    assert data["kind"] == "benchmark"
    assert data["schema_version"] == 1
    assert set(data) == {
        "kind", "schema_version", "machine", "model", "settings", "cold_start", "load", "limits", "configurations",
        "failures",
    }  # fmt: skip
    assert set(data["configurations"][0]) == {
        "seconds", "batch", "clips", "segments", "runs", "tokens", "total", "stages", "per_token", "step",
        "first_token", "rtf", "audio_seconds_per_second", "load", "peak_bytes", "limits",
    }  # fmt: skip
    assert set(data["configurations"][0]["total"]) == {"median", "low", "high"}
    assert data["settings"]["new_tokens"] == "6"


def test_the_table_has_a_row_for_each(benchmark_run: tuple[str, Path]) -> None:
    lines = benchmark_run[0].splitlines()
    (head,) = (index for index, line in enumerate(lines) if line.split()[:2] == ["clip", "batch"])
    assert [line.split()[:3] for line in lines[head + 1 :]] == [
        ["0.5", "s", "1"], ["0.5", "s", "2"], ["2", "s", "1"], ["2", "s", "2"],
    ]  # fmt: skip
    assert len({len(line) for line in lines[head:]}) == 1


def test_the_page_is_self_contained(benchmark_run: tuple[str, Path]) -> None:
    document = (benchmark_run[1] / "x.html").read_text(encoding="utf-8")
    reader = read(document)
    assert "http:" not in document
    assert "https:" not in document
    assert "src=" not in document
    assert reader.counts["svg"] >= 6
    assert reader.counts["caption"] == reader.counts["table"] == 5
    for name in ("0.5 s, batch 1", "2 s, batch 2"):
        assert sum(name == text for text in reader.text) >= 3


def test_hostile_names_and_messages_are_escaped(report: Report) -> None:
    model = msgspec.structs.replace(report.model, name=HOSTILE, recipe=HOSTILE)
    settings = msgspec.structs.replace(report.settings, audio=[HOSTILE])
    failures = [Failure(5.0, 1, HOSTILE)]
    changed = msgspec.structs.replace(report, model=model, settings=settings, failures=failures)
    document = as_page(changed)
    read(document)
    assert "<script" not in document
    assert HOSTILE in as_table(changed)


def test_a_ctc_model_has_no_prompt_and_no_steps(report: Report) -> None:
    """The page leaves out the stages and limits that the model does not have."""
    none = {"per_token": None, "step": None}
    configurations = [
        msgspec.structs.replace(
            each,
            stages={name: spread for name, spread in each.stages.items() if name != "prefill"},
            tokens=msgspec.structs.replace(each.tokens, prompt=0, stepped=0, steps=0),
            limits=Shares(encode=0.5, prefill=None, step=None),
            **none,
        )
        for each in report.configurations
    ]
    assert report.limits
    limits = Limits(report.limits.rates, Work(integer_products=True, encoder_operations=1e6))
    changed = msgspec.structs.replace(report, configurations=configurations, limits=limits)
    for document in (" ".join(read(as_page(changed)).text), as_table(changed)):
        assert "decoding" in document
        for absent in ("prefill", "per token", "steps", "keys and values", "None"):
            assert absent not in document
    assert ">50.0 %<" in as_page(changed)
    shown = as_page(report)
    for present in ("prefill", "per token", "steps", "keys and values"):
        assert present in shown


def test_reports_with_one_configuration_and_with_none(report: Report) -> None:
    """A line needs two points; with one there are bars."""
    one = msgspec.structs.replace(report, configurations=report.configurations[:1])
    assert read(as_page(one)).counts.get("polyline", 0) == 0
    failed = msgspec.structs.replace(
        report, configurations=[], load=None, limits=None, failures=[Failure(1, 1, "too large")]
    )
    assert "too large" in "".join(read(as_page(failed)).text)
    assert "failed: 1 s, batch 1: too large" in as_table(failed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "0"], "--seconds: '0' is not a positive number"),
        (["--batch", "x"], "--batch: 'x' is not a positive number"),
        (["--batch", "1.5"], "--batch: 1.5 is not a whole number"),
        (["--new-tokens", "few"], "--new-tokens: 'few' is not a number of tokens"),
        (["--runs", "0"], "--runs must be at least 1, not 0"),
        (["--clips", "0"], "--clips must be at least 1, not 0"),
        (["--threads", "0"], "--threads must be at least 1, not 0"),
        (["--segment-seconds", "nan"], "--segment-seconds must be positive, not nan"),
        (["--audio", "missing.wav"], "missing.wav: no such file"),
        (["--audio", str(DATA / "index.json")], "is not audio that can be decoded"),
        (["--model", "nowhere"], "nowhere: no such model folder"),
        (["--provider", "gpu"], "unknown provider 'gpu'"),
        (["--json", "nowhere/x.json"], "nowhere/x.json: cannot be written"),
        (["--html", "."], ".: cannot be written"),
        (["--html", "x", "--json", "./x"], "--json and --html are the same file"),
    ],
)
def test_bad_input_is_one_sentence_before_any_measurement(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_work(*_: Any) -> Any:
        raise AssertionError("a process was started")

    monkeypatch.setattr(benchmark, "_process", no_work)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["benchmark", *arguments])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_without_write_permission(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    result = CliRunner().invoke(app, ["benchmark", "--json", str(tmp_path / "x.json")])
    assert result.exit_code == 2
    assert "this user may not write to its folder" in result.stderr


def test_a_configuration_that_dies_does_not_stop_the_others(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process is killed as if out of memory; the other results are reported, and the exit code is 2."""
    assert report.limits is not None
    configuration, limits = report.configurations[0], report.limits

    def child(job: Job) -> bytes:
        if isinstance(job, MeasureJob) and job.batch == 2:
            raise benchmark._failure(-9, b"")
        answers: dict[type, Any] = {MeasureJob: configuration, WorkJob: limits.work, RatesJob: limits.rates}
        return msgspec.json.encode(answers[type(job)])

    monkeypatch.setattr(benchmark, "_run_job", child)
    options = ["--seconds", "0.5", "--batch", "1,2", "--runs", "1", "--new-tokens", "2"]
    result = CliRunner().invoke(app, ["benchmark", "--audio", AUDIO, *options])
    assert result.exit_code == 2
    assert (
        "failed: 0.5 s, batch 2: the measuring process was ended by SIGKILL; memory may have run out" in result.stdout
    )
    assert "0.5 s      1" in result.stdout
    assert result.stderr == "error: 1 of 2 configurations failed\n"


def test_why_a_process_failed() -> None:
    assert str(benchmark._failure(1, b"Traceback\nValueError: x\n")) == "ValueError: x"
    assert "exit code 1" in str(benchmark._failure(1, b""))
    assert str(benchmark._failure(-15, b"noise")).endswith("SIGTERM")


def test_a_model_that_cannot_start_is_one_sentence(tmp_path: Path) -> None:
    """The manifest is valid by itself but does not fit the graphs."""
    broken = tmp_path / "model"
    shutil.copytree(ARTIFACT, broken)
    manifest = json.loads((broken / "manifest.json").read_text())
    manifest["parameters"]["hidden_size"] += 1
    (broken / "manifest.json").write_text(json.dumps(manifest))
    result = CliRunner().invoke(app, ["benchmark", "--model", str(broken), "--seconds", "1", "--batch", "1"])
    assert result.exit_code == 2
    assert "parameters.hidden_size is 257" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
