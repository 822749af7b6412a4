"""The comparison on real recordings: turns, stored results, figures, the child process and the command."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from transformers import WhisperForConditionalGeneration
from typer.testing import CliRunner

from benchmarks import peers, report
from benchmarks.children import Child, ChildError, module
from benchmarks.real import __main__ as command
from benchmarks.real import child, figures, run, systems, turns
from benchmarks.real.systems import BASELINE, REFERENCE, ReportError, System
from benchmarks.real.turns import Recording, Result, Store
from runtime.evaluation import Utterance
from tests.conftest import DATA, REPOSITORY
from tests.helpers import whisper_checkpoint
from tests.helpers.whisper_layouts import write_ctranslate2
from tests.unit.test_real_ggml import GgmlFile

MODEL = REPOSITORY / "artifacts" / "qwen3-asr-tiny-int8"
SETTINGS = {"checkpoint": "a", "recordings": "b"}


def system(name: str, own: str = BASELINE, **changed: Any) -> System:
    return System(name, own, {"versions": [], "package": "none"}, 100, **changed)


def recording(name: str, text: str = "", language: str = "English", code: str = "en") -> Recording:
    return Recording(Utterance(Path(name), text, language), Path(f"{name}.npy"), code, 2.0)


def store_of(path: Path, *results: Result) -> Store:
    store = Store(path, SETTINGS)
    for result in results:
        store.add(result)
    return store


RESULT = Result("text", BASELINE, "a.opus", 0.5, 100, "Привет.")


def test_results_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    store_of(path, RESULT).add_versions({"onnxruntime": "1.31.1"})
    again = Store(path, SETTINGS)
    assert again.results == {("text", BASELINE, "a.opus"): RESULT}
    assert again.versions == {"onnxruntime": "1.31.1"}


def test_a_line_that_an_interrupt_cut_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    store_of(path, RESULT)
    whole = path.read_bytes()
    path.write_bytes(whole + '{"task": "text", "system": "п'.encode()[:-1])
    assert list(Store(path, SETTINGS).results) == [RESULT.key]
    assert path.read_bytes() == whole
    path.write_bytes(b'{"checkpoi')  # not even the settings
    assert Store(path, SETTINGS).results == {}
    assert json.loads(path.read_text()) == SETTINGS


def test_results_with_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    store_of(path, RESULT)
    before = path.read_bytes()
    with pytest.raises(ReportError, match="results with other recordings; remove it"):
        Store(path, SETTINGS | {"recordings": "c"})
    path.write_bytes(before + b'{"task": "text"}\n')
    with pytest.raises(ReportError, match="line 3: is not a result"):
        Store(path, SETTINGS)


def test_settings_change_with_systems_recordings_and_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = turns.describe([system("a")], [recording("a.opus", "one")], "digest")
    assert first == turns.describe([system("a")], [recording("a.opus", "one")], "digest")
    other = turns.describe([system("b")], [recording("a.opus", "two")], "other")
    monkeypatch.setattr(peers, "REQUIREMENTS", tmp_path / "peers.txt")
    (tmp_path / "peers.txt").write_text("a==1")
    assert turns.describe([system("a")], [recording("a.opus", "one")], "digest")["packages"] != first["packages"]
    assert {key for key in first if first[key] != other[key]} == {"checkpoint", "recordings", "systems"}


def test_systems_take_turns_in_a_shuffled_order() -> None:
    names = [f"system {index}" for index in range(6)]
    all_systems = [system(name, detects=name != "system 3") for name in names]
    recordings = [recording(f"{index}.opus") for index in range(8)]
    order = [(task, each.name, clip.name) for task, each, clip in turns.turns(all_systems, recordings)]
    assert order == [(task, each.name, clip.name) for task, each, clip in turns.turns(all_systems, recordings)]
    assert len(set(order)) == len(order) == 8 * 6 + 8 * 5
    assert [task for task, *_ in order] == ["text"] * 48 + ["language"] * 40
    assert ("language", "system 3", "0.opus") not in order
    assert [clip for *_, clip in order[:48]] == [each.name for each in recordings for _ in names]
    followers = Counter((order[index][1], order[index + 1][1]) for index in range(47))
    assert max(followers.values()) < 8  # no system always runs after the same one


ECHO = """
import json, sys
job = json.loads(sys.stdin.readline())
print(json.dumps({"ready": True, "versions": {"echo": "1.0"}}), flush=True)
for line in sys.stdin:
    turn = json.loads(line)
    if job["model"] in turn["clip"]:
        sys.exit("cannot read this clip")
    found = {"text": "said in " + turn["language"]} if turn["language"] else {"language": "ru"}
    print(json.dumps(found | {"seconds": 0.5, "peak_bytes": 7}), flush=True)
