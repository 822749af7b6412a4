"""The bundled Whisper from its checkpoint to text: plain, with timestamps, in long form, with a context."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import soundfile

from export.checkpoints import CHECKPOINTS
from runtime import Transcriber
from tests.conftest import DATA
from tests.tiny.evaluate import error_rate
from tests.tiny.sentences import LANGUAGES
from tests.tiny.whisper.evaluate import export
from tests.tiny.whisper.targets import STEP

pytestmark = pytest.mark.slow

CHECKPOINT = CHECKPOINTS["whisper-turbo-tiny"].bundled
RATE = 16_000
# Of the sample recordings, half of which are in voices that training never heard.
MOST_ERRORS = 0.1


@pytest.fixture(scope="module")
def transcriber(tmp_path_factory: pytest.TempPathFactory) -> Transcriber:
    assert CHECKPOINT is not None
    return Transcriber.from_artifact(export(CHECKPOINT, tmp_path_factory.mktemp("whisper") / "artifact"))


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
    for sample, found in zip(samples, timed, strict=True):
        assert found.segments[0].start == pytest.approx(sample["words"][0]["start"], abs=0.3)
        assert found.segments[-1].end == pytest.approx(sample["words"][-1]["end"], abs=0.5)


def test_long_audio_is_heard_window_after_window(transcriber: Transcriber, samples: list[dict[str, Any]]) -> None:
    """The English samples twice over, with pauses: more than a window holds; each sentence once, and where it is."""
    english = [sample for sample in samples if sample["language"] == "English"]
    pieces: list[np.ndarray] = []
    texts: list[str] = []
    at = 0.0
    starts = []
    while at < 45:
        sample = english[len(texts) % len(english)]
        audio = soundfile.read(DATA / sample["file"], dtype="float32")[0]
        starts.append(at + sample["words"][0]["start"])
        texts.append(sample["text"])
        pieces += [audio, np.zeros(RATE // 2, np.float32)]
        at += len(audio) / RATE + 0.5
    found = transcriber.transcribe(np.concatenate(pieces), sample_rate=RATE, long_form=True)
    assert found.language == "English"
    assert error_rate("en", [" ".join(texts)], [found.text]) < MOST_ERRORS
    said = np.array([segment.start for segment in found.segments])
    assert np.all(np.diff(said) >= 0)
    assert np.median([np.abs(said - start).min() for start in starts]) < 5 * STEP
