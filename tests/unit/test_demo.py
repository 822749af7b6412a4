"""The demo: its recordings are there, two a language, and errors and speed are counted over all of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from runtime import Transcriber
from runtime.evaluation import Utterance
from runtime.results import Timings, TokenCounts, Transcript
from tests.conftest import ARTIFACT
from tools import demo


def transcript(text: str, language: str, seconds: float, duration: float) -> Transcript:
    timings = Timings(total=seconds)
    return Transcript(text, language, duration, [], timings, TokenCounts(0, 0, 0), "model", "cpu", {})


def utterance(name: str, text: str, language: str) -> Utterance:
    return Utterance(Path(name), text, language)


def run(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(demo.main)
    return CliRunner().invoke(app, list(arguments))


def test_two_recordings_a_language_that_calibration_did_not_use() -> None:
    entries = {each["file"]: each for each in json.loads((demo.RECORDINGS / "index.json").read_text(encoding="utf-8"))}
    assert Counter(entries[name]["language"] for name in demo.CHOSEN) == dict.fromkeys(
        ("English", "French", "Italian", "Russian", "Spanish"), 2
    )
    assert {entries[name]["split"] for name in demo.CHOSEN} == {"evaluation"}
    assert [each.audio.name for each in demo.chosen_utterances()] == list(demo.CHOSEN)


def test_a_missing_recording_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    (tmp_path / "index.json").write_text('[{"file": "a.wav", "text": "a"}]', encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"has no en-conf-invalid\.opus, .*check out the whole repository"):
        demo.chosen_utterances(tmp_path)


def test_a_recording_is_described() -> None:
    lines = demo.describe(
        utterance("a.opus", "Your message is too short.", "English"),
        transcript("your message was short", "English", 0.5, 2),
    ).splitlines()
    assert lines == [
        "a.opus: English, 2.0 s in 0.50 s (real-time factor 0.25)",
        "  said   Your message is too short.",
        "  heard  your message was short",
        "  wrong  2 of 5 words (40%)",
    ]


def test_the_summary_pools_words_and_seconds() -> None:
    utterances = [utterance("a", "red green blue", "English"), utterance("b", "uno dos tres cuatro cinco", "Spanish")]
    transcripts = [transcript("red green", "English", 1, 2), transcript("uno dos tres cuatro cinco", "Italian", 2, 8)]
    assert demo.summarize(utterances, transcripts).splitlines() == [
        "word errors: 1 of 8 (12.5%), not counting case and punctuation",
        "language detected right: 1 of 2",
        "speed: 10 s of speech in 3.0 s (real-time factor 0.30)",
    ]


def test_a_broken_model_fails_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts in no language are far beyond the limit."""
    monkeypatch.setattr(Transcriber, "transcribe", lambda *_: transcript("zzz", "English", 1, 2))
    result = run(str(ARTIFACT))
    assert result.exit_code == 1
    assert "language detected right: 2 of 10" in result.stdout
    assert "25% of the words are wrong" in result.stderr


def test_a_missing_model_is_one_sentence(tmp_path: Path) -> None:
    result = run(str(tmp_path / "none"))
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {tmp_path / 'none'}: no such model folder")