"""


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(System, "command", property(lambda _: [sys.executable, "-c", ECHO]))


@pytest.mark.usefixtures("echo")
def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    recordings = [recording(name) for name in ("a.opus", "b.opus")]
    breaking = System(BASELINE, BASELINE, {"model": "b.opus"}, 1)
    with pytest.raises(ChildError, match="cannot read this clip"):
        turns.run([breaking], recordings, Store(path, SETTINGS))
    assert set(Store(path, SETTINGS).results) == {("text", BASELINE, "a.opus")}
    changed = path.read_text().replace("said in en", "said before")
    path.write_text(changed)
    whole = System(BASELINE, BASELINE, {"model": "nothing"}, 1)
    turns.run([whole], recordings, Store(path, SETTINGS))
    results = Store(path, SETTINGS).results
    assert {key: result.text or result.language for key, result in results.items()} == {
        ("text", BASELINE, "a.opus"): "said before",  # not asked again
        ("text", BASELINE, "b.opus"): "said in en",
        ("language", BASELINE, "a.opus"): "ru",
        ("language", BASELINE, "b.opus"): "ru",
    }
    assert Store(path, SETTINGS).versions == {"echo": "1.0"}


def test_a_finished_run_starts_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(System, "command", property(lambda _: ["/no/such/program"]))
    store = store_of(tmp_path / "results.jsonl", RESULT)
    turns.run([system(BASELINE, detects=False)], [recording("a.opus")], store)
    assert len(store.results) == 1


def write_set(folder: Path, rows: list[dict[str, str]]) -> Path:
    folder.mkdir()
    for row in rows:
        soundfile.write(folder / row["file"], np.zeros(8000, np.float32), 16_000)
    (folder / "index.json").write_text(json.dumps(rows))
    return folder


def test_recordings_are_decoded_and_can_be_limited(tmp_path: Path) -> None:
    rows = [{"file": f"{code}-{index}.wav", "language": code, "text": "a"} for code in ("ru", "en") for index in (1, 2)]
    folder = write_set(tmp_path / "set", rows)
    found = turns.load_recordings([folder], tmp_path / "clips")
    assert [(each.name, each.code, each.seconds) for each in found] == [
        ("en-1.wav", "en", 0.5), ("en-2.wav", "en", 0.5), ("ru-1.wav", "ru", 0.5), ("ru-2.wav", "ru", 0.5),
    ]  # fmt: skip
    assert np.load(found[0].clip).dtype == np.float32
    assert [each.name for each in turns.load_recordings([folder], tmp_path / "clips", 1)] == ["en-1.wav", "ru-1.wav"]
    with pytest.raises(ReportError, match=r"en-1\.wav: another recording has the same name"):
        turns.load_recordings([folder, write_set(tmp_path / "other", rows[2:])], tmp_path / "clips")
    with pytest.raises(ReportError, match="has no language"):
        turns.load_recordings([write_set(tmp_path / "none", [{"file": "x.wav", "text": "a"}])], tmp_path / "clips")


def test_figures_are_those_of_the_texts() -> None:
    recordings = [
        recording("a.opus", "please enter your password"),
        recording("b.opus", "goodbye and thank you"),
        recording("c.opus", "раз два", "Russian", "ru"),
    ]
    int8 = "asr-deploy, int8"
    texts = {
        BASELINE: ("Please enter your password.", "goodbye and thank", "раз два"),
        int8: ("please enter your passport", "goodbye and thank", "раз, два"),
        REFERENCE: ("please enter your password", "goodbye and thank you", "раз два"),
    }
    languages = {BASELINE: ("en", "en", "ru"), int8: ("en", "fr", "ru"), REFERENCE: (None, "en", "en")}
    seconds = {BASELINE: (1.0, 2.0, 4.0), int8: (0.5, 0.5, 4.0), REFERENCE: (2.0, 4.0, 4.0)}
    results = [
        result
        for name in texts
        for each, text, language, time in zip(recordings, texts[name], languages[name], seconds[name], strict=True)
        for result in (
            Result("text", name, each.name, time, 100 + int(time), text=text),
            Result("language", name, each.name, 9.0, 50, language=language),
        )
    ]
    rows = figures.figures(
        [system(BASELINE), system(int8), system(REFERENCE, REFERENCE)],
        recordings,
        {result.key: result for result in results},
    )
    assert list(rows[int8]["languages"]) == ["English", "Russian", "all"]
    ours, quantized = rows[BASELINE]["languages"]["all"], rows[int8]["languages"]["all"]
    assert ours["rate"] == pytest.approx(0.1)
    assert (ours["rise"], ours["rise_interval"], ours["differ"], ours["same"]) == (0, [0, 0], 0, 1)
    assert ours["reference"] == pytest.approx(0.1)
    assert (quantized["rate"], quantized["rise"]) == (pytest.approx(0.2), pytest.approx(0.1))
    assert quantized["interval"][0] <= 0.2 <= quantized["interval"][1]
    assert quantized["rise_interval"][0] >= 0
    assert quantized["differ"] == pytest.approx(1 / 9)
    assert quantized["same"] == pytest.approx(2 / 3)
    assert (quantized["seconds"], quantized["ratio"]) == (5.0, 0.5)
    assert quantized["detected"] == pytest.approx(2 / 3)
    assert rows[int8]["languages"]["Russian"]["rate"] == 0
    assert rows[REFERENCE]["languages"]["all"]["ratio"] == 2
    assert rows[REFERENCE]["languages"]["English"]["detected"] == 0.5
    assert (rows[int8]["bytes"], rows[int8]["peak_bytes"]) == (100, 104)


def test_a_system_without_language_detection_has_no_share() -> None:
    results = {RESULT.key: RESULT}
    rows = figures.figures([system(BASELINE, detects=False)], [recording("a.opus", "привет", "Russian", "ru")], results)
    row = rows[BASELINE]["languages"]["all"]
    assert row["detected"] is None
    assert row["reference"] is None  # transformers does not take part


def test_recordings_are_counted_by_language() -> None:
    rows = figures.data_figures([recording("a", "Thank you."), recording("b", "раз", "Russian", "ru")])
    assert list(rows) == ["English", "Russian", "all"]
    assert rows["English"] == {"recordings": 1, "words": 2, "seconds": 2.0}
    assert rows["all"] == {"recordings": 2, "words": 3, "seconds": 4.0}


def test_a_child_process_runs_the_runtime(tmp_path: Path) -> None:
    """Through the real process: what it prints otherwise, such as warnings, does not break its answers."""
    samples, _ = soundfile.read(DATA / "en-1.wav", dtype="float32")
    clip = tmp_path / "clip.npy"
    np.save(clip, samples)
    job = {"package": "asr-deploy", "model": str(MODEL), "threads": 1, "versions": ["numpy"], "options": {"vad": True}}
    turn = {"clip": str(clip), "language": "en"}
    with Child(module("benchmarks.real.child"), job | {"warm_up": turn}) as process:
        assert process.answer() == {"ready": True, "versions": {"numpy": np.__version__}}
        answer = process.ask(turn)
        assert answer["text"] == "It was very quiet in Madrid."
        assert answer["seconds"] > 0
        assert answer["peak_bytes"] > 50e6
        assert process.ask(turn | {"language": ""})["language"] == "en"


def test_a_child_runs_transformers_in_windows_of_30_seconds(tmp_path: Path) -> None:
    whisper_checkpoint.write(tmp_path / "checkpoint", positions=1500, layers=(1, 1))
    system = child.Transformers({"model": str(tmp_path / "checkpoint"), "threads": 1})
    samples = np.random.default_rng(0).normal(0, 0.1, 31 * child.RATE).astype(np.float32)
    assert system.language(samples) in whisper_checkpoint.LANGUAGES
    first, second = system.text(samples[: 30 * child.RATE], "en"), system.text(samples[30 * child.RATE :], "en")
    assert first
    assert system.text(samples, "en") == f"{first} {second}".strip()


def test_long_recordings_are_cut_in_windows() -> None:
    samples = np.arange(70 * child.RATE)
    parts = list(child.windows(samples))
    assert [len(part) / child.RATE for part in parts] == [30, 30, 10]
    assert np.array_equal(np.concatenate(parts), samples)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    whisper_checkpoint.write(tmp_path / "checkpoint")
    return write_ctranslate2(tmp_path / "checkpoint", tmp_path / "ctranslate2")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No package is installed, and nothing is exported."""
    monkeypatch.setattr(peers, "make_environment", lambda: None)
    monkeypatch.setattr(systems, "exported", lambda name, folder, checkpoint: MODEL)
    monkeypatch.setattr(systems, "quantized", lambda parent, recipe: (MODEL, None))


