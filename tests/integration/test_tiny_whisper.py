"""The bundled small Whisper: text, timestamps, long form, the tokens of transformers, and the commands that compare."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration
from typer.testing import CliRunner

from benchmarks import fidelity, live_recordings, report
from benchmarks.bounds import BOUNDS
from quantize.audio_sets import evaluation_folder, filter_by_language
from runtime import Request, Transcriber
from runtime.audio import load_audio
from runtime.evaluation import load_utterances
from runtime.model.manifest import Language
from tests.conftest import DATA
from tools.tiny.evaluate import error_rate
from tools.tiny.sentences import LANGUAGES
from tools.tiny.through_runtime import exported, in_order
from tools.tiny.whisper.__main__ import CHECKPOINT, NAME
from tools.tiny.whisper.targets import STEP

pytestmark = pytest.mark.slow

RATE = 16_000
# Utterances of each language that are compared with transformers, one window each.
COMPARED = 4
# For the sample recordings, half of which have voices that are not in training.
MAX_ERROR_RATE = 0.1


@pytest.fixture(scope="module")
def transcriber() -> Iterator[Transcriber]:
    """Open the exported checkpoint without voice activity detection, so that the model gets all audio."""
    with exported(NAME, CHECKPOINT) as artifact:
        yield Transcriber.from_artifact(artifact, vad=False)


def errors(samples: list[dict[str, Any]], texts: list[str]) -> float:
    """Return the mean error rate over languages."""
    rates = []
    for code, name in LANGUAGES.items():
        rows = [row for row, sample in enumerate(samples) if sample["language"] == name]
        rates.append(error_rate(code, [samples[row]["text"] for row in rows], [texts[row] for row in rows]))
    return float(np.mean(rates))


def test_error_rate_with_and_without_timestamps(transcriber: Transcriber, samples: list[dict[str, Any]]) -> None:
    plain = [transcriber.transcribe(DATA / sample["file"]) for sample in samples]
    assert [transcript.language for transcript in plain] == [sample["language"] for sample in samples]
    assert errors(samples, [transcript.text for transcript in plain]) < MAX_ERROR_RATE
    timed = [transcriber.transcribe(DATA / sample["file"], timestamps=True) for sample in samples]
    assert errors(samples, [transcript.text for transcript in timed]) < MAX_ERROR_RATE
    pairs = list(zip(timed, samples, strict=True))
    begins = [transcript.segments[0].start - sample["words"][0]["start"] for transcript, sample in pairs]
    ends = [transcript.segments[-1].end - sample["words"][-1]["end"] for transcript, sample in pairs]
    assert np.median(np.abs(begins)) < 2 * STEP
    assert np.median(np.abs(ends)) < 3 * STEP
    assert max(map(abs, [*begins, *ends])) < 0.6


def test_long_form_transcribes_window_after_window(transcriber: Transcriber, samples: list[dict[str, Any]]) -> None:
    """The English samples, repeated with pauses, are longer than a window."""
    english = [sample for sample in samples if sample["language"] == "English"]
    pieces, texts, starts, at = list[np.ndarray](), list[str](), list[float](), 0.0
    while at < 45:
        sample = english[len(texts) % len(english)]
        audio = soundfile.read(DATA / sample["file"], dtype="float32")[0]
        starts.append(at + sample["words"][0]["start"])
        texts.append(sample["text"])
        pieces += [audio, np.zeros(RATE // 2, np.float32)]
        at += len(audio) / RATE + 0.5
    transcript = transcriber.transcribe(np.concatenate(pieces), sample_rate=RATE, long_form=True)
    assert transcript.language == "English"
    # Training had few full windows (docs/families.md); a lost or repeated window would be half of the text.
    assert error_rate("en", [" ".join(texts)], [transcript.text]) < 0.4
    assert transcript.text.count("Lunch is on Monday at 2:40.") == 2
    assert 40 < transcript.segments[-1].end <= transcript.duration
    segment_starts = np.array([segment.start for segment in transcript.segments])
    assert np.all(np.diff(segment_starts) >= 0)
    assert np.median([np.abs(segment_starts - start).min() for start in starts]) < 10 * STEP


@pytest.mark.parametrize("timestamps", [False, True], ids=["text", "timestamps"])
def test_tokens_equal_those_of_generate(transcriber: Transcriber, timestamps: bool) -> None:
    """With trained weights, which have no ties and end their texts."""
    model = WhisperForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    extract = WhisperFeatureExtractor.from_pretrained(CHECKPOINT)
    for code, name in LANGUAGES.items():
        utterances = filter_by_language(load_utterances(evaluation_folder()), [Language(name, code)])[:COMPARED]
        clips = [load_audio(utterance.audio, RATE) for utterance in utterances]
        requests = [Request(clip, sample_rate=RATE, language=code, timestamps=timestamps) for clip in clips]
        features = extract(clips, sampling_rate=RATE, return_tensors="pt")["input_features"]
        with torch.no_grad():
            output = model.generate(
                features,
                language=code,
                task="transcribe",
                return_timestamps=timestamps,
                do_sample=False,
                force_unique_generate_call=True,
            )
        first = model.generation_config.no_timestamps_token_id + 1
        stop = model.config.eos_token_id
        expected = [[token for token in row if token < stop] for row in output.tolist()]
        transcripts = in_order(transcriber, requests)
        written = [[token for segment in each.segments for token in segment.tokens] for each in transcripts]
        assert [[token for token in row if token < stop] for row in written] == expected
        assert all(len(tokens) > 3 for tokens in expected)
        if timestamps:
            times = [[(token - first) * STEP for token in row if token >= first] for row in output.tolist()]
            assert [
                [edge for segment in each.segments for edge in (segment.start, segment.end)] for each in transcripts
            ] == [pytest.approx(row) for row in times]


@pytest.fixture
def recordings(tmp_path: Path, samples: list[dict[str, Any]]) -> Path:
    """A folder with an index and four recordings: two English, a Russian and a Chinese one."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    chosen = [sample for sample in samples if sample["file"] in ("en-1.wav", "en-2.wav", "ru-1.wav", "zh-1.wav")]
    codes = {name: code for code, name in LANGUAGES.items()}
    for sample in chosen:
        shutil.copy(DATA / sample["file"], folder)
    entries = [{"file": each["file"], "language": codes[each["language"]], "text": each["text"]} for each in chosen]
    (folder / "index.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


def stored_part(docs: Path, name: str, part: str) -> dict[str, Any]:
    """Return the results of a page's part, which keep the page's bounds."""
    results: dict[str, Any] = json.loads((docs / f"{name}.json").read_text(encoding="utf-8"))[part]["results"]
    return results


def test_the_command_of_fidelity(transcriber: Transcriber, recordings: Path, tmp_path: Path) -> None:
    """All parts but OpenVINO's; a second run uses the stored results."""
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "fidelity.md").write_text(f"{report.BEGIN}\n\n{report.END}\n", encoding="utf-8")
    arguments = [str(CHECKPOINT), str(transcriber.artifact.path), "--recordings", str(recordings)]
    arguments += [
        "--films",
        str(recordings),
        "--int8",
        str(transcriber.artifact.path),
        "--work",
        str(tmp_path / "work"),
    ]
    arguments += ["--docs", str(docs)]
    for part in ("reference", "cpu", "unoptimized", "films", "rows"):
        arguments += ["--only", part]
    first = CliRunner().invoke(fidelity.app, arguments)
    assert first.exit_code == 0, first.output
    results = stored_part(docs, "fidelity", "fidelity")
    assert list(BOUNDS["fidelity"]({"fidelity": results})) == []
    assert set(results["systems"]) == {"cpu", "unoptimized"}
    assert all(way["identical"] == 4 for way in results["systems"]["cpu"]["ways"].values())
    assert 0 < results["systems"]["cpu"]["lead_change"] < 1e-3
    assert set(results["films"]) == {"en-1.wav", "en-2.wav", "ru-1.wav", "zh-1.wav"}
    assert set(results["rows"]) == {"float32", "int8"}
    page = (docs / "fidelity.md").read_text(encoding="utf-8")
    assert "ONNX Runtime's CPU kernels | 4 of 4" in page
    again = CliRunner().invoke(fidelity.app, arguments)
    assert (again.exit_code, again.stderr) == (0, "")
    assert stored_part(docs, "fidelity", "fidelity") == results


