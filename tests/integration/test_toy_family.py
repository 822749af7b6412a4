"""A new family is one module a side and one row in each table: export, command line, server and batches follow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from starlette.testclient import TestClient
from typer.testing import CliRunner

import export.families
import runtime.families
from export.__main__ import app as export_app
from export.checkpoints import CHECKPOINTS, Checkpoint
from export.families import FamilyRow
from quantize.__main__ import app as quantize_app
from runtime import Request, Transcriber
from runtime.__main__ import app as cli
from runtime.server.app import make_app
from runtime.server.limits import Limits
from runtime.server.metrics import Metrics
from runtime.server.scheduling.service import Service
from runtime.server.settings import Settings
from tests.conftest import DATA
from tests.helpers.toy_family.exporter import ToyModel

AUDIO = DATA / "en-1.wav"
CHARACTERS = [" ", "a", "b", "c", "d", "e"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The artifact of a random toy checkpoint, with the two rows in place."""
    root = tmp_path_factory.mktemp("toy")
    checkpoint = root / "checkpoint"
    checkpoint.mkdir()
    torch.manual_seed(0)
    save_file(dict(ToyModel(len(CHARACTERS) + 1).state_dict()), checkpoint / "model.safetensors")
    (checkpoint / "config.json").write_text(json.dumps({"model_type": "toy", "characters": CHARACTERS}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(runtime.families.FAMILIES, "toy-ctc", "tests.helpers.toy_family.engine:ToyEngine")
        row = FamilyRow("tests.helpers.toy_family.exporter:Toy", ("toy",))
        patch.setitem(export.families.FAMILIES, "toy-ctc", row)
        named = Checkpoint("toy", "toy-ctc", "somewhere/toy", None, "MIT", languages=("en",), tokenizers=((),))
        patch.setitem(CHECKPOINTS, "toy", named)
        result = CliRunner().invoke(
            export_app, ["toy", "--checkpoint", str(checkpoint), "--out", str(root / "artifact")]
        )
        assert result.exit_code == 0, result.output
        yield root / "artifact"


def test_library_and_batches(toy: Path) -> None:
    transcriber = Transcriber.from_artifact(toy)
    whole = transcriber.transcribe(AUDIO)
    assert whole.text
    assert whole.segments[0].words
    outcomes = list(transcriber.transcribe_many([Request(AUDIO), Request(AUDIO)]))
    assert [outcome.result().text for outcome in outcomes] == [whole.text, whole.text]


def test_command_line(toy: Path) -> None:
    result = CliRunner().invoke(cli, ["transcribe", str(AUDIO), "--model", str(toy)])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == Transcriber.from_artifact(toy).transcribe(AUDIO).text
    families = CliRunner().invoke(cli, ["info"]).stdout
    assert "toy-ctc" in families.splitlines()[0]
    listed = CliRunner().invoke(export_app, ["--list"])
    assert "toy-ctc" in listed.stdout
    refused = CliRunner().invoke(cli, ["transcribe", str(AUDIO), "--model", str(toy), "--context", "Kris"])
    assert refused.exit_code == 2
    assert "toy-ctc" in refused.stderr


def test_server(toy: Path) -> None:
    metrics = Metrics()
    service = Service("toy", Transcriber.from_artifact(toy), Limits(), metrics)
    with TestClient(make_app({"toy": service}, Settings(), metrics), base_url="http://127.0.0.1") as client:
        with AUDIO.open("rb") as file:
            reply = client.post("/v1/audio/transcriptions", files={"file": file})
        assert reply.json()["text"] == Transcriber.from_artifact(toy).transcribe(AUDIO).text
        with AUDIO.open("rb") as file:
            refused = client.post("/v1/audio/transcriptions", files={"file": file}, data={"prompt": "Kris"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")


def test_stream(toy: Path) -> None:
    result = CliRunner().invoke(cli, ["stream", str(AUDIO), "--model", str(toy), "--format", "json"])
    assert result.exit_code == 0, result.output
    assert any(json.loads(line)["type"] == "final" for line in result.stdout.splitlines())


def test_quantization(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "toy-q8"
    result = CliRunner().invoke(quantize_app, [str(toy), "--recipe", "q8", "--out", str(out), "--force", "--no-eval"])
    assert result.exit_code == 0, result.output
    assert Transcriber.from_artifact(out).transcribe(AUDIO).text