@pytest.mark.usefixtures("offline")
def test_all_systems_have_the_weights_of_the_checkpoint(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.real.ggml.FILE_TYPES", {"f16": 1})  # rows of the small model are no blocks of q8_0
    found = {each.name: each for each in systems.prepare(tmp_path / "work", checkpoint, ("int8",), threads=3)}
    assert list(found) == [
        "asr-deploy, float32",
        "asr-deploy, float32, not cut",
        "asr-deploy, int8",
        "transformers, float32",
        "faster-whisper, float32",
        "faster-whisper, int8",
        "faster-whisper, float32, 5 beams",
        "whisper.cpp, f16",
    ]
    assert {each.job["threads"] for each in found.values()} == {3}
    assert {each.own for each in found.values()} <= set(found)
    assert {each.package for each in found.values() if each.peer} == {"faster-whisper", "whisper.cpp"}
    assert {each.job["package"] for each in found.values()} == set(child.LOADERS)
    given = WhisperForConditionalGeneration.from_pretrained(tmp_path / "checkpoint")
    written = WhisperForConditionalGeneration.from_pretrained(found[REFERENCE].job["model"])
    for (name, one), other in zip(given.named_parameters(), written.parameters(), strict=True):
        assert np.array_equal(one.detach(), other.detach()), name
    for key in ("suppress_tokens", "begin_suppress_tokens", "lang_to_id", "task_to_id", "decoder_start_token_id"):
        assert getattr(written.generation_config, key) == getattr(given.generation_config, key), key
    assert GgmlFile(Path(found["whisper.cpp, f16"].job["model"])).sizes["vocabulary"] == given.config.vocab_size
    with pytest.raises(ReportError, match="made from another checkpoint"):
        systems._mark(tmp_path / "work", "other")


@pytest.mark.usefixtures("offline")
def test_only_the_layout_that_faster_whisper_reads_is_taken(checkpoint: Path, tmp_path: Path) -> None:
    del checkpoint
    with pytest.raises(ReportError, match="not in the layout of CTranslate2"):
        systems.prepare(tmp_path / "work", tmp_path / "checkpoint", ())


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        systems._made(tmp_path / "file", fail)
    assert not (tmp_path / "file").exists()

    def write(path: Path) -> None:
        path.write_text("whole")

    assert systems._made(tmp_path / "file", write).read_text() == "whole"
    assert systems._made(tmp_path / "file", fail).read_text() == "whole"  # not written again


def test_a_missing_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(command.app, ["--checkpoint", str(tmp_path), "--work", str(tmp_path)])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert f"{tmp_path}: has no model.bin" in line
    assert "make real-model" in line
    result = CliRunner().invoke(command.app, ["--recipe", "int3"])
    assert result.exit_code == 2
    assert "int3" in result.stderr


def test_an_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "measure", interrupt)
    result = CliRunner().invoke(command.app, [])
    assert result.exit_code == 130
    assert "goes on" in result.stderr


