"""The runtime's command line, run in separate processes where that matters."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import pty
import shutil
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import soundfile
from typer.testing import CliRunner

from runtime import Request, Segment, Transcriber
from runtime.__main__ import app
from runtime.cli.common import segment_warning
from runtime.errors import OptionError
from runtime.families import FAMILIES, declared
from runtime.ort.providers import available_providers
from runtime.pipeline.join_text import join_texts
from runtime.results import DecodedAgain, FinishReason
from tests.conftest import ARTIFACT, DATA, REPOSITORY

pytestmark = pytest.mark.usefixtures("small_default")
SMALL = ("--model", str(ARTIFACT))  # for processes


def run(*arguments: str | Path, stdin: bytes | None = None) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def test_text_goes_to_standard_output(samples: list[dict[str, Any]]) -> None:
    result = run("transcribe", DATA / "en-1.wav")
    assert result.exit_code == 0
    assert result.stdout == samples[0]["text"] + "\n"
    assert result.stderr == ""


def test_one_bad_file_does_not_stop_the_others(samples: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    result = run("transcribe", DATA / "en-1.wav", tmp_path / "bad.wav", DATA / "en-2.wav")
    assert result.exit_code == 2
    assert result.stdout.splitlines() == [
        f"{DATA / 'en-1.wav'}: {samples[0]['text']}",
        f"{DATA / 'en-2.wav'}: {samples[1]['text']}",
    ]
    first, last = result.stderr.splitlines()
    assert first.startswith(f"error: {tmp_path / 'bad.wav'}: is not audio")
    assert last == "error: 1 of 3 files failed"


def test_segments_with_times_for_one_file() -> None:
    result = run("transcribe", DATA / "en-1.wav", "--format", "srt")
    assert result.exit_code == 0
    first, times, text = result.stdout.splitlines()
    assert (first, text) == ("1", "It was very quiet in Madrid.")
    assert times.startswith("00:00:00,000 --> 00:00:0")
    result = run("transcribe", DATA / "en-1.wav", DATA / "en-2.wav", "--format", "vtt")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: vtt ")
    assert "`batch --format vtt`" in result.stderr


def test_json_has_everything(samples: list[dict[str, Any]]) -> None:
    files = [DATA / "ru-4.wav", DATA / "zh-1.wav"]
    result = run("transcribe", *files, "--format", "json", "--context", samples[7]["context"])
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["file"] for line in lines] == [str(file) for file in files]
    first = lines[0]
    assert first["text"] == samples[7]["text"]
    assert first["language"] == "Russian"
    assert first["model"] == "qwen3-asr-tiny-int8"
    assert first["provider"] == "cpu"
    stages = ("load", "segment", "features", "encode", "prefill", "decode", "first_token", "total")
    assert tuple(first["timings"]) == stages
    assert all(value > 0 for value in first["timings"].values())
    assert set(first["versions"]) == {"asr-deploy", "onnxruntime"}
    assert first["tokens"]["prompt"] > first["tokens"]["audio"] > first["tokens"]["generated"] > 3
    (segment,) = first["segments"]
    assert segment == {
        "start": 0.0,
        "end": first["duration"],
        "text": first["text"],
        "language": "Russian",
        "confidence": segment["confidence"],
        "finish_reason": "stop",
        "tokens": segment["tokens"],
        "decoded_again": None,
    }
    assert len(segment["tokens"]) == first["tokens"]["generated"]
    assert 0.5 < segment["confidence"] <= 1.0


def test_standard_input(samples: list[dict[str, Any]]) -> None:
    result = run("transcribe", "-", stdin=(DATA / "zh-2.wav").read_bytes())
    assert (result.exit_code, result.stdout) == (0, samples[9]["text"] + "\n")


def test_a_forced_language_is_used() -> None:
    """The language is given by code and by name; a wrong one changes the text."""
    for language in ("en", "English", "ENGLISH"):
        assert run("transcribe", DATA / "en-1.wav", "--language", language).stdout == "It was very quiet in Madrid.\n"
    result = run("transcribe", DATA / "en-1.wav", "--language", "ru", "--format", "json")
    assert json.loads(result.stdout)["language"] == "Russian"


def test_context_decides_the_spelling() -> None:
    assert "Chris" in run("transcribe", DATA / "en-4.wav").stdout
    assert "Kris" in run("transcribe", DATA / "en-4.wav", "--context", "Names: Kris.").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.wav"], "error: absent.wav: no such file"),
        (["."], "is a folder"),
        (["en-1.wav", "--language", "englsh"], "unknown language 'englsh'; did you mean English (en)"),
        (["en-1.wav", "--language", "xx"], "unknown language 'xx'; this model knows"),
        (["en-1.wav", "--model", "/nowhere"], "/nowhere: no such model folder"),
        (["en-1.wav", "--provider", "tpu"], "unknown provider 'tpu'; available here: cpu"),
        (["en-1.wav", "--provider", "directml"], "provider 'directml' is not available"),
        (["en-1.wav", "--channel", "5"], "has no channel 5"),
        (["en-1.wav", "--threads", "0"], "threads must be at least 1"),
        (["en-1.wav", "--format", "xml"], "'xml'"),
        (["en-1.wav", "--context", "word " * 9000], "give a shorter context"),
        (["en-1.wav", "--context", "<|audio_pad|>"], "the context contains <|audio_pad|>"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(DATA)
    result = run("transcribe", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    if "--format" not in arguments:
        assert result.stderr.count("\n") == 1


def test_a_manifest_of_a_newer_schema(tmp_path: Path) -> None:
    model = Path(shutil.copytree(ARTIFACT, tmp_path / "model"))
    text = (model / "manifest.json").read_text(encoding="utf-8")
    (model / "manifest.json").write_text(text.replace('"schema_version": 1', '"schema_version": 7'), encoding="utf-8")
    for command in (["transcribe", str(DATA / "en-1.wav"), "--model", str(model)], ["info", str(model)]):
        result = run(*command)
        assert result.exit_code == 2
        assert "schema version 7 is newer than 1, the newest this runtime reads; update asr-deploy" in result.stderr


def test_providers_lists_available_ones_and_how_to_install_the_others() -> None:
    result = run("providers")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if not line.startswith("8 bits"))
    assert lines["cpu"] == "in this onnxruntime"
    assert lines["onnxruntime"] == ort.__version__
    assert lines["machine"].endswith("cores for this process")
    assert lines["device"].startswith("CPUExecutionProvider: CPU")
    for name, how in (("directml", "pip install onnxruntime-directml"), ("cuda", "pip install 'onnxruntime-gpu")):
        assert (lines[name] == "in this onnxruntime") == (name in available_providers())
        assert lines[name] == "in this onnxruntime" or how in lines[name]


def test_info() -> None:
    result = run("info", ARTIFACT)
    assert result.exit_code == 0
    for part in (
        "qwen3-asr-tiny-int8 (qwen3-asr)",
        "Apache-2.0",
        "3: Chinese (zh), English (en), Russian (ru)",
        "29 w8a8",
        "5,441,920",
        "context, language option",
        "word timestamps, segment timestamps, translation, long form",
        "Russian words",
    ):
        assert part in result.stdout
    described = json.loads(run("info", "--model", ARTIFACT, "--format", "json").stdout)
    assert (described["family"], described["source"]["parameters"], described["capabilities"]["context"]) == (
        "qwen3-asr",
        5441920,
        True,
    )
    assert described["bytes"] == sum(path.stat().st_size for path in ARTIFACT.iterdir() if path.name != "manifest.json")
    assert run("info", ARTIFACT, "--model", ARTIFACT).exit_code == 2


def test_info_of_the_families() -> None:
    lines = run("info").stdout.splitlines()
    assert lines[0].split() == list(FAMILIES)
    assert lines[1].split() == ["context", *("yes" if declared(family).context else "-" for family in FAMILIES)]
    assert str(ARTIFACT) in lines[-1]
    families = json.loads(run("info", "--format", "json").stdout)["families"]
    assert families["whisper"]["translation"] is True
    assert families["gigaam-ctc"]["translation"] is False


def test_long_audio_is_cut_and_joined(samples: list[dict[str, Any]], tmp_path: Path) -> None:
    """Every word is inside one segment, and each segment has the text that it has alone."""
    parts, words, at = [], [], 0.0
    for sample in samples:
        parts += [soundfile.read(DATA / sample["file"], dtype="float32")[0], np.zeros(6_400, np.float32)]
        words += [(at + word["start"], at + word["end"]) for word in sample["words"]]
        at += sum(map(len, parts[-2:])) / 16_000
    path = tmp_path / "long.wav"
    audio = np.concatenate(parts)
    soundfile.write(path, audio, 16_000)
    done: list[tuple[float, float]] = []
    transcriber = Transcriber.from_artifact()
    transcript = transcriber.transcribe(path, on_progress=lambda *times: done.append(times))
    segments = transcript.segments
    assert len(segments) >= 4
    assert transcript.duration == pytest.approx(len(audio) / 16_000, abs=1e-3)
    assert all(a.end <= b.start for a, b in pairwise(segments))
    assert all(0 < segment.end - segment.start <= 15 for segment in segments)
    assert [second for second, _ in done] == sorted(second for second, _ in done)
    assert (len(done), round(done[-1][0], 3)) == (len(segments), transcript.duration)
    for start, end in words:
        assert any(segment.start <= start + 0.03 and end - 0.03 <= segment.end for segment in segments), (start, end)
    for segment in segments:
        alone = audio[round(segment.start * 16_000) : round(segment.end * 16_000)]
        assert transcriber.transcribe(alone, sample_rate=16_000).text == segment.text
    assert transcript.text == join_texts([segment.text for segment in segments])
    assert sum(sample["text"] in transcript.text for sample in samples) >= 6  # speakers change inside segments


def test_an_exhausted_token_budget_is_reported() -> None:
    transcriber = Transcriber.from_artifact()
    transcript = transcriber.transcribe(DATA / "en-3.wav", max_new_tokens=8)
    assert transcript.segments[0].finish_reason == "length"
    assert transcript.tokens.generated == 8
    timed = transcriber.transcribe(DATA / "en-1.wav", max_new_tokens=50, ignore_stop=True)
    assert timed.tokens.generated == 50
    with pytest.raises(OptionError, match="ignore_stop needs max_new_tokens"):
        transcriber.transcribe(DATA / "en-1.wav", ignore_stop=True)
    with pytest.raises(OptionError, match="needs sample_rate"):
        transcriber.transcribe(np.zeros(100))
    with pytest.raises(OptionError, match="max_batch must be at least 1"):
        Transcriber.from_artifact(max_batch=0)
    with pytest.raises(OptionError, match="sample_rate"):
        transcriber.transcribe(DATA / "en-1.wav", sample_rate=16_000)


def test_a_context_that_is_too_long_is_shortened_on_request() -> None:
    transcriber = Transcriber.from_artifact()
    names = " ".join(f"Name{index}" for index in range(3000))
    request = Request(DATA / "en-1.wav", context=names)
    with pytest.raises(OptionError, match="give a shorter context"):
        transcriber.validate(request)
    validated = transcriber.validate(request, shorten_context=True)
    assert names.endswith(validated.options.context)
    assert validated.dropped_context_tokens > 0
    assert transcriber.validate(Request("", context="Jon"), shorten_context=True).dropped_context_tokens == 0


@pytest.mark.parametrize(
    ("reason", "finish", "warning"),
    [
        ("short", "stop", "its text was short for its speech; decoded again in shorter pieces"),
        (
            "repetition",
            "stop",
            "the model repeated itself; the loop was cut; decoded again in shorter pieces, which",
        ),
        (None, "stop", None),
    ],
)
def test_a_text_that_was_decoded_again_is_a_warning(
    reason: DecodedAgain | None, finish: FinishReason, warning: str | None
) -> None:
    message = segment_warning(Segment(1.0, 2.0, "text", "English", 0.5, finish, [1], reason), "a.wav")
    assert message is None if warning is None else (message or "").startswith(f"warning: a.wav: 1.0-2.0 s: {warning}")


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )


def test_the_runtime_needs_neither_torch_nor_onnx(samples: list[dict[str, Any]]) -> None:
    """Transcription works in a process in which they cannot be imported."""
    result = python(
        """
        import sys

        class Forbidden:
            def find_spec(self, name, path=None, target=None):
                banned = {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime_genai", "safetensors",
                          "huggingface_hub", "export", "quantize", "librosa", "scipy", "jiwer", "whisper_normalizer",
                          "av", "sentencepiece"}
                if name.partition(".")[0] in banned:
                    raise ImportError(f"{name} must not be imported")

        sys.meta_path.insert(0, Forbidden())
        sys.argv = ["runtime", "transcribe", *sys.argv[1:]]
        from runtime.__main__ import app
        app()
        """,
        str(DATA / "en-1.wav"),
        *SMALL,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, samples[0]["text"] + "\n", "")


def test_importing_the_runtime_pulls_in_nothing_heavy() -> None:
    """Its names are imported when they are used."""
    listed = "print(*{name.partition('.')[0] for name in sys.modules})"
    light = python(f"import runtime, sys; {listed}")
    assert not {"onnxruntime", "numpy", "typer"} & set(light.stdout.split())
    assert "open_artifact" in python("import runtime; print(runtime.__all__)").stdout
    assert "has no attribute 'nothing'" in python("import runtime; runtime.nothing").stderr
    result = python(f"from runtime import Transcriber; import sys; {listed}")
    assert result.returncode == 0
    assert "onnxruntime" in result.stdout.split()
    assert not {"torch", "transformers", "onnx", "onnx_ir", "av", "rich", "pydantic"} & set(result.stdout.split())


def test_nothing_is_written_at_home_and_nothing_is_reported(tmp_path: Path) -> None:
    """ONNX Runtime's telemetry creates a folder there. It is enabled in the second round, which shows that it would."""
    for environment, exists in ({}, False), ({"ORT_DISABLE_TELEMETRY": "0"}, True):
        home = tmp_path / str(exists)
        home.mkdir()
        subprocess.run(
            [sys.executable, "-m", "runtime", "transcribe", DATA / "en-1.wav", *SMALL],
            env={"PATH": os.environ["PATH"], "HOME": str(home)}
            | environment,  # no CI variables, which disable telemetry
            cwd=REPOSITORY,
            check=True,
            capture_output=True,
        )
        assert any(home.rglob("*onnxruntime*")) == exists


