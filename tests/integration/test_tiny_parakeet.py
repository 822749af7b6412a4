"""The bundled small Parakeet: text, word times, 4-bit quantization, and the tokens of transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, ParakeetForTDT
from typer.testing import CliRunner

from quantize.__main__ import app
from quantize.audio_sets import evaluation_folder, filter_by_language
from runtime import Transcriber, open_artifact
from runtime.audio import load_audio
from runtime.engines.base import EngineOptions
from runtime.engines.frame import padded
from runtime.evaluation import load_utterances
from runtime.families import make_engine
from runtime.families.parakeet import ParakeetTdtEngine
from runtime.model.manifest import Language
from tests.conftest import DATA
from tools.tiny.evaluate import error_rate
from tools.tiny.parakeet.__main__ import CHECKPOINT, NAME
from tools.tiny.parakeet.train import LANGUAGES
from tools.tiny.through_runtime import exported

pytestmark = pytest.mark.slow

EVALUATION = DATA / "evaluation"
RATE = 16_000


@pytest.fixture(scope="module")
def artifact() -> Iterator[Path]:
    """Export the checkpoint in float32."""
    with exported(NAME, CHECKPOINT) as folder:
        yield folder


def test_error_rate_and_word_order(artifact: Path) -> None:
    transcriber = Transcriber.from_artifact(artifact)
    assert [language.code for language in transcriber.artifact.manifest.languages] == list(LANGUAGES)
    index = json.loads((EVALUATION / "index.json").read_text(encoding="utf-8"))
    for code, name in LANGUAGES.items():
        entries = [entry for entry in index if entry["language"] == name]
        transcripts = [transcriber.transcribe(EVALUATION / entry["file"]) for entry in entries]
        truth, texts = [entry["text"] for entry in entries], [transcript.text for transcript in transcripts]
        assert len(entries) == 20
        assert error_rate(code, truth, texts) < 0.08
        for transcript in transcripts:
            words = [word for segment in transcript.segments for word in segment.words or []]
            assert " ".join(word.text for word in words) == transcript.text
            starts = [word.start for word in words]
            assert starts == sorted(starts)
            assert all(0 <= word.start <= word.end <= transcript.duration + 0.1 for word in words)


def test_int4_passes_the_gate_and_keeps_the_transducer_in_8_bits(artifact: Path, tmp_path: Path) -> None:
    """With 4 bits also before and after the layers, relative errors of 0.087 (encoder) and 0.018 (decoder) were
    measured.
    """
    result = CliRunner().invoke(app, [str(artifact), "--recipe", "int4", "--out", str(tmp_path / "int4")])
    assert result.exit_code == 0, result.output
    quantization = open_artifact(tmp_path / "int4").manifest.quantization
    assert quantization is not None
    assert not quantization.gate.exceeded
    assert quantization.gate.utterances == 40
    assert quantization.gate.relative_error["encoder"] < 0.075
    assert quantization.gate.relative_error["decoder_joint"] < 0.005


@torch.no_grad()
def test_tokens_and_durations_equal_those_of_generate(artifact: Path) -> None:
    """With trained weights; test_parakeet.py compares random ones."""
    model = ParakeetForTDT.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    languages = [Language(name, code) for code, name in LANGUAGES.items()]
    utterances = filter_by_language(load_utterances(evaluation_folder()), languages)
    clips = [load_audio(each.audio, RATE) for each in utterances]
    engine = make_engine(open_artifact(artifact), EngineOptions())
    assert isinstance(engine, ParakeetTdtEngine)
    for clip in clips:
        output = model.generate(**processor([clip], sampling_rate=RATE), max_new_tokens=2000)
        steps = zip(output.sequences[0, 1:].tolist(), output.durations[0, 1:].tolist(), strict=True)
        encoded, lengths = engine.encode(*padded([engine.features(clip)]))
        ((_, hypothesis),) = engine.decode([encoded[0, : lengths[0]]], [None], lambda _: False)
        expected, frame = list[tuple[int, int, int]](), 0
        for token, duration in steps:
            if frame < lengths[0] and token != model.config.blank_token_id:
                expected.append((token, frame, frame + duration))
            frame += duration
        assert list(zip(hypothesis.tokens, hypothesis.starts, hypothesis.ends, strict=True)) == expected
        assert len(expected) > 3
