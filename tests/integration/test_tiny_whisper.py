"""The bundled Whisper from its checkpoint to text: plain, with timestamps, in long form, with a context."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from quantize.audio_sets import evaluation_utterances
from runtime import Request, Transcriber
from runtime.audio import load_audio
from runtime.model.manifest import Language
from tests.conftest import DATA
from tools.tiny.evaluate import error_rate
from tools.tiny.sentences import LANGUAGES
from tools.tiny.through_runtime import exported, in_order
from tools.tiny.whisper.__main__ import CHECKPOINT, NAME
from tools.tiny.whisper.targets import STEP

pytestmark = pytest.mark.slow

RATE = 16_000
# Utterances of each language that the reference writes down, too: a window each.
COMPARED = 4
# Of the sample recordings, half of which are in voices that training never heard.
MOST_ERRORS = 0.1


@pytest.fixture(scope="module")
def transcriber() -> Iterator[Transcriber]:
    """Without voice activity: what is heard of a file is all of it."""
    with exported(NAME, CHECKPOINT) as artifact:
        yield Transcriber.from_artifact(artifact, vad=False)


def errors(samples: list[dict[str, Any]], texts: list[str]) -> float:
    """The mean over languages."""
    rates = []
    for code, name in LANGUAGES.items():
        rows = [row for row, sample in enumerate(samples) if sample["language"] == name]
        rates.append(error_rate(code, [samples[row]["text"] for row in rows], [texts[row] for row in rows]))
    return float(np.mean(rates))


def test_the_samples_are_understood_with_and_without_timestamps(
    transcriber: Transcriber, samples: list[dict[str, Any]]
) -> None:
    plain = [transcriber.transcribe(DATA / sample["file"]) for sample in samples]
    assert [found.language for found in plain] == [sample["language"] for sample in samples]
    assert errors(samples, [found.text for found in plain]) < MOST_ERRORS
    timed = [transcriber.transcribe(DATA / sample["file"], timestamps=True) for sample in samples]
    assert errors(samples, [found.text for found in timed]) < MOST_ERRORS
    pairs = list(zip(timed, samples, strict=True))
    begins = [found.segments[0].start - sample["words"][0]["start"] for found, sample in pairs]
    ends = [found.segments[-1].end - sample["words"][-1]["end"] for found, sample in pairs]
    assert np.median(np.abs(begins)) < 2 * STEP
    assert np.median(np.abs(ends)) < 3 * STEP
    assert max(map(abs, [*begins, *ends])) < 0.6


def test_long_audio_is_heard_window_after_window(transcriber: Transcriber, samples: list[dict[str, Any]]) -> None:
    """The English samples over and over, with pauses: more than a window holds; all of them, and where they are."""
    english = [sample for sample in samples if sample["language"] == "English"]
    pieces, texts, starts, at = list[np.ndarray](), list[str](), list[float](), 0.0
    while at < 45:
        sample = english[len(texts) % len(english)]
        audio = soundfile.read(DATA / sample["file"], dtype="float32")[0]
        starts.append(at + sample["words"][0]["start"])
        texts.append(sample["text"])
        pieces += [audio, np.zeros(RATE // 2, np.float32)]
        at += len(audio) / RATE + 0.5
    found = transcriber.transcribe(np.concatenate(pieces), sample_rate=RATE, long_form=True)
    assert found.language == "English"
    # It heard few full windows (docs/families.md); one that is lost, or written twice, would be half of the text.
    assert error_rate("en", [" ".join(texts)], [found.text]) < 0.4
    assert found.text.count("Lunch is on Monday at 2:40.") == 2
    assert 40 < found.segments[-1].end <= found.duration
    said = np.array([segment.start for segment in found.segments])
    assert np.all(np.diff(said) >= 0)
    assert np.median([np.abs(said - start).min() for start in starts]) < 10 * STEP


@pytest.mark.parametrize("timestamps", [False, True], ids=["text", "timestamps"])
def test_tokens_are_those_of_generate(transcriber: Transcriber, timestamps: bool) -> None:
    """Of text that means something: no tie of random weights, and an end that is heard."""
    model = WhisperForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    extract = WhisperFeatureExtractor.from_pretrained(CHECKPOINT)
    for code, name in LANGUAGES.items():
        utterances = evaluation_utterances(None, [Language(name, code)])[:COMPARED]
        clips = [load_audio(utterance.audio, RATE) for utterance in utterances]
        requests = [Request(clip, sample_rate=RATE, language=code, timestamps=timestamps) for clip in clips]
        features = extract(clips, sampling_rate=RATE, return_tensors="pt")["input_features"]
        with torch.no_grad():
            made = model.generate(
                features,
                language=code,
                task="transcribe",
                return_timestamps=timestamps,
                do_sample=False,
                force_unique_generate_call=True,
            )
        first = model.generation_config.no_timestamps_token_id + 1
        stop = model.config.eos_token_id
        expected = [[token for token in row if token < stop] for row in made.tolist()]
        found = in_order(transcriber, requests)
        written = [[token for segment in each.segments for token in segment.tokens] for each in found]
        assert [[token for token in row if token < stop] for row in written] == expected
        assert all(len(tokens) > 3 for tokens in expected)
        if timestamps:
            times = [[(token - first) * STEP for token in row if token >= first] for row in made.tolist()]
            assert [[edge for segment in each.segments for edge in (segment.start, segment.end)] for each in found] == [
                pytest.approx(row) for row in times
            ]
