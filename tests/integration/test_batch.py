"""The command ``batch``: killed, interrupted, continued, on a terminal, and on Ray with two workers."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from runtime.__main__ import app
from runtime.families.qwen3_asr.engine import Qwen3AsrEngine
from tests.conftest import ARTIFACT, DATA, REPOSITORY

# Longest time of a run in seconds; much more than any takes, so that a run that hangs ends.
_TIMEOUT = 300.0
# The samples, and a part of the evaluation set: long enough to be stopped half-way.
INPUTS = (DATA / "*.wav", DATA / "evaluation" / "en-*.ogg")


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["batch", "--model", str(ARTIFACT), *map(str, arguments)])


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "runtime", "batch", "--model", str(ARTIFACT), *map(str, arguments)]


@contextmanager
def process(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Run ``batch`` in a process group of its own, which is killed at the end of the block."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as started:
        try:
            yield started
        finally:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGKILL)


def wait(condition: Callable[[], Any], running: subprocess.Popen[str]) -> Any:
    """Return the value of ``condition`` as soon as it is true."""
    end = time.monotonic() + _TIMEOUT
    while not (value := condition()):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)
    return value


def results(path: Path) -> dict[str, dict[str, Any]]:
    """Return lines by id without their timings, after a check that ids are unique."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({line["id"] for line in lines}) == len(lines)
    for line in lines:
        line.pop("timings", None)
    return {line["id"]: line for line in lines}


def count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Results of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "out.jsonl"
    result = run(*INPUTS, "--out", out)
    assert result.exit_code == 0, result.output
    return results(out)


def test_lines_have_the_texts_of_the_files(whole: dict[str, dict[str, Any]], samples: list[dict[str, Any]]) -> None:
    texts = {sample["file"]: sample["text"] for sample in samples}
    for file in ("en-1.wav", "ru-1.wav", "zh-1.wav"):
        assert whole[file]["text"] == texts[file]
    assert whole["en-01.ogg"]["audio"] == str(DATA / "evaluation" / "en-01.ogg")
    assert len(whole) == len([*DATA.glob("*.wav"), *DATA.glob("evaluation/en-*.ogg")])


