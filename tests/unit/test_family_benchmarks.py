"""The benchmark of all families: child processes, figures made of their answers, and tables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import soundfile

from benchmarks import (
    families,
    families_report,
    family_accuracy,
    family_child,
    peer_child,
    peer_graphs,
    peers,
)
from benchmarks.children import Child, ChildError, first_answer
from quantize.graph import Editor
from runtime.evaluation import Utterance
from runtime.results import Segment, Timings, TokenCounts, Transcript, Word
from tests.conftest import DATA, REPOSITORY
from tests.helpers.benchmark_results import families as invented

ECHO = """
import json, sys
job = json.loads(sys.stdin.readline())
print(json.dumps({"ready": job["name"]}), flush=True)
for number, _ in enumerate(sys.stdin):
    if number == job["runs"]:
        sys.exit("no more runs")
    print(json.dumps({"run": number}), flush=True)
"""


def echo(runs: int) -> tuple[list[str | Path], dict[str, Any]]:
    return [sys.executable, "-c", ECHO], {"name": "a model", "runs": runs}


def test_a_process_answers_its_job_and_then_every_line() -> None:
    with Child(*echo(2)) as child:
        assert child.answer() == {"ready": "a model"}
        assert [child.ask(), child.ask()] == [{"run": 0}, {"run": 1}]


def test_a_process_that_ends_raises_its_reason() -> None:
    with Child(*echo(0)) as child:
        child.answer()
        with pytest.raises(ChildError, match="no more runs"):
            child.ask()


def test_a_start_is_timed_until_the_first_answer() -> None:
    seconds, answer = first_answer(*echo(0))
    assert answer == {"ready": "a model"}
    assert seconds > 0


def run_of(total: float, decode: float, resident: int) -> dict[str, Any]:
    stages = {"segment": 0.1, "features": 0.0, "encode": 0.5, "prefill": 0.2, "decode": decode}
    return {"total": total, "stages": stages, "tokens": 180, "resident_bytes": resident, "texts": ["a"]}


def test_a_summary_has_medians_and_the_largest_memory() -> None:
    results = families.summary([run_of(3.0, 1.0, 5), run_of(1.0, 3.0, 9), run_of(2.0, 2.0, 7)], [0.5, 0.7, 0.6])
    assert results["total"] == 2.0
    assert results["totals"] == [1.0, 2.0, 3.0]
    assert results["stages"]["decode"] == 2.0
    assert results["resident_bytes"] == 9
    assert results["cold_start"] == 0.6


def test_peers_have_no_stages() -> None:
    run = {"total": 1.0, "tokens": 3, "resident_bytes": 1, "texts": ["a"]}
    assert "stages" not in families.summary([run], [1.0])


def test_tokens_are_shared_by_segments_and_rounded_up() -> None:
    assert family_child.budget(180, 1) == 180
    assert family_child.budget(180, 4) == 45
    assert family_child.budget(180, 7) == 26
    assert family_child.budget(8, 0) == 8


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (["a b", "cd"], ["ab", "c d"], 1.0),
        (["abcd"], ["abxd"], 0.75),
        (["a"], ["many more than there were"], 0.0),
        ([""], [""], 1.0),
        ([""], ["a"], 0.0),
    ],
)
def test_agreement_is_counted_in_characters(ours: list[str], theirs: list[str], expected: float) -> None:
    assert families.agreement(ours, theirs) == expected


def test_peers_get_the_segments_of_the_runtime(tmp_path: Path) -> None:
    clip = DATA / "en-3.wav"
    whole, rate = soundfile.read(clip, dtype="float32")
    pieces = [np.load(path) for path in families.cut(tmp_path, clip, 4.0)]
    assert len(pieces) > 1
    assert all(0 < len(piece) <= 4 * rate for piece in pieces)
    assert sum(map(len, pieces)) <= len(whole)


def test_only_models_without_results_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "prepare", lambda work, model: {"float32": work / model.name})
    calls = []

    def measured(work: Path, model: families.Model, artifacts: dict[str, Path]) -> dict[str, Any]:
        calls.append((model.name, artifacts))
        return {"systems": {}}

    monkeypatch.setattr(families, "measure_model", measured)
    (tmp_path / "families").mkdir()
    (tmp_path / "families" / "gigaam-v3-ctc.json").write_text('{"systems": {"stored": {}}}')
    names = ["gigaam-v3-ctc", "parakeet-tdt-0.6b-v3"]
    results = families.measure(tmp_path, names)
    assert calls == [("parakeet-tdt-0.6b-v3", {"float32": tmp_path / "parakeet-tdt-0.6b-v3"})]
    assert results["models"]["gigaam-v3-ctc"] == {"systems": {"stored": {}}}
    assert families.measure(tmp_path, names) == results
    assert len(calls) == 1


OURS = """
import json, sys
job = json.loads(sys.stdin.readline())
stages = dict.fromkeys(("segment", "features", "encode", "prefill", "decode"), 0.1)
if job["ask"] == "cold":
    print(json.dumps({"texts": ["short"]}), flush=True)
