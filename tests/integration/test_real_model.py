"""The bundled model on recordings of people: files in five languages, a batch, the server and its page.

The model is made anew when a recipe changes, so most texts are compared by their word errors; those of clear recordings
are exact.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import openai
import pytest
from playwright.sync_api import expect
from typer.testing import CliRunner

from runtime import Transcriber, Transcript
from runtime.__main__ import app
from runtime.audio import load_audio
from runtime.evaluation import Utterance, metric_language
from runtime.model.bundled import BUNDLED_MODEL, default_model
from runtime.server.app import make_app
from runtime.server.limits import Limits
from runtime.server.metrics import Metrics
from runtime.server.scheduling.service import Service
from runtime.server.settings import Settings
from tests.conftest import DATA
from tests.helpers.browser import PATIENCE, chromium, serving
from tools.demo import MOST_ERRORS, chosen_utterances, count_errors

pytestmark = pytest.mark.slow

Floats = npt.NDArray[np.float32]

RATE = 16_000
REAL = DATA / "real"
#: Recordings that every precision of the model transcribes right to the letter.
EXACT = {
    "en-conf-invalid.opus": "That is not a valid conference number. Please try again.",
    "it-conf-nonextended.opus": "La conferenza non può essere prolungata.",
}
CLEAR = REAL / "en-conf-invalid.opus"


@pytest.fixture(scope="module")
def real() -> Transcriber:
    """The bundled model as a user opens it: nothing is named."""
    return Transcriber.from_artifact()


@pytest.fixture(scope="module")
def utterances() -> list[Utterance]:
    """The recordings of the demo: two in each of five languages."""
    return chosen_utterances()


@pytest.fixture(scope="module")
def transcripts(real: Transcriber, utterances: list[Utterance]) -> list[Transcript]:
    return [real.transcribe(utterance.audio) for utterance in utterances]


@pytest.fixture(scope="module")
def server(real: Transcriber) -> Iterator[str]:
    """A server in this process with the bundled model; yields its URL."""
    metrics = Metrics()
    service = Service(BUNDLED_MODEL, real, Limits(), metrics)
    with serving(make_app({BUNDLED_MODEL: service}, Settings(), metrics)) as url:
        yield url


def test_the_default_is_the_bundled_model(real: Transcriber) -> None:
    assert real.artifact.path == default_model()
    assert real.artifact.manifest.name == BUNDLED_MODEL


def test_five_languages_are_detected_and_transcribed(
    utterances: list[Utterance], transcripts: list[Transcript]
) -> None:
    assert {transcript.language for transcript in transcripts} == {"English", "French", "Italian", "Russian", "Spanish"}
    for utterance, transcript in zip(utterances, transcripts, strict=True):
        assert transcript.language == metric_language(utterance), utterance.audio.name
    errors = count_errors(utterances, [transcript.text for transcript in transcripts])
    assert errors.words > 70
    assert errors.rate < MOST_ERRORS
    # Half of the recordings are clear enough to have no error at all.
    right = [
        not count_errors([utterance], [transcript.text]).wrong
        for utterance, transcript in zip(utterances, transcripts, strict=True)
    ]
    assert sum(right) >= 5


@pytest.mark.parametrize("name", EXACT)
def test_clear_recordings_are_exact(name: str, utterances: list[Utterance], transcripts: list[Transcript]) -> None:
    names = [utterance.audio.name for utterance in utterances]
    assert transcripts[names.index(name)].text == EXACT[name]


def test_batch_decodes_together_and_equals_files(
    utterances: list[Utterance], transcripts: list[Transcript], tmp_path: Any
) -> None:
    """Segments of all files share the decoder's rows. In 8 bits a near tie may fall the other way, but no text changes
    much."""
    files = [str(utterance.audio) for utterance in utterances[::2]]
    result = CliRunner().invoke(app, ["batch", *files, "--out", str(tmp_path / "out.jsonl"), "--max-batch", "3"])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = {row["audio"]: row["text"] for row in rows}
    alone = [
        Utterance(utterance.audio, each.text, each.language)
        for utterance, each in zip(utterances, transcripts, strict=True)
    ]
    errors = count_errors(alone[::2], [texts[file] for file in files])
    assert errors.rate <= 0.05
    assert texts[str(CLEAR)] == EXACT[CLEAR.name]


def joined(names: list[str]) -> tuple[Floats, list[tuple[float, float]]]:
    """Return recordings with pauses of 3 s between them, and start and end of each in seconds."""
    samples, times = list[Floats](), list[tuple[float, float]]()
    for name in names:
        clip = load_audio(REAL / name, RATE)
        start = sum(map(len, samples)) / RATE
        times.append((start, start + len(clip) / RATE))
        samples += [clip, np.zeros(3 * RATE, np.float32)]
    return np.concatenate(samples), times


def encodings(monkeypatch: pytest.MonkeyPatch, transcriber: Transcriber) -> list[float]:
    """Return a list to which the seconds of each encoded window are added."""
    windows = list[float]()
    engine: Any = transcriber.engine
    encode = engine.encode

    def counted(samples: Floats, *arguments: Any) -> Any:
        windows.append(len(samples) / RATE)
        return encode(samples, *arguments)

    monkeypatch.setattr(engine, "encode", counted)
    return windows


def test_recordings_with_pauses_share_a_window(real: Transcriber, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["en-conf-invalid.opus", "en-pbx-invalid.opus", "en-vm-msgsaved.opus", "en-tt-weasels.opus"]
    audio, times = joined(names)
    windows = encodings(monkeypatch, real)
    transcript = real.transcribe(audio, sample_rate=RATE)
    assert len(windows) == 1
    assert windows[0] < 20
    assert transcript.text.startswith(EXACT[names[0]])
    assert transcript.language == "English"
    for segment in transcript.segments:  # none reaches into a pause by more than the margin of a piece
        assert any(start - 0.3 <= segment.start < segment.end <= end + 0.3 for start, end in times), segment
    assert {sum(segment.start + 0.3 >= start for start, _ in times) for segment in transcript.segments} == {1, 2, 3, 4}
    assert "eaten our phone system" in transcript.segments[-1].text


def test_recordings_in_several_languages_do_not_share_a_text(
    real: Transcriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["en-conf-invalid.opus", "it-conf-nonextended.opus", "en-pbx-invalid.opus"]
    audio, times = joined(names)
    windows = encodings(monkeypatch, real)
    transcript = real.transcribe(audio, sample_rate=RATE)
    assert len(windows) == 4  # all of it, then each alone
    for name, (start, end) in zip(names, times, strict=True):
        said = [each for each in transcript.segments if start - 0.3 <= each.start <= end]
        assert {each.language for each in said} == {"Italian" if name.startswith("it") else "English"}
        if name in EXACT:
            assert " ".join(each.text for each in said) == EXACT[name]
    windows.clear()
    given = real.transcribe(audio, "en", sample_rate=RATE)
    assert (len(windows), {each.language for each in given.segments}) == (1, {"English"})


def test_the_server_answers_an_openai_client(server: str) -> None:
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client:
        (model,) = client.models.list().data
        answer = client.audio.transcriptions.create(file=CLEAR, model=model.id, response_format="verbose_json")
    assert model.id == BUNDLED_MODEL
    assert answer.text == EXACT[CLEAR.name]
    assert answer.language == "english"


def test_the_page_transcribes_a_file(server: str) -> None:
    with chromium(DATA / "en-1.wav") as browser:  # the microphone is not used
        page = browser.new_page()
        page.goto(server)
        page.set_input_files("#file", REAL / "it-conf-nonextended.opus")
        expect(page.get_by_role("status")).to_have_text("Done: 1 segment.", timeout=PATIENCE * 1000)
        text = page.get_by_role("list", name="Segments").locator("p")
        expect(text).to_have_text(EXACT["it-conf-nonextended.opus"])
        expect(text).to_have_attribute("lang", "it")
