"""The bundled small Parakeet, from its checkpoint to text with word times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from export.__main__ import app
from runtime import Transcriber, open_artifact
from tests.conftest import DATA
from tests.tiny.evaluate import error_rate
from tests.tiny.parakeet.__main__ import NAME
from tests.tiny.parakeet.train import LANGUAGES

EVALUATION = DATA / "evaluation"


@pytest.mark.slow
def test_it_is_exported_and_understands_what_it_was_made_for(tmp_path: Path) -> None:
    out = tmp_path / NAME
    result = CliRunner().invoke(app, [NAME, "--out", str(out)])
    assert result.exit_code == 0, result.output
    transcriber = Transcriber.from_artifact(out)
    assert [language.code for language in transcriber.artifact.manifest.languages] == list(LANGUAGES)
    index = json.loads((EVALUATION / "index.json").read_text(encoding="utf-8"))
    for code, name in LANGUAGES.items():
        entries = [entry for entry in index if entry["language"] == name]
        transcripts = [transcriber.transcribe(EVALUATION / entry["file"]) for entry in entries]
        truth, found = [entry["text"] for entry in entries], [transcript.text for transcript in transcripts]
        assert len(entries) == 20
        assert error_rate(code, truth, found) < 0.08
        for transcript in transcripts:
            words = [word for segment in transcript.segments for word in segment.words or []]
            assert " ".join(word.text for word in words) == transcript.text
            starts = [word.start for word in words]
            assert starts == sorted(starts)
            assert all(0 <= word.start <= word.end <= transcript.duration + 0.1 for word in words)


@pytest.mark.slow
def test_four_bits_pass_the_gate_and_leave_the_transducer_alone(tmp_path: Path) -> None:
    """Errors of 4 bits in what is before and behind the layers would be half of the encoder's, and ten times the
    decoder's: 0.087 and 0.018 were measured.
    """
    result = CliRunner().invoke(app, [NAME, "--out", str(tmp_path / NAME), "--int4"])
    assert result.exit_code == 0, result.output
    (folder,) = tmp_path.iterdir()
    quantization = open_artifact(folder).manifest.quantization
    assert quantization is not None
    assert not quantization.gate.exceeded
    assert quantization.gate.utterances == 40
    assert quantization.gate.relative_error["encoder"] < 0.075
    assert quantization.gate.relative_error["decoder_joint"] < 0.005
