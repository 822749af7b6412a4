"""Every family with every option, in the library, the command line and the server: an option works or is refused.

The models have random weights, and their output depends on the options: an option that works changes the transcript.
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
from tests.helpers import gigaam_checkpoint, parakeet_checkpoint, whisper_checkpoint

pytestmark = pytest.mark.slow

AUDIO = DATA / "en-1.wav"


def write_bilingual_transducer(folder: Path) -> None:
    """Write a checkpoint of ``parakeet-tdt`` with two languages."""
    parakeet_checkpoint.write(parakeet_checkpoint.tdt_model(), folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"languages": ["en", "de"]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


CHECKPOINTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "parakeet-tdt": ("parakeet-tdt-0.6b-v3", write_bilingual_transducer),
    "parakeet-ctc": (
        "parakeet-ctc-1.1b",
        lambda folder: parakeet_checkpoint.write(parakeet_checkpoint.ctc_model(), folder),
    ),
    "gigaam-ctc": ("gigaam-v3-ctc", lambda folder: gigaam_checkpoint.write("ctc", folder, **gigaam_checkpoint.TINY)),
    "whisper": ("whisper-large-v3-turbo", whisper_checkpoint.write),
    "whisper, English": (
        "whisper-large-v3-turbo",
        lambda folder: whisper_checkpoint.write(folder, multilingual=False),
    ),
}
MODELS = ["qwen3-asr", *CHECKPOINTS]


@dataclass
class Model:
    """An artifact, opened in the library and in a server."""

    folder: Path
    transcriber: Transcriber
    client: TestClient

    @property
    def capabilities(self) -> Capabilities:
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
        result = CliRunner().invoke(export_app, [name, "--checkpoint", str(root / "checkpoint"), "--out", str(folder)])
        assert result.exit_code == 0, result.output
    metrics = Metrics()
    service = Service("model", Transcriber.from_artifact(folder, vad=False), Limits(), metrics)
    with TestClient(make_app({"model": service}, Settings(), metrics), base_url="http://127.0.0.1") as client:
        yield Model(folder, Transcriber.from_artifact(folder, vad=False), client)


@dataclass(frozen=True)
class Option:
    """An option as each interface takes it; empty where an interface has no such option.

    Attributes:
        name: the name of the option in test ids.
        works: whether a model supports it.
        changed: whether the transcript with the option, compared with the one without it, shows that it was applied.
        library: keyword arguments of the library.
        command: arguments of the command line.
        form: fields of the server's form.
        param: the ``param`` of the server's error.
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


def differs(with_option: Transcript, plain: Transcript) -> bool:
    return tokens(with_option) != tokens(plain)


OPTIONS = [
    Option(
        "context",
        lambda model: model.capabilities.context,
        lambda with_option, plain: with_option.tokens.prompt > plain.tokens.prompt,
        {"context": "Kris"},
        ("--context", "Kris"),
        {"prompt": "Kris"},
        "prompt",
    ),
    Option(
        "a language",
        lambda model: "en" in model.languages and model.capabilities.language,
        lambda with_option, _: with_option.language == ("English" if with_option.text else None),
        {"language": "en"},
        ("--language", "en"),
        {"language": "en"},
        "language",
    ),
    Option(
        "another language, or the only one",
        lambda model: "ru" in model.languages and model.capabilities.language,
        lambda with_option, _: with_option.language == ("Russian" if with_option.text else None),
        {"language": "Russian"},
        ("--language", "Russian"),
        {"language": "Russian"},
        "language",
    ),
    Option(
        "an unknown language",
        lambda _: False,
        differs,
        {"language": "Esperanto"},
        ("--language", "Esperanto"),
        {"language": "Esperanto"},
        "language",
    ),
    Option(
        "timestamps",
        lambda model: model.capabilities.timestamps,
        differs,
        {"timestamps": True},
        ("--timestamps",),
    ),
    Option(
        "translation",
        lambda model: model.capabilities.translation,
        differs,
        {"task": "translate"},
        ("--translate",),
    ),
    Option("long form", lambda model: model.capabilities.long_form, differs, {"long_form": True}, ("--long-form",)),
    Option(
        "a forced length",
        lambda model: model.capabilities.forcing,
        lambda with_option, _: {len(segment.tokens) for segment in with_option.segments} == {7},
        {"max_new_tokens": 7, "ignore_stop": True},
    ),
    Option(
        "word times",
        lambda model: model.capabilities.words,
        lambda with_option, _: all(segment.words for segment in with_option.segments if segment.text),
        {},
        (),
        {"response_format": "verbose_json", "timestamp_granularities[]": "word"},
        "timestamp_granularities",
    ),
]
LIBRARY_OPTIONS = [option for option in OPTIONS if option.library]
COMMAND_OPTIONS = [option for option in OPTIONS if option.command]
FORM_OPTIONS = [option for option in OPTIONS if option.form]


def each_option(options: list[Option]) -> pytest.MarkDecorator:
    """Parametrize a test by ``options``, with their names as ids."""
    return pytest.mark.parametrize("option", options, ids=[option.name for option in options])


def test_every_family_has_a_model() -> None:
    assert {name.partition(",")[0] for name in MODELS} == set(FAMILIES)


