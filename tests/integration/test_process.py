"""Commands as processes: standard streams that fail, names and folders that are refused, interrupts, exit codes."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from runtime.cli import process
from runtime.errors import OutputError
from tests.conftest import ARTIFACT, DATA

REPOSITORY = DATA.parent.parent
SENTENCE = "It was very quiet in Madrid."
SPEECH = str(DATA / "en-1.wav")
TRANSCRIBE = f"{sys.executable} -m runtime transcribe --model {ARTIFACT} {SPEECH}"
# prctl(2): drop a capability, those by which root may read and write what its mode bits refuse (capabilities(7)).
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2


def obey_modes() -> None:
    """Let the next program obey the modes of files, also as root."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None)
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def shell(command: str) -> tuple[int, str, str]:
    result = subprocess.run(["bash", "-c", command], capture_output=True, cwd=REPOSITORY, check=False)
    return result.returncode, result.stdout.decode(errors="replace"), result.stderr.decode()


@pytest.mark.parametrize(
    ("redirection", "code", "output", "error"),
    [
        (">/dev/full", 2, "", "error: standard output: cannot be written (No space left on device)\n"),
        (">&-", 2, "", "error: standard output: cannot be written (it is closed)\n"),
        ("2>&-", 0, f"{SENTENCE}\n", ""),
        ("2>/dev/full", 0, f"{SENTENCE}\n", ""),
        (">&- 2>&-", 2, "", ""),
    ],
)
def test_standard_streams_that_fail(redirection: str, code: int, output: str, error: str) -> None:
    assert shell(f"{TRANSCRIBE} {redirection}") == (code, output, error)


def test_a_reader_that_ends_early() -> None:
    """The exit code is that of the first command, not of `true`."""
    code, _, error = shell(f"set -o pipefail; {TRANSCRIBE} {SPEECH} {SPEECH} | true")
    assert (code, error) == (2, "error: standard output: cannot be written (the program that reads it has ended)\n")


def test_a_failure_has_its_exit_code_without_standard_error() -> None:
    assert shell(f"{TRANSCRIBE}.missing 2>&-") == (2, "", "")
    assert shell(f"{TRANSCRIBE}.missing 2>/dev/full") == (2, "", "")


def test_results_are_written_to_a_file_while_all_streams_are_closed(tmp_path: Path) -> None:
    """Otherwise messages would be written into the first file that is opened."""
    out = tmp_path / "out.jsonl"
    assert shell(f"{sys.executable} -m runtime batch {SPEECH} --out {out} <&- >&- 2>&-") == (0, "", "")
    (line,) = out.read_bytes().splitlines()
    assert json.loads(line)["text"] == SENTENCE


@pytest.mark.parametrize("command", ["runtime --help", "export --list", "quantize --help", "asr_deploy --version"])
def test_every_package_reports_a_full_disk(command: str) -> None:
    code, _, error = shell(f"{sys.executable} -m {command} >/dev/full")
    assert (code, error) == (2, "error: standard output: cannot be written (No space left on device)\n")


def test_names_that_are_not_utf_8_are_printed_as_they_are(tmp_path: Path) -> None:
    names = [os.fsencode(tmp_path) + name for name in (b"/caf\xe9.wav", b"/caf\xe8.wav")]
    for name in names:
        shutil.copy(DATA / "en-1.wav", os.fsdecode(name))
    transcribe: list[Any] = [sys.executable, "-m", "runtime", "transcribe", *names, tmp_path / "caf\udcff.wav"]
    result = subprocess.run(transcribe, capture_output=True, cwd=REPOSITORY, check=False)
    assert result.stdout == b"".join(name + b": " + SENTENCE.encode() + b"\n" for name in names)
    assert result.stderr.decode().count("error: ") == 2
    assert result.returncode == 2
    for out in (tmp_path / "caf\udce7", tmp_path / "caf\udce7.jsonl"):
        batch: list[Any] = [sys.executable, "-m", "runtime", "batch", *names, "--out", out]
        done = subprocess.run(batch, capture_output=True, cwd=REPOSITORY, check=False)
        assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "caf\udce7").glob("*.json")) == [
        r"caf\xe8.wav.json",
        r"caf\xe9.wav.json",
    ]
    lines = (tmp_path / "caf\udce7.jsonl").read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line)["id"] for line in lines) == [r"caf\xe8.wav", r"caf\xe9.wav"]


def test_another_encoding_of_the_terminal() -> None:
    command = (
        f"PYTHONIOENCODING=iso8859-1 {sys.executable} -m runtime transcribe --model {ARTIFACT} {DATA / 'zh-2.wav'}"
    )
    code, output, error = shell(command)
    assert (code, error) == (0, "")
    assert output.strip() == "那辆红色的车是李娜的。".encode("ascii", "backslashreplace").decode()