def test_streams_of_recordings_end_as_offline(transcriber: Transcriber, recordings: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "streaming.md").write_text(f"{report.BEGIN}\n\n{report.END}\n", encoding="utf-8")
    arguments = ["--artifact", f"small={transcriber.artifact.path}", "--recordings", str(recordings)]
    arguments += ["--streams", "1", "--threads", "1", "--work", str(tmp_path / "work"), "--docs", str(docs)]
    result = CliRunner().invoke(live_recordings.app, arguments)
    assert result.exit_code == 0, result.output
    rows = stored_part(docs, "streaming", "recordings")["rows"]
    assert list(rows) == ["small, 3 hypotheses", "small, 3 hypotheses, early", "small, 2 hypotheses, early"]
    usual = rows["small, 3 hypotheses"]
    assert (usual["equal"], usual["not_as_offline"], usual["taken_back"]) == (usual["segments"], 0, 0)
    assert usual["segments"] >= 1
    assert 0.8 < usual["median_seconds"] < 8  # a word is stable after the pause that ends its segment
    assert rows["small, 2 hypotheses, early"]["median_seconds"] <= usual["median_seconds"]
    assert "| small, 3 hypotheses |" in (docs / "streaming.md").read_text(encoding="utf-8")
    refused = CliRunner().invoke(live_recordings.app, ["--artifact", "x", "--recordings", str(recordings)])
    assert refused.exit_code == 2
    assert "give a name and a folder" in " ".join(refused.output.replace("│", "").split())