def test_capabilities_are_known_without_opening_the_graphs(model: Model) -> None:
    assert capabilities_of(open_artifact(model.folder)) == model.capabilities
    described = json.loads(CliRunner().invoke(cli, ["info", "--model", str(model.folder), "--format", "json"]).stdout)
    (served,) = model.client.get("/v1/models").json()["data"]
    for entry in (described, served):
        assert entry["capabilities"] == {
            name: getattr(model.capabilities, name) for name in Capabilities.__struct_fields__
        }


@each_option(LIBRARY_OPTIONS)
def test_the_library(model: Model, option: Option) -> None:
    transcriber = model.transcriber
    if option.works(model):
        assert option.changed(transcriber.transcribe(AUDIO, **option.library), transcriber.transcribe(AUDIO))
        return
    with pytest.raises(OptionError, match=r"leave|did you mean|this model knows") as refusal:
        transcriber.transcribe(AUDIO, **option.library)
    assert "\n" not in str(refusal.value)


@each_option([option for option in LIBRARY_OPTIONS if {"language", "context"} & {*option.library}])
def test_streams_and_batches_of_the_library(model: Model, option: Option) -> None:
    (outcome,) = model.transcriber.transcribe_many([Request(AUDIO, **option.library)])
    assert bool(outcome.transcript) is option.works(model)
    if option.works(model):
        model.transcriber.stream(**option.library).finish()
        return
    with pytest.raises(OptionError, match=r"language|context|know"):
        model.transcriber.stream(**option.library)


def test_word_times_are_always_present_or_never(model: Model) -> None:
    transcript = model.transcriber.transcribe(AUDIO)
    assert transcript.segments
    assert {segment.words is not None for segment in transcript.segments} == {model.capabilities.words}


def test_validation_refuses_before_the_audio_is_opened(model: Model) -> None:
    requests: dict[str, tuple[Request, dict[str, Any]]] = {
        "context": (Request("missing.wav", context="Kris"), {}),
        "timestamps": (Request("missing.wav", timestamps=True), {}),
        "translation": (Request("missing.wav", task="translate"), {}),
        "long_form": (Request("missing.wav", long_form=True), {}),
        "words": (Request("missing.wav"), {"words": True}),
        "forcing": (Request("missing.wav"), {"ignore_stop": True, "max_new_tokens": 3}),
    }
    for name, (request, options) in requests.items():
        if getattr(model.capabilities, name):
            model.transcriber.validate(request, **options)
        else:
            with pytest.raises(CapabilityError):
                model.transcriber.validate(request, **options)


@each_option(COMMAND_OPTIONS)
def test_the_command_line(model: Model, option: Option, tmp_path: Path) -> None:
    base = ["transcribe", str(AUDIO), "--no-vad", "--model", str(model.folder)]
    result = CliRunner().invoke(cli, [*base, *option.command])
    if option.works(model):
        assert result.exit_code == 0, result.output
        return
    assert (result.exit_code, result.stdout) == (2, "")
    (message,) = result.stderr.splitlines()
    assert message.startswith("error: ")
    two_files = CliRunner().invoke(cli, ["transcribe", str(AUDIO), *base[1:], *option.command])
    assert two_files.stderr == result.stderr  # once, not for each file
    if {"--language", "--context"} & {*option.command}:
        out = ["--out", str(tmp_path / "out.jsonl")]
        for command in (["batch", str(AUDIO), *out], ["stream", str(AUDIO)]):
            command_result = CliRunner().invoke(cli, [*command, "--model", str(model.folder), *option.command])
            assert (command_result.exit_code, command_result.stdout) == (2, "")
            assert message in command_result.stderr


@each_option(FORM_OPTIONS)
def test_the_server(model: Model, option: Option) -> None:
    answer = model.send(**option.form)
    if option.works(model):
        assert answer.status_code == 200, answer.text
        if option.name == "word times":
            words = answer.json()["words"]
            assert " ".join(word["word"] for word in words) == " ".join(answer.json()["text"].split())
        return
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == option.param
    assert error["type"] == "invalid_request_error"
    assert error["message"]


@each_option([option for option in FORM_OPTIONS if option.param in ("prompt", "language")])
def test_realtime_sessions_of_the_server(model: Model, option: Option) -> None:
    with model.client.websocket_connect("/v1/realtime") as socket:
        assert socket.receive_json()["type"] == "session.created"
        transcription = {"session": {"type": "transcription", "audio": {"input": {"transcription": option.form}}}}
        socket.send_json({"type": "session.update", **transcription})
        answer = socket.receive_json()
    if option.works(model):
        assert answer["type"] == "session.updated"
    else:
        assert answer["error"]["param"] == f"session.audio.input.transcription.{option.param}"


def test_commands_that_force_a_text_length_refuse_models_without_forcing(model: Model, tmp_path: Path) -> None:
    """They refuse before any measurement; other tests run these commands with supported models."""
    if model.capabilities.forcing:
        return
    for command in (["benchmark", "--seconds", "1"], ["providers", "--compare", "cpu"]):
        result = CliRunner().invoke(cli, [*command, "--model", str(model.folder), "--new-tokens", "5"])
        assert (result.exit_code, result.stdout) == (2, "")
        assert "forced" in result.stderr