def test_a_closed_pipe_leaves_no_traceback() -> None:
    files = " ".join(str(DATA / "en-1.wav") for _ in range(20))
    command = f"{sys.executable} -m runtime transcribe {files} {' '.join(SMALL)} | head -1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert result.stdout.count("\n") == 1
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("where", ["from_artifact", "transcribe"])
def test_an_interrupt_is_one_sentence(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the model is loaded, and while it transcribes."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Transcriber, where, interrupted)
    result = run("transcribe", DATA / "en-1.wav")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "error: interrupted\n")


def test_a_closed_standard_input_and_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    command = f"{sys.executable} -m runtime transcribe - {' '.join(SMALL)} <&-"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: standard input")
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav")
    shutil.copy(DATA / "en-1.wav", strange)
    result = run("transcribe", strange, "--format", "json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["text"] == "It was very quiet in Madrid."


def test_text_cut_by_its_budget_is_well_formed() -> None:
    """It has neither a part of the header nor a part of a character."""
    transcriber = Transcriber.from_artifact()
    for budget in range(1, 12):
        transcript = transcriber.transcribe(DATA / "zh-2.wav", max_new_tokens=budget)
        assert "那辆红色的车是李娜的。".startswith(transcript.text)
        assert transcript.language in (None, "Chinese")


def test_progress_is_shown_on_a_terminal_only(tmp_path: Path, speech: np.ndarray) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.resize(speech, 60 * 16_000), 16_000)
    command = [sys.executable, "-m", "runtime", "transcribe", str(path), *SMALL]
    master, slave = pty.openpty()
    terminal = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave, cwd=REPOSITORY, env=terminal) as process:
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # Linux raises OSError at the end of a terminal
            while piece := os.read(master, 4096):
                shown += piece
        assert process.stdout is not None
        text = process.stdout.read().decode()
    os.close(master)
    assert b"of 60 s" in shown
    piped = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert (piped.stdout, piped.stderr) == (text, "")


