"""Every family with every option, by the library, the command line and the server: it works, or it is refused.

The models are noise, but noise that depends on what is asked: an option that works changes something.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from export.__main__ import app as export_app
from runtime import Request, Transcriber, Transcript
from runtime.__main__ import app as cli
from runtime.engines.base import SegmentOptions
from runtime.engines.capabilities import Capabilities
from runtime.errors import CapabilityError, OptionError
from runtime.families import FAMILIES, capabilities_of
from runtime.model.artifact import open_artifact
from runtime.server.app import make_app
from runtime.server.limits import Limits
from runtime.server.metrics import Metrics
from runtime.server.scheduling.service import Service
from runtime.server.settings import Settings
from tests.conftest import ARTIFACT, DATA
from tests.helpers import gigaam_checkpoint, whisper_checkpoint
from tests.helpers import parakeet_checkpoint as tiny_parakeet

pytestmark = pytest.mark.slow

AUDIO = DATA / "en-1.wav"


def transducer_of_two_languages(folder: Path) -> None:
    tiny_parakeet.write(tiny_parakeet.tdt_model(), folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"languages": ["en", "de"]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


CHECKPOINTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "parakeet-tdt": ("parakeet-tdt-0.6b-v3", transducer_of_two_languages),
    "parakeet-ctc": ("parakeet-ctc-1.1b", lambda to: tiny_parakeet.write(tiny_parakeet.ctc_model(), to)),
    "gigaam-ctc": ("gigaam-v3-ctc", lambda to: gigaam_checkpoint.write("ctc", to, **gigaam_checkpoint.TINY)),
    "whisper": ("whisper-large-v3-turbo", whisper_checkpoint.write),
    "whisper, English": (
        "whisper-large-v3-turbo",
        lambda to: whisper_checkpoint.write(to, multilingual=False),
    ),
}
MODELS = ["qwen3-asr", *CHECKPOINTS]


@dataclass
class Model:
    """An artifact, opened for the library and behind a server."""

    folder: Path
    transcriber: Transcriber
    client: TestClient

    @property
    def can(self) -> Capabilities:
        return self.transcriber.capabilities

    @property
    def languages(self) -> list[str]:
        return [language.code for language in self.transcriber.artifact.manifest.languages]

    def send(self, **fields: str) -> Any:
        with AUDIO.open("rb") as file:
            return self.client.post("/v1/audio/transcriptions", data=fields, files={"file": file})


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = ARTIFACT
    if request.param in CHECKPOINTS:
        name, write = CHECKPOINTS[request.param]
        root = tmp_path_factory.mktemp("model")
        folder = root / "artifact"
        write(root / "checkpoint")
        made = CliRunner().invoke(export_app, [name, "--checkpoint", str(root / "checkpoint"), "--out", str(folder)])
        assert made.exit_code == 0, made.output
    metrics = Metrics()
    service = Service("model", Transcriber.from_artifact(folder, vad=False), Limits(), metrics)
    with TestClient(make_app({"model": service}, Settings(), metrics), base_url="http://127.0.0.1") as client:
        yield Model(folder, Transcriber.from_artifact(folder, vad=False), client)


@dataclass(frozen=True)
class Option:
    """Something to ask for, in the words of each entry; empty where that entry has no such option.

    ``works`` says of a model whether it can do it, ``changed`` whether a transcript shows that it was done, beside one
    of the same audio without it.
    """

    name: str
    works: Callable[[Model], bool]
    changed: Callable[[Transcript, Transcript], bool]
    library: dict[str, Any] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    form: dict[str, str] = field(default_factory=dict)
    param: str = ""


def tokens(transcript: Transcript) -> list[int]:
    return [token for segment in transcript.segments for token in segment.tokens]


def differs(asked: Transcript, plain: Transcript) -> bool:
    return tokens(asked) != tokens(plain)


OPTIONS = [
    Option(
        "context",
        lambda model: model.can.context,
        lambda asked, plain: asked.tokens.prompt > plain.tokens.prompt,
        {"context": "Kris"},
        ("--context", "Kris"),
        {"prompt": "Kris"},
        "prompt",
    ),
    Option(
        "a language",
        lambda model: "en" in model.languages and model.can.language,
        lambda asked, _: asked.language == ("English" if asked.text else None),
        {"language": "en"},
        ("--language", "en"),
        {"language": "en"},
        "language",
    ),
    Option(
        "a language that is not spoken, or the only one",
        lambda model: "ru" in model.languages and model.can.language,
        lambda asked, _: asked.language == ("Russian" if asked.text else None),
        {"language": "Russian"},
        ("--language", "Russian"),
        {"language": "Russian"},
        "language",
    ),
    Option(
        "a language that none of them knows",
        lambda _: False,
        differs,
        {"language": "Esperanto"},
        ("--language", "Esperanto"),
        {"language": "Esperanto"},
        "language",
    ),
    Option(
        "timestamps",
        lambda model: model.can.timestamps,
        differs,
        {"timestamps": True},
        ("--timestamps",),
    ),
    Option(
        "translation",
        lambda model: model.can.translation,
        differs,
        {"task": "translate"},
        ("--translate",),
    ),
    Option("long form", lambda model: model.can.long_form, differs, {"long_form": True}, ("--long-form",)),
    Option(
        "a forced length",
        lambda model: model.can.forcing,
        lambda asked, _: {len(segment.tokens) for segment in asked.segments} == {7},
        {"max_new_tokens": 7, "ignore_stop": True},
    ),
    Option(
        "times of words",
        lambda model: model.can.words,
        lambda asked, _: all(segment.words for segment in asked.segments if segment.text),
        {},
        (),
        {"response_format": "verbose_json", "timestamp_granularities[]": "word"},
        "timestamp_granularities",
    ),
]
BY_LIBRARY = [option for option in OPTIONS if option.library]
BY_COMMAND = [option for option in OPTIONS if option.command]
BY_FORM = [option for option in OPTIONS if option.form]


def named(options: list[Option]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("option", options, ids=[option.name for option in options])


def test_every_family_is_here() -> None:
    assert {name.partition(",")[0] for name in MODELS} == set(FAMILIES)


def test_what_it_can_do_is_known_before_it_is_opened(model: Model) -> None:
    assert capabilities_of(open_artifact(model.folder)) == model.can
    said = json.loads(CliRunner().invoke(cli, ["info", "--model", str(model.folder), "--format", "json"]).stdout)
    (served,) = model.client.get("/v1/models").json()["data"]
    for received in (said, served):
        assert received["capabilities"] == {name: getattr(model.can, name) for name in Capabilities.__struct_fields__}


@named(BY_LIBRARY)
def test_the_library(model: Model, option: Option) -> None:
    transcriber = model.transcriber
    if option.works(model):
        assert option.changed(transcriber.transcribe(AUDIO, **option.library), transcriber.transcribe(AUDIO))
        return
    with pytest.raises(OptionError, match=r"leave|did you mean|this model knows") as refused:
        transcriber.transcribe(AUDIO, **option.library)
    assert "\n" not in str(refused.value)


@named([option for option in BY_LIBRARY if {"language", "context"} & {*option.library}])
def test_streams_and_batches_of_the_library(model: Model, option: Option) -> None:
    (outcome,) = model.transcriber.transcribe_many([Request(AUDIO, **option.library)])
    assert bool(outcome.transcript) is option.works(model)
    if option.works(model):
        model.transcriber.stream(**option.library).finish()
        return
    with pytest.raises(OptionError, match=r"language|context"):
        model.transcriber.stream(**option.library)


def test_words_come_unasked_or_not_at_all(model: Model) -> None:
    heard = model.transcriber.transcribe(AUDIO)
    assert [segment.words is not None for segment in heard.segments] == [model.can.words] * len(heard.segments) != []


def test_an_engine_ignores_nothing_either(model: Model) -> None:
    """What calls it without a transcriber, as quantization does."""
    engine = model.transcriber.engine
    for name, options in (
        ("context", SegmentOptions(context="Kris")),
        ("timestamps", SegmentOptions(timestamps=True)),
        ("translation", SegmentOptions(task="translate")),
        ("forcing", SegmentOptions(ignore_stop=True, max_new_tokens=3)),
    ):
        if getattr(model.can, name):
            engine.check(options)
        else:
            with pytest.raises(CapabilityError):
                engine.check(options)


@named(BY_COMMAND)
def test_the_command_line(model: Model, option: Option, tmp_path: Path) -> None:
    base = ["transcribe", str(AUDIO), "--no-vad", "--model", str(model.folder)]
    asked = CliRunner().invoke(cli, [*base, *option.command])
    if option.works(model):
        assert asked.exit_code == 0, asked.output
        return
    assert (asked.exit_code, asked.stdout) == (2, "")
    (sentence,) = asked.stderr.splitlines()
    assert sentence.startswith("error: ")
    two = CliRunner().invoke(cli, ["transcribe", str(AUDIO), *base[1:], *option.command])
    assert two.stderr == asked.stderr  # said once, not of every file
    if {"--language", "--context"} & {*option.command}:
        out = ["--out", str(tmp_path / "out.jsonl")]
        for command in (["batch", str(AUDIO), *out], ["stream", str(AUDIO)]):
            refused = CliRunner().invoke(cli, [*command, "--model", str(model.folder), *option.command])
            assert (refused.exit_code, refused.stdout) == (2, "")
            assert sentence in refused.stderr


@named(BY_FORM)
def test_the_server(model: Model, option: Option) -> None:
    answer = model.send(**option.form)
    if option.works(model):
        assert answer.status_code == 200, answer.text
        if option.name == "times of words":
            words = answer.json()["words"]
            assert " ".join(word["word"] for word in words) == " ".join(answer.json()["text"].split())
        return
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == option.param
    assert error["type"] == "invalid_request_error"
    assert error["message"]


@named([option for option in BY_FORM if option.param in ("prompt", "language")])
def test_live_audio_of_the_server(model: Model, option: Option) -> None:
    with model.client.websocket_connect("/v1/realtime") as socket:
        assert socket.receive_json()["type"] == "session.created"
        transcription = {"session": {"type": "transcription", "audio": {"input": {"transcription": option.form}}}}
        socket.send_json({"type": "session.update", **transcription})
        answer = socket.receive_json()
    if option.works(model):
        assert answer["type"] == "session.updated"
    else:
        assert answer["error"]["param"] == f"session.audio.input.transcription.{option.param}"


def test_tokens_are_forced_of_models_that_can_be(model: Model, tmp_path: Path) -> None:
    """Before anything is measured; that it works is for the tests of these commands."""
    if model.can.forcing:
        return
    for command in (["benchmark", "--seconds", "1"], ["providers", "--compare", "cpu"]):
        refused = CliRunner().invoke(cli, [*command, "--model", str(model.folder), "--new-tokens", "5"])
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert "a text of a forced length was asked for" in refused.stderr
