"""The bundled evaluation set, folders of recordings, and corpora."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import typer
from typer.testing import CliRunner

from quantize.errors import OutputError
from runtime import Transcriber
from tests.conftest import DATA
from tools.tiny import corpora, dataset, evaluate, samples
from tools.tiny.__main__ import app
from tools.tiny.corpora import PHASES, TRAIN_SEED, prepared
from tools.tiny.dataset import BLOCK, Item, block_seeds
from tools.tiny.evaluate import error_rate
from tools.tiny.ogg import with_serial
from tools.tiny.samples import write_evaluation, write_folder
from tools.tiny.sentences import LANGUAGES
from tools.tiny.synth import HELD_OUT_VOICES

EVALUATION = DATA / "evaluation"
KEYS = {"file", "language", "text", "context", "voice"}


def read(folder: Path) -> list[dict[str, Any]]:
    index: list[dict[str, Any]] = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    return index


def test_the_evaluation_set_has_the_documented_content() -> None:
    index = read(EVALUATION)
    assert {path.name for path in EVALUATION.iterdir()} == {"index.json", *(entry["file"] for entry in index)}
    assert sum(path.stat().st_size for path in EVALUATION.iterdir()) < 1.2e6
    assert all(entry.keys() == KEYS and entry["context"] == "" for entry in index)
    assert [entry["language"] for entry in index] == [name for name in LANGUAGES.values() for _ in range(20)]
    assert len({entry["text"] for entry in index}) == len(index)
    held_out = [e["voice"].split("+")[1] == HELD_OUT_VOICES[e["file"][:2]] for e in index]
    assert sum(held_out) == 20
    joined = [sum(entry["text"].count(mark) for mark in ".?!。？！") > 1 for entry in index]
    assert 10 <= sum(joined) <= 20
    for entry in index:
        about = soundfile.info(EVALUATION / entry["file"])
        assert (about.format, about.subtype, about.samplerate, about.channels) == ("OGG", "VORBIS", 16_000, 1)
        assert 0.5 < about.duration <= 8


def test_no_seed_is_shared_with_training() -> None:
    trained = {TRAIN_SEED}
    for phase in PHASES:
        trained |= {phase.seed, *block_seeds(phase.seed, -(-phase.utterances // BLOCK))}
    measured = [samples.SEED, samples.EVALUATION_SEED]
    for seed in (evaluate.MAIN_SEED, evaluate.CONTEXT_SEED):
        measured += block_seeds(seed, 1)
    assert len(set(measured)) == len(measured)
    assert not trained & set(measured)


def test_the_evaluation_set_is_reproducible(tmp_path: Path) -> None:
    """Files are equal in every byte, although libsndfile chooses random serial numbers."""
    for name in ("a", "b"):
        write_evaluation(tmp_path / name, each=1)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["en-01.ogg", "index.json", "ru-01.ogg", "zh-01.ogg"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert read(tmp_path / "a")[1]["voice"] == f"ru+{HELD_OUT_VOICES['ru']}"


def test_only_the_serial_number_changes(tmp_path: Path) -> None:
    """With libsndfile's number the bytes are unchanged, checksums included."""
    path = tmp_path / "noise.ogg"
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, 40_000)
    soundfile.write(path, noise, 16_000, format="OGG", subtype="VORBIS")
    stream = path.read_bytes()
    assert stream.count(b"OggS") > 2
    assert with_serial(stream, int.from_bytes(stream[14:18], "little")) == stream
    before = soundfile.read(path)[0]
    path.write_bytes(with_serial(stream, 7))
    np.testing.assert_array_equal(soundfile.read(path)[0], before)
    with pytest.raises(ValueError, match="no Ogg page at byte 0"):
        with_serial(b"RIFF", 7)


def test_a_folder_stores_clips_exactly(tmp_path: Path) -> None:
    """Also clips below the step of 16 bits, as in the held-out set."""
    rng = np.random.default_rng(3)
    clips = [rng.uniform(-level, level, 8_000).astype(np.float32) for level in (1.0, 1e-5)]
    items = [
        Item("ru", "Свет.", "Имена: Анна.", [], "ru+Annie", 0, 8_000, [], []),
        Item("zh", "你好。", "", [], "cmn-latn-pinyin+m1", 0, 8_000, [], []),
    ]
    out = tmp_path / "new" / "folder"
    write_folder(items, clips, out)
    index = read(out)
    assert [entry["file"] for entry in index] == ["ru-001.wav", "zh-002.wav"]
    assert index[0] == {
        "file": "ru-001.wav",
        "language": "Russian",
        "text": "Свет.",
        "context": "Имена: Анна.",
        "voice": "ru+Annie",
    }
    for entry, clip in zip(index, clips, strict=True):
        np.testing.assert_array_equal(soundfile.read(out / entry["file"], dtype="float32")[0], clip)
    with pytest.raises(OutputError, match="exists already"):
        write_folder(items, clips, out)


@pytest.mark.slow
def test_held_out_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "UTTERANCES", 3)
    monkeypatch.setattr(evaluate, "CONTEXT_UTTERANCES", 3)
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["held-out", "--out", str(out), "--work", str(tmp_path)])
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{out}\n"
    data = evaluate.held_out(tmp_path / "evaluation")
    assert [entry["text"] for entry in read(out)] == [item.text for item in data.items]
    np.testing.assert_array_equal(soundfile.read(out / "zh-003.wav", dtype="float32")[0], data.clips[2])
    again = CliRunner().invoke(app, ["held-out", "--out", str(out), "--work", str(tmp_path)])
    assert again.exit_code == 2
    assert "exists already" in again.stderr


@pytest.mark.slow
def test_the_small_model_understands_the_evaluation_set(transcriber: Transcriber) -> None:
    """Compression does not raise the error rate above that of the card, which is of uncompressed clips."""
    index = read(EVALUATION)
    texts = [transcriber.transcribe(EVALUATION / entry["file"]).text for entry in index]
    for code, name in LANGUAGES.items():
        rows = [row for row, entry in enumerate(index) if entry["language"] == name]
        assert error_rate(code, [index[row]["text"] for row in rows], [texts[row] for row in rows]) <= 0.03


def test_corpora_are_generated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generated: list[str] = []

    def generate(folder: Path, count: int, seed: int, *, joined: float) -> None:
        generated.append(folder.name)
        dataset.generate(folder, 1, seed, joined=joined, workers=1)

    monkeypatch.setattr(corpora, "generate", generate)
    assert [len(corpus.items) for corpus in prepared(tmp_path)] == [1, 1]
    prepared(tmp_path)
    assert generated == [phase.name for phase in PHASES]


@pytest.mark.parametrize(("failures", "code", "errors"), [([], 0, ""), (["it is bad"], 1, "missed: it is bad\n")])
def test_missed_targets_are_reported(
    failures: list[str], code: int, errors: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as caught:
        evaluate.report("a table", failures)
    assert caught.value.exit_code == code
    assert capsys.readouterr() == ("a table\n", errors)
