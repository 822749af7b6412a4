"""The programs in ``examples/`` on the small model and the sample recordings, each in a process of its own."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ARTIFACT, DATA, REPOSITORY

EXAMPLES = REPOSITORY / "examples"
SMALL = ("--model", str(ARTIFACT))


def run(name: str, *arguments: str | Path, exit_code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, cwd=REPOSITORY)
    assert result.returncode == exit_code, result.stderr
    return result


def test_every_program_is_described() -> None:
    listed = set(re.findall(r"`(\w+\.py)`", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    assert listed == {path.name for path in EXAMPLES.glob("*.py")}
    assert len(listed) == 6


def test_transcribe_file(samples: list[dict[str, Any]]) -> None:
    text, *segments = run("transcribe_file.py", DATA / "en-1.wav", *SMALL).stdout.splitlines()
    assert text == samples[0]["text"]
    assert len(segments) == 1
    assert segments[0].endswith(f"English  {text}")


def test_transcribe_file_names_what_is_wrong() -> None:
    assert "missing.wav" in run("transcribe_file.py", "missing.wav", *SMALL, exit_code=2).stderr
    assert (
        "klingon" in run("transcribe_file.py", DATA / "en-1.wav", "--language", "klingon", *SMALL, exit_code=2).stderr
    )


def test_batch_continues(samples: list[dict[str, Any]], tmp_path: Path) -> None:
    output, bad = tmp_path / "results.jsonl", tmp_path / "bad.wav"
    bad.write_bytes(b"no audio")
    first = run("batch.py", output, DATA / "en-1.wav", bad, *SMALL, exit_code=2)
    assert str(bad) in first.stderr
    assert " s of audio" in first.stderr
    stored = output.read_text(encoding="utf-8")
    run("batch.py", output, DATA / "en-1.wav", DATA / "ru-1.wav", *SMALL)
    assert output.read_text(encoding="utf-8").startswith(stored)
    texts = {entry["audio"]: entry["text"] for entry in map(json.loads, output.read_text("utf-8").splitlines())}
    expected = {sample["file"]: sample["text"] for sample in samples}
    assert texts == {str(DATA / name): expected[name] for name in ("en-1.wav", "ru-1.wav")}


def test_live_stream(samples: list[dict[str, Any]]) -> None:
    lines = run("live_stream.py", DATA / "en-1.wav", *SMALL).stdout.splitlines()
    assert lines[0].endswith("s: speech")
    assert any("|" in line for line in lines)
    assert lines[-1].endswith(f"s: final: {samples[0]['text']}")


@pytest.fixture
def server() -> Iterator[str]:
    """A server with the small model; yields its URL."""
    command = [sys.executable, "-m", "runtime", "serve", "--port", "0", *SMALL]
    with subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8", cwd=REPOSITORY) as process:
        assert process.stderr is not None
        try:
            yield process.stderr.readline().split()[0]
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)


def test_openai_client(server: str, samples: list[dict[str, Any]]) -> None:
    text = samples[0]["text"]
    lines = run("openai_client.py", DATA / "en-1.wav", "--url", f"{server}/v1").stdout.splitlines()
    assert lines == ["models: qwen3-asr-tiny-int8", f"text: {text}", f"stream: {text}"]


def test_subtitles(tmp_path: Path) -> None:
    target = tmp_path / "en-3.srt"
    run("subtitles.py", DATA / "en-3.wav", target, *SMALL)
    lines = target.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "1"
    assert re.fullmatch(r"\d\d:\d\d:\d\d,\d{3} --> \d\d:\d\d:\d\d,\d{3}", lines[1])
    assert lines.count("") >= 1  # several cues


def test_compare(samples: list[dict[str, Any]]) -> None:
    first, equal, second, also_equal = run(
        "compare.py", DATA / "en-1.wav", ARTIFACT, f"{ARTIFACT}@cpu"
    ).stdout.splitlines()
    assert first == second
    assert first.startswith("qwen3-asr-tiny-int8 on cpu, 6.9 MB")
    for line in (equal, also_equal):
        assert re.search(r"RTF \d+\.\d+, 22 of 22 tokens equal: ", line)
        assert line.endswith(samples[0]["text"])