def test_a_context_that_is_not_utf_8() -> None:
    code, output, error = shell(f"{TRANSCRIBE} --context $'\\xe9'")
    assert (code, output) == (2, "")
    assert error.startswith("error: the context is not valid UTF-8")


def test_a_name_that_is_too_long_for_its_output_does_not_stop_a_batch(tmp_path: Path) -> None:
    """250 bytes fit with a suffix of four, and so does the temporary name; 253 do not."""
    names = ["a.wav", "b" * 246 + ".wav", "c" * 249 + ".wav"]
    for name in names:
        shutil.copy(DATA / "en-1.wav", tmp_path / name)
    out = tmp_path / "out"
    code, _, error = shell(f"{sys.executable} -m runtime batch {tmp_path}/*.wav --out {out} --format txt")
    assert code == 2
    assert "3 files: 2 transcribed, 1 failed" in error
    assert f"{names[2]}: cannot be stored as" in error
    assert sorted(path.name for path in out.glob("*.txt")) == [f"{name}.txt" for name in names[:2]]
    assert not list(out.glob(".*.part"))


@pytest.mark.skipif(sys.platform != "linux", reason="root obeys modes on Linux only")
@pytest.mark.parametrize(
    "command",
    [
        "runtime batch {speech} --out {folder}/x/out.jsonl",
        "runtime batch {speech} --out {folder}/x/out",
        "runtime batch {speech} --out {folder}/out.jsonl",
        "runtime evaluate --data {data} --hypotheses {folder}/x/out.jsonl",
        "runtime prepare --out {folder}/x",
        "runtime info {folder}/x",
        "quantize {artifact} --recipe int8 --out {folder}/x/y",
        "export qwen3-asr-tiny --out {folder}/x/y",
    ],
)
def test_a_folder_that_may_not_be_entered(command: str, tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0)
    names: dict[str, Any] = {"speech": SPEECH, "folder": folder, "data": DATA}
    names["artifact"] = REPOSITORY / "artifacts" / "qwen3-asr-tiny-int8"
    words = [sys.executable, "-m", *command.format(**names).split()]
    result = subprocess.run(
        words,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
        preexec_fn=obey_modes,
    )
    folder.chmod(0o700)
    assert (result.returncode, result.stdout) == (2, "")
    lines = result.stderr.splitlines()
    assert [line.startswith("error: ") for line in lines] == [*(False for _ in lines[1:]), True]
    assert str(folder) in lines[-1]


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("runtime", ["transcribe", SPEECH]),
        ("export", ["qwen3-asr-tiny"]),
        ("quantize", ["x", "--recipe", "int8"]),
        ("asr_deploy", ["info"]),
    ],
)
def test_an_interrupt_during_imports_is_one_sentence(module: str, arguments: list[str], tmp_path: Path) -> None:
    """The process interrupts itself as soon as it imports numpy or typer, as Ctrl-C in the first second does."""
    hook = tmp_path / "sitecustomize.py"
    hook.write_text(
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('numpy', 'typer', 'msgspec'):\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"}
    command = [sys.executable, "-m", module, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "error: interrupted\n")


def test_an_interrupt_while_a_command_runs_is_one_sentence(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.wav"
    os.mkfifo(pipe)
    with (
        subprocess.Popen(
            [sys.executable, "-m", "asr_deploy", "transcribe", str(pipe)],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        ) as running,
        pipe.open("wb"),
    ):  # waits until the command has opened it
        time.sleep(0.2)
        running.send_signal(signal.SIGINT)
        output, error = running.communicate(timeout=60)
    assert (running.returncode, output, error) == (130, "", "error: interrupted\n")


def test_ignored_interrupts_stay_ignored() -> None:
    """As for a background job of a shell script."""
    code, output, _ = shell(f"trap '' INT; {TRANSCRIBE} & sleep 0.5; kill -INT $!; wait $!")
    assert (code, output) == (0, f"{SENTENCE}\n")


def test_a_system_error_names_the_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refused() -> None:
        raise PermissionError(13, "Permission denied", "/x/y")

    assert process._call(refused) == 2
    assert capsys.readouterr().err == "error: /x/y: Permission denied\n"

    def failed() -> None:
        raise OutputError("no room")

    assert process._call(failed) == 2
    assert capsys.readouterr().err == "error: no room\n"
    monkeypatch.setattr(sys, "stderr", None)
    assert process._call(failed) == 2