def test_bad_files_are_tried_again_by_the_next_run(samples: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    manifest = tmp_path / "list.jsonl"
    lines = [
        {"audio": str(DATA / "en-4.wav"), "id": "names/kris", "context": "Names: Kris.", "language": "en"},
        {"audio": "bad.wav"},
    ]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    out = tmp_path / "out"
    arguments = (
        DATA / "en-1.wav",
        manifest,
        tmp_path / "late.wav",
        DATA / "zh-*.wav",
        "--out",
        out,
        "--format",
        "txt",
        "--max-batch",
        "2",
    )
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    plan, *errors, summary = result.stderr.splitlines()
    assert plan.startswith("2 segments at a time: the model takes ")
    assert sorted(errors) == [
        f"error: {tmp_path / 'bad.wav'}: is not audio that can be decoded (Format not recognised)",
        f"error: {tmp_path / 'late.wav'}: no such file",
    ]
    assert summary.startswith("8 files: 6 transcribed, 2 failed; ")
    assert summary.endswith(" audio-seconds per second")
    assert (out / "en-1.wav.txt").read_text(encoding="utf-8") == samples[0]["text"] + "\n"
    assert "Kris" in (out / "names/kris.txt").read_text(encoding="utf-8")
    recorded = [json.loads(line) for line in (out / "errors.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted(line["id"] for line in recorded) == ["bad.wav", "late.wav"]

    (tmp_path / "late.wav").write_bytes((DATA / "en-2.wav").read_bytes())
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("8 files: 1 transcribed, 6 done before, 1 failed; ")
    (tmp_path / "bad.wav").write_bytes((DATA / "en-3.wav").read_bytes())
    assert run(*arguments).exit_code == 0
    assert not (out / "errors.jsonl").exists()
    result = run(*arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "8 files: 0 transcribed, 8 done before\n")


def test_many_failures_are_not_all_listed(tmp_path: Path) -> None:
    for number in range(25):
        (tmp_path / f"{number:02}.wav").write_bytes(b"")
    result = run(tmp_path, "--out", tmp_path / "out.jsonl")
    lines = result.stderr.splitlines()[1:]
    assert len(lines) == 22
    assert lines[19] == f"error: {tmp_path / '19.wav'}: is empty (0 bytes)"
    assert lines[20] == f"error: and 5 more; all are in {tmp_path / 'out.jsonl'}"
    assert lines[21] == "25 files: 0 transcribed, 25 failed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent", "--out", "{tmp}/o.jsonl"], "error: absent: no such file or folder"),
        (["en-1.wav", "--out", "{tmp}/o.json"], "o.json: cannot store many results"),
        (["en-1.wav", "--out", "{tmp}/o.jsonl", "--format", "vtt"], "for vtt give a folder to --out"),
        (["en-1.wav", "--out", "{tmp}/o.jsonl", "--workers", "2"], "--workers is for --engine ray"),
        (["en-1.wav", "--out", "{tmp}/o.jsonl", "--memory", "much"], "'much' is not a size in bytes"),
        (["en-1.wav", "--out", "{tmp}/o.jsonl", "--language", "englsh"], "did you mean English (en)"),
        (["en-1.wav", "--out", "{tmp}/o.jsonl", "--model", "/nowhere"], "/nowhere: no such model folder"),
        (["en-1.wav", "--out", "{tmp}/o.jsonl", "--provider", "tpu"], "unknown provider 'tpu'"),
        (["index.json", "--out", "index.jsonl/x"], "error: index.jsonl/x: cannot be written"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in DATA.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "index.jsonl").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    result = run(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_other_settings_need_another_output_or_a_restart(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert run(DATA / "en-1.wav", "--out", out, "--language", "en").exit_code == 0
    assert "1 done before" in run(DATA / "en-1.wav", "--out", out, "--language", "ENGLISH").stderr
    result = run(DATA / "en-1.wav", "--out", out, "--language", "ru")
    assert result.exit_code == 2
    for fact in (str(out), "'en-1.wav'", "language: English there, Russian now", "--out", "--restart"):
        assert fact in result.stderr
    assert run(DATA / "en-1.wav", "--out", out, "--language", "ru", "--restart").exit_code == 0
    assert results(out)["en-1.wav"]["language"] == "Russian"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_can_be_continued(
    number: signal.Signals, whole: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """A killed run loses only unfinished files; an interrupted one prints how to continue. The results are the same."""
    out = tmp_path / "out.jsonl"
    with process(*INPUTS, "--out", out) as running:
        wait(lambda: count(out) >= 3, running)
        running.send_signal(number)
        _, errors = running.communicate()
    if number == signal.SIGINT:
        assert running.returncode == 130
        _, message = errors.splitlines()
        assert message.startswith("error: interrupted; ")
        assert f" of {len(whole)} files are in {out}; run the same command again" in message
    else:
        assert running.returncode == -signal.SIGKILL
    before = count(out)
    assert 3 <= before < len(whole)
    result = run(*INPUTS, "--out", out)
    assert result.exit_code == 0, result.output
    assert f"{len(whole)} files: {len(whole) - before} transcribed, {before} done before; " in result.stderr
    assert results(out) == whole


def test_a_terminal_has_a_bar_and_a_pipe_has_none(tmp_path: Path) -> None:
    files = [DATA / "en-1.wav", DATA / "en-2.wav"]
    (tmp_path / "bad.wav").write_bytes(b"")
    controller, terminal = pty.openpty()
    shown = b""
    with subprocess.Popen(
        command(*files, tmp_path, "--out", tmp_path / "terminal.jsonl"),
        stdout=subprocess.PIPE,
        stderr=terminal,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "TERM": "xterm", "COLUMNS": "120"},
    ) as running:
        os.close(terminal)
        while True:
            try:
                block = os.read(controller, 65536)
            except OSError:  # Linux raises it at the end of a terminal
                break
            if not block:
                break
            shown += block
        assert running.stdout is not None
        assert running.stdout.read() == b""
    os.close(controller)
    assert running.returncode == 2
    assert b"3/3" in shown
    assert b"audio-seconds per second, 1 failed" in shown


def ray_workers(root: int) -> list[int]:
    """Return the ids of the processes below ``root`` in which Ray runs workers."""
    parents, names = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text(encoding="utf-8", errors="replace")
                names[int(folder.name)] = (folder / "cmdline").read_bytes()
            except OSError:  # ended meanwhile
                continue
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])

    def below(pid: int) -> bool:
        while pid in parents and pid != root:
            pid = parents[pid]
        return pid == root

    return [pid for pid, name in names.items() if name.startswith(b"ray::MapWorker") and below(pid)]


@pytest.mark.slow
def test_ray_gives_the_same_results_after_the_death_of_a_worker(
    whole: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    out = tmp_path / "out.jsonl"
    with process(*INPUTS, tmp_path / "bad.wav", "--out", out, "--engine", "ray", "--workers", "2") as running:
        wait(lambda: count(out) >= 5, running)
        workers = wait(lambda: ray_workers(running.pid), running)
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        output, errors = running.communicate()
    assert (running.returncode, output) == (2, "")
    *_, error, summary = errors.splitlines()
    assert error.startswith(f"error: {tmp_path / 'bad.wav'}: is not audio")
    assert summary.startswith(f"{len(whole) + 1} files: {len(whole)} transcribed, 1 failed; ")
    stored = results(out)
    assert stored.pop("bad.wav")["error"].startswith(f"{tmp_path / 'bad.wav'}: is not audio")
    assert stored == whole
    assert ray_workers(running.pid) == []


@pytest.mark.slow
def test_a_run_on_ray_is_interrupted_and_continued(whole: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with process(*INPUTS, "--out", out, "--engine", "ray", "--workers", "2") as running:
        wait(lambda: count(out) >= 2, running)
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does
        output, errors = running.communicate()
    assert (running.returncode, output) == (130, "")
    assert errors.splitlines()[-1].startswith("error: interrupted; ")
    before = count(out)
    assert 2 <= before < len(whole)
    result = run(*INPUTS, "--out", out, "--engine", "ray", "--workers", "2")
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"{len(whole) - before} transcribed, {before} done before; " in result.stderr
    assert results(out) == whole
    # In a process of its own: Ray, which ran in this one, may still write to its standard error.
    with process(*INPUTS, "--out", out, "--engine", "ray", "--language", "xx", "--restart") as refused:
        output, errors = refused.communicate()
    assert (refused.returncode, output, errors.count("\n")) == (2, "", 1), errors
    assert "unknown language 'xx'" in errors


def test_an_unreachable_ray_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    result = run(DATA / "en-1.wav", "--out", tmp_path / "out.jsonl", "--engine", "ray")
    assert result.exit_code == 2
    assert result.stderr == "error: RAY_ADDRESS=127.0.0.1:1: no Ray cluster answers there (Connection refused)\n"


@pytest.mark.slow
def test_a_killed_run_keeps_the_finished_segments_of_a_long_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments from before the kill are not decoded again, and the text equals that of an uninterrupted run."""
    parts = [soundfile.read(path, dtype="float32")[0] for path in sorted(DATA.glob("*-3.wav"))]
    pause = np.zeros(2 * 16_000, np.float32)
    soundfile.write(
        tmp_path / "long.flac", np.concatenate([np.concatenate([part, pause]) for part in parts * 12]), 16_000
    )
    out, segments = tmp_path / "out.jsonl", tmp_path / ".out.jsonl.segments"
    arguments = (tmp_path / "long.flac", "--out", out, "--max-batch", "2")
    with process(*arguments) as running:
        wait(lambda: segments.exists() and segments.read_bytes().count(b"\n") >= 5, running)
        os.killpg(running.pid, signal.SIGKILL)
    assert out.read_bytes() == b""
    stored = segments.read_bytes().count(b"\n")
    decoded: list[Any] = []
    decode = Qwen3AsrEngine._finish

    def counted(*segment: Any) -> Any:
        decoded.append(segment)
        return decode(*segment)

    monkeypatch.setattr(Qwen3AsrEngine, "_finish", counted)
    assert run(*arguments).exit_code == 0
    resumed = json.loads(out.read_text())
    assert len(decoded) <= len(resumed["segments"]) - stored + 1  # one line may be torn
    assert not segments.exists()
    whole = tmp_path / "whole.jsonl"
    assert run(tmp_path / "long.flac", "--out", whole, "--max-batch", "2").exit_code == 0
    assert json.loads(whole.read_text())["segments"] == resumed["segments"]