def test_evaluate_prints_a_row_for_each_language(samples: list[dict[str, Any]], tmp_path: Path) -> None:
    result = run("evaluate", "--data", DATA, "--hypotheses", tmp_path / "heard.jsonl")
    assert (result.exit_code, result.stderr) == (0, "")
    header, *rows = result.stdout.partition("\n\n")[0].splitlines()
    assert header.split("  ")[0] == "language"
    assert [row.split()[:3] for row in rows] == [
        ["Chinese", "characters", "4"],
        ["English", "words", "4"],
        ["Russian", "words", "4"],
    ]
    assert all(" to " in row for row in rows)
    for part in ("s of audio)", "qwen3-asr-tiny-int8, int8", "detected by the model", "jiwer ", "whisper-normalizer "):
        assert part in result.stdout
    lines = [json.loads(line) for line in (tmp_path / "heard.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["file"] for line in lines] == sorted(sample["file"] for sample in samples)
    assert lines[0] == {
        "file": "en-1.wav",
        "language": "English",
        "reference": "It was very quiet in Madrid.",
        "hypothesis": "It was very quiet in Madrid.",
        "normalized_reference": "it was very quiet in madrid",
        "normalized_hypothesis": "it was very quiet in madrid",
    }


def test_evaluate_as_json_with_a_forced_language() -> None:
    result = run("evaluate", "--data", DATA, "--limit", "2", "--force-language", "--format", "json")
    assert (result.exit_code, result.stderr, result.stdout.count("\n")) == (0, "", 1)
    evaluation = json.loads(result.stdout)
    assert evaluation["scores"] == [
        {
            "language": "English",
            "unit": "words",
            "utterances": 2,
            "reference_units": 13,
            "substitutions": 0,
            "deletions": 0,
            "insertions": 0,
            "rate": 0.0,
            "low": 0.0,
            "high": 0.0,
            "exact": 1.0,
        }
    ]
    assert evaluation["language"] == "told"
    assert evaluation["real_time_factor"] > 0
    assert set(evaluation["versions"]) == {"asr-deploy", "onnxruntime", "jiwer", "whisper-normalizer"}


def test_evaluate_with_a_baseline(tmp_path: Path) -> None:
    """A model equals itself; the lines of hypotheses have both texts."""
    options: list[str | Path] = ["--baseline", ARTIFACT, "--limit", "5", "--hypotheses", tmp_path / "heard.jsonl"]
    result = run("evaluate", "--data", DATA, *options)
    assert (result.exit_code, result.stderr) == (0, "")
    _, _, compared = result.stdout.partition("\n\ncompared with the baseline qwen3-asr-tiny-int8, int8:\n")
    rows = [line.split() for line in compared.partition("\n\n")[0].splitlines()[1:]]
    assert [(row[0], row[2]) for row in rows] == [("English", "0"), ("Russian", "0"), ("all", "0")]
    (first, *_) = (tmp_path / "heard.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(first)["baseline"] == json.loads(first)["hypothesis"]
    assert json.loads(first)["normalized_baseline"] == "it was very quiet in madrid"
    evaluation = json.loads(run("evaluate", "--data", DATA, "--limit", "1", "--format", "json", *options[:2]).stdout)
    baseline = evaluation["baseline"]
    assert (baseline["model"], baseline["quantization"]) == ("qwen3-asr-tiny-int8", "int8")
    assert (baseline["overall"]["differing"], baseline["overall"]["rise"], baseline["overall"]["same"]) == (0, 0, 1)
    assert [row["language"] for row in baseline["languages"]] == ["English"]


def test_evaluate_forces_the_language_of_the_option(tmp_path: Path) -> None:
    """A wrong language changes the text, so the rates differ."""
    shutil.copy(DATA / "en-1.wav", tmp_path / "a.wav")
    (tmp_path / "a.txt").write_text("It was very quiet in Madrid.", encoding="utf-8")
    command: list[str | Path] = ["evaluate", "--data", tmp_path, "--language", "ru", "--format", "json"]
    (detected,) = json.loads(run(*command).stdout)["scores"]
    (forced,) = json.loads(run(*command, "--force-language").stdout)["scores"]
    assert detected["language"] == forced["language"] == "Russian"
    assert detected["rate"] == 0
    assert forced["rate"] > 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "absent"], "error: absent: no such folder"),
        (["--data", "en-1.wav"], "error: en-1.wav: is a file, not a folder"),
        (["--data", ".", "--language", "englsh"], "unknown language 'englsh'"),
        (["--data", ".", "--limit", "0"], "limit must be at least 1"),
        (["--data", ".", "--threads", "0"], "threads must be at least 1"),
        (["--data", ".", "--model", "/nowhere"], "/nowhere: no such model folder"),
        (["--data", ".", "--baseline", "/nowhere"], "/nowhere: no such model folder"),
        (["--data", ".", "--hypotheses", "absent/heard.jsonl"], "absent/heard.jsonl: cannot be written"),
        (["--data", ".", "--hypotheses", "."], "cannot be written"),
    ],
)
def test_bad_input_to_evaluate_is_one_sentence(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(DATA)
    result = run("evaluate", *arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert message in result.stderr


def test_evaluate_reports_unreadable_audio_and_a_missing_language(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"no audio")
    (tmp_path / "a.txt").write_text("Hello", encoding="utf-8")
    result = run("evaluate", "--data", tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {tmp_path / 'a.wav'}: is not audio")
    result = run("evaluate", "--data", tmp_path, "--force-language")
    assert result.stderr.startswith(f"error: {tmp_path / 'a.wav'}: has no language")
    assert "--language" in result.stderr
    result = run("evaluate", "--data", tmp_path, "--force-language", "--language", "Thai")
    assert "this model does not know Thai; this model knows" in result.stderr


@pytest.mark.parametrize("package", ["jiwer", "whisper-normalizer"])
def test_evaluate_without_its_packages(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, {"jiwer": "jiwer"}.get(package, "whisper_normalizer.english"), None)
    result = run("evaluate", "--data", DATA)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: evaluating needs the package '{package}', which is not installed: pip install 'asr-deploy[evaluate]'\n"
    )


def test_evaluate_reports_failures_during_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full at the end, a text that may be incomplete, an interrupt."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    command: list[str | Path] = ["evaluate", "--data", DATA, "--limit", "1"]
    with monkeypatch.context() as patched:
        patched.setattr("runtime.cli.common.write_atomically", full)
        result = run(*command, "--hypotheses", tmp_path / "heard.jsonl")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "heard.jsonl: cannot be written (No space left on device)" in result.stderr
    transcribe = Transcriber.transcribe_many
    with monkeypatch.context() as patched:
        patched.setattr(Transcriber, "transcribe_many", functools.partialmethod(transcribe, max_new_tokens=6))
        result = run(*command)
    assert result.exit_code == 0
    assert result.stderr.startswith(f"warning: {DATA / 'en-1.wav'}: 0.0-")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Transcriber, "transcribe_many", interrupted)
    result = run(*command)
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "error: interrupted\n")