def test_a_part_is_a_preview_and_all_is_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accuracy_results: dict[str, Any]
) -> None:
    monkeypatch.setattr(command, "measure", lambda *arguments: accuracy_results)
    result = CliRunner().invoke(command.app, ["--limit", "2", "--work", str(tmp_path)])
    assert result.exit_code == 0, result.output
    page = tmp_path / "real" / "preview" / "accuracy.md"
    assert result.stdout.strip() == str(page)
    assert "| asr-deploy, int8 | 80 MB |" in page.read_text()
    assert sorted(path.name for path in page.parent.iterdir()) == [
        "accuracy-time.svg", "accuracy.json", "accuracy.md", "accuracy.svg",
    ]  # fmt: skip
    asked: list[SimpleNamespace] = []
    monkeypatch.setattr(report, "store", lambda docs, part, results: asked.append(SimpleNamespace(docs=docs)))
    monkeypatch.setattr(report, "write_page", lambda docs, page: "")
    CliRunner().invoke(command.app, ["--work", str(tmp_path)])
    assert [each.docs for each in asked] == [REPOSITORY / "docs"]


@pytest.fixture
def accuracy_results() -> dict[str, Any]:
    from tests.helpers.benchmark_results import accuracy

    results: dict[str, Any] = accuracy()["real"]
    return results


def test_the_part_measures_with_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"file": "a.wav", "language": "en", "text": "said in"}, {"file": "b.wav", "language": "en", "text": "x"}]
    monkeypatch.setattr(run, "prepare", lambda *arguments: [System(BASELINE, BASELINE, {"model": "nothing"}, 5)])
    monkeypatch.setattr(System, "command", property(lambda _: [sys.executable, "-c", ECHO]))
    (tmp_path / "model.bin").write_bytes(b"weights")
    results = run.measure(tmp_path / "work", tmp_path, [write_set(tmp_path / "set", rows)], 1)
    assert (results["limit"], results["threads"], results["versions"]) == (1, 2, {"echo": "1.0"})
    assert results["recordings"]["all"]["recordings"] == 1
    row = results["systems"][BASELINE]["languages"]["all"]
    assert row["rate"] == 0.5  # "said in en" against "said in"
    assert row["detected"] == 0
    assert (tmp_path / "work" / "real" / "results-1.jsonl").exists()
