"""Whisper base, the real weights: sounds without speech give no text, and short answers keep theirs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from runtime import Transcriber
from runtime.audio import load_audio
from runtime.evaluation.metrics import normalize
from runtime.pipeline.events import Partial
from tests.conftest import DATA, REPOSITORY
from tests.helpers.no_speech import MAKERS, sound
from tests.helpers.streams import ends_as_offline, finals, offline, streamed

RATE = 16_000
MODEL = REPOSITORY / "artifacts" / "whisper-base-int8"
FOLDER = DATA / "no_speech"
SECONDS = 12.0
# Seeds of sounds in which the detector finds speech, so that the model hears them; others never reach it.
HEARD = {"music": 4, "room tone": 9, "clicks and knocks": 10}
ANSWERS = ["ten minutes", "oh", "what's wrong", "barely"]


@pytest.fixture(scope="module")
def transcriber() -> Transcriber:
    """Open the bundled Whisper base with default options."""
    return Transcriber.from_artifact(MODEL)


def audio_of(name: str) -> npt.NDArray[np.float32]:
    return load_audio(FOLDER / name, RATE)


@pytest.mark.parametrize("name", MAKERS)
def test_sounds_give_no_text(transcriber: Transcriber, name: str) -> None:
    samples = sound(name, SECONDS, HEARD.get(name, 0))
    transcript = transcriber.transcribe(samples, sample_rate=RATE)
    assert (transcript.text, transcript.language) == ("", None)
    events = streamed(transcriber.stream(), samples, 0.5)
    assert [final.result.text for final in finals(events)] == [""] * len(finals(events))
    assert not any(event.stable or event.unstable for event in events if isinstance(event, Partial))
    # What the model wrote is visible, and shows that the rule had something to drop.
    dropped = [segment.dropped_text for segment in transcript.segments]
    assert bool(dropped) == (name in HEARD)
    assert all(dropped)


def test_pauses_of_a_film_give_no_text(transcriber: Transcriber) -> None:
    """As a stream, noises between the sentences are segments of half a second."""
    samples = audio_of("film-pauses.ogg")
    ends = finals(streamed(transcriber.stream(interval=60.0), samples, 0.5))
    texts = {final.result.start: final.result.text for final in ends}
    noises = [final.result for final in ends if final.result.dropped_text]
    assert [round(noise.start) for noise in noises] == [19, 22, 28, 29]
    assert "Thank you." in {noise.dropped_text for noise in noises}
    assert [bool(text) for text in texts.values()] == [start not in {each.start for each in noises} for start in texts]
    assert "thank" not in " ".join(texts.values()).lower()
    assert "mr. cooper" in " ".join(texts.values()).lower()
    pieces = offline(transcriber.engine, samples)
    assert all(ends_as_offline(final, *piece) for final, piece in zip(ends, pieces, strict=True))


@pytest.mark.parametrize("start", [1.0, 2.9, 4.2, 6.5, 8.4])
def test_a_tenth_of_a_second_gives_no_text(transcriber: Transcriber, start: float) -> None:
    first = round(start * RATE)
    assert transcriber.transcribe(audio_of("film-pauses.ogg")[first : first + RATE // 10], sample_rate=RATE).text == ""


def test_short_answers_are_kept(transcriber: Transcriber) -> None:
    """Answers of 0.4 to 0.8 s with two seconds between them."""
    samples = audio_of("short-answers.ogg")
    segments = transcriber.transcribe(samples, sample_rate=RATE).segments
    # Together in one window, "ten minutes" is written in digits.
    assert [normalize(each.text, "English") for each in segments] == [normalize(text, "English") for text in ANSWERS]
    assert [segment.dropped_text for segment in segments] == [None] * len(ANSWERS)
    ends = finals(streamed(transcriber.stream(interval=60.0), samples, 0.5))
    assert [final.result.text.lower().rstrip(".?!") for final in ends] == ANSWERS