else:
    print(json.dumps({"segment_seconds": 4.0, "segments": 3}), flush=True)
    for _ in sys.stdin:
        run = {"total": 1.0, "stages": stages, "tokens": 9, "texts": ["a text"], "resident_bytes": 5}
        print(json.dumps(run), flush=True)
"""
PEER = """
import json, sys
job = json.loads(sys.stdin.readline())
if job["package"] == "sherpa-onnx":
    sys.exit("cannot read this graph")
if job["ask"] == "cold":
    print(json.dumps({"texts": ["short"]}), flush=True)
elif job["ask"] == "way":
    print(json.dumps({"way": "together"}), flush=True)
else:
    print(json.dumps({"ready": len(job["clips"])}), flush=True)
    for _ in sys.stdin:
        run = {"total": 2.0, "tokens": 8, "texts": ["a", "tent"], "resident_bytes": 6}
        print(json.dumps(run | {"way": job["way"]}), flush=True)
"""


def test_systems_take_turns_and_a_failing_peer_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model" / "float32"
    monkeypatch.setattr(families, "module", lambda name: [sys.executable, "-c", OURS])
    monkeypatch.setattr(peers, "command", lambda: [sys.executable, "-c", PEER])
    monkeypatch.setattr(peers.Peer, "folder", lambda peer, artifact: artifact)
    monkeypatch.setattr(families, "recording", lambda work, seconds: DATA / "en-3.wav")
    monkeypatch.setattr(families, "open_artifact", lambda path: type("Artifact", (), {"size": 7}))
    model = families.MODELS["gigaam-v3-ctc"]
    results = families.measure_model(tmp_path, model, {"float32": folder}, rounds=2, cold_starts=1)
    assert set(results["systems"]) == {"float32", "onnx-asr, float32"}
    ours, peer = results["systems"].values()
    assert (ours["total"], ours["bytes"], ours["tokens"]) == (1.0, 7, 9)
    assert len(peer["totals"]) == 2
    assert peer["way"] == "together"
    assert peer["agreement"] == pytest.approx(0.8)
    assert results["failures"] == {"sherpa-onnx, float32": "cannot read this graph"}


def test_every_model_has_peers_or_a_reason_against_them() -> None:
    for model in families.MODELS.values():
        present = {peer.package for peer in peers.PEERS.get(model.family, ())}
        excluded = {package for family, package in peers.REASONS if family == model.family}
        assert present | excluded == {"onnx-asr", "sherpa-onnx"}
        assert not present & excluded


def test_a_peer_runs_one_by_one_or_together() -> None:
    calls = []

    def recognize(clips: Any) -> tuple[list[str], int]:
        calls.append(list(clips))
        return [f"text {clip}" for clip in clips], len(clips)

    assert peer_child.one_by_one(recognize, [1, 2]) == (["text 1", "text 2"], 2)
    assert calls == [[1], [2]]
    assert peer_child.together(recognize, [1, 2]) == (["text 1", "text 2"], 2)
    assert calls[2:] == [[1, 2]]
    assert peer_child.faster_way(recognize, [1, 2]) in peer_child.WAYS


def test_requirements_pin_the_packages() -> None:
    lines = [line for line in peers.REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#")]
    names = {"ctranslate2", "faster-whisper", "onnx-asr", "onnxruntime", "pywhispercpp", "sherpa-onnx"}
    assert {line.split("==")[0] for line in lines} == names
    runtime = next(line for line in lines if line.startswith("onnxruntime"))
    assert runtime in (REPOSITORY / "constraints.txt").read_text().splitlines()  # the same kernels as ours


def test_weights_are_linked(tmp_path: Path) -> None:
    source = tmp_path / "weights"
    source.write_bytes(b"1234")
    peer_graphs.link(source, tmp_path / "same")
    peer_graphs.link(source, tmp_path / "same")
    assert (tmp_path / "same").stat().st_ino == source.stat().st_ino


def test_outputs_are_dropped() -> None:
    graph = ir.Graph([], [], nodes=[], name="graph", opset_imports={"": 20})
    edit = Editor(graph, "test")
    outputs = [edit.node("Identity", [edit.constant(name, np.zeros(1, np.float32))]) for name in ("a", "b")]
    for value, name in zip(outputs, ("features", "lengths"), strict=True):
        value.name = name
    graph.outputs.extend(outputs)
    peer_graphs.drop_outputs(graph, {"lengths"})
    assert [value.name for value in graph.outputs] == ["features"]


def transcript(*segments: Segment) -> Transcript:
    text = " ".join(segment.text for segment in segments)
    return Transcript(text, "English", 4.0, list(segments), Timings(), TokenCounts(1, 0, 1), "model", "cpu", {})


def segment(start: float, text: str, tokens: list[int], words: list[Word] | None = None) -> Segment:
    return Segment(start, start + 1, text, "English", 1.0, "stop", tokens, words=words)


def test_segment_times_count_for_their_first_words() -> None:
    """A segment has one start, compared with its first word; word times are compared word by word."""
    marks = [(0.4, "one"), (0.9, "two"), (2.0, "three")]
    speech = family_accuracy.Speech([Utterance(Path("a.wav"), "one two three", "English")], [marks], {})
    parts = transcript(segment(0.5, "One two.", [1]), segment(2.2, "Three.", [2]))
    results = family_accuracy.starts([parts], speech)
    assert results["matched"] == 2
    assert results["mean"] == pytest.approx(0.15)
    words = [Word("one", 0.4, 0.8, 1.0), Word("two", 1.0, 1.5, 1.0)]
    results = family_accuracy.starts([transcript(segment(0.0, "one two", [1], words))], speech)
    assert results["matched"] == 2
    assert results["mean"] == pytest.approx(0.05)


def test_a_language_without_spaces_has_no_word_times() -> None:
    speech = family_accuracy.Speech([Utterance(Path("a.wav"), "你好", "Chinese")], [[(0.1, "你好")]], {})
    assert family_accuracy.starts([transcript(segment(0.0, "你好", [1]))], speech)["spoken"] == 0


def test_identical_transcripts_have_the_same_tokens() -> None:
    first, other = transcript(segment(0.0, "a", [1])), transcript(segment(0.0, "a", [2]))
    assert family_accuracy.identical([first, first], [first, other]) == 0.5


def test_texts_are_compared_without_case_and_punctuation() -> None:
    utterances = [Utterance(Path("a.wav"), "", "Russian")] * 2
    assert family_accuracy.same_texts(utterances, ["Да, нет.", "раз"], ["да нет", "два"]) == 0.5


def test_joined_recordings_have_silence_between_clips_only() -> None:
    joined = family_accuracy.join([np.ones(10, np.float32), np.ones(5, np.float32)])
    silence = round(family_accuracy.BETWEEN_SECONDS * family_accuracy.RATE)
    assert len(joined) == 15 + silence
    assert not joined[10 : 10 + silence].any()


def test_a_held_out_set_can_be_limited_to_languages() -> None:
    utterances = [Utterance(Path(f"{name}.wav"), name, name) for name in ("English", "Russian")]
    speech = family_accuracy.Speech(utterances, [[(0.0, "a")], [(1.0, "b")]], {each.text: each for each in utterances})
    part = speech.of(["Russian", "Estonian"])
    assert part.utterances == utterances[1:]
    assert part.marks == [[(1.0, "b")]]
    assert list(part.long) == ["Russian"]


STAMP: dict[str, Any] = {"date": "2026-11-21", "machine": "2 cores", "versions": {"python": "3.11"}}


@pytest.mark.parametrize(
    ("part", "lines"),
    [
        (
            "families",
            [
                "| gigaam-v3-ctc, int8 | 100 MB | 3.00 s | 0.050 |  | 0.50 s | 0.20 s | 1.00 s | 180 | 1.00 GB "
                "| 1.50 s |  |",
                "| gigaam-v3-ctc, onnx-asr, float32 |  | 9.00 s | 0.150 |  |  |  |  | 179 | 2.00 GB | 2.50 s | 50 % |",
                "- gigaam-v3-ctc: int8 2.0 times as fast as float32; float32 1.5 times as fast as onnx-asr over the "
                "same graphs.",
                "- Qwen3-ASR: onnx-asr has no Qwen3-ASR.",
                "- gigaam-v3-ctc: sherpa-onnx, int8 failed: no",
            ],
        ),
        (
            "checkpoints",
            [
                "| gigaam-v3-tiny, int8 | 100 | 10.0 MB |  | 1.23 % |  | 99.0 % | encoder 0.0100 |",
                "| gigaam-v3-tiny, int8 | words | 9 of 10 | 30 ms | 20 ms | -10 ms | 90.0 % |",
                "| gigaam-v3-tiny, int8 | first words of segments | 9 | 200 ms | 20 ms | -10 ms | 90.0 % |",
                "| gigaam-v3-tiny, int8 | at pauses |  | 2.00 % |  |",
                "| gigaam-v3-tiny, int8 | at pauses, 8 s at most |  | 1.00 % |  |",
                "| gigaam-v3-tiny, int8 | by the model, window by window |  | 50.00 % |  |",
                "| gigaam-v3-tiny, onnx-asr |  | 1.25 % |  | 98.0 % |",
                "| gigaam-v3-tiny, sherpa-onnx | failed: no such file |  |  |  |",
            ],
        ),
    ],
)
def test_tables_of_all_families(part: str, lines: list[str]) -> None:
    blocks = families_report.TABLES[part](STAMP | {"results": invented()[part]})
    assert set(lines) <= set("\n".join(blocks).splitlines())


def test_tables_of_the_readme() -> None:
    results = invented()
    table, stamp = families_report.summary(STAMP | {"results": results["checkpoints"]}).split("\n\n")
    assert table.splitlines()[3] == "| gigaam-v3-tiny, int8 | 10.0 MB |  | 1.23 % |  | 30 ms off |"
    assert stamp.startswith("Measured on 2026-11-21, 2 cores")
    for row in results["checkpoints"]["gigaam-v3-tiny"]["recipes"].values():
        del row["words"]
    assert "| 200 ms off |" in families_report.summary(STAMP | {"results": results["checkpoints"]})  # of segments
    lines = families_report.speed_summary(STAMP | {"results": results["families"]}).splitlines()
    assert lines[0] == "| | float32 | int8 | onnx-asr, float32 |"
    assert "| gigaam-v3-ctc | 6.00 s | 3.00 s | 9.00 s |" in lines
