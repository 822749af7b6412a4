"""Tests of the command ``serve`` and its socket."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from runtime.__main__ import app
from runtime.cli.serve import _folders
from runtime.errors import OptionError
from runtime.server.serve import bind, is_loopback, url
from tests.conftest import ARTIFACT

pytestmark = pytest.mark.usefixtures("small_default")


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["serve", *map(str, arguments)])


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Services and settings of each call of the function that would start the server."""
    calls: list[Any] = []

    def record(services: Any, settings: Any, metrics: Any, bound: Any, on_ready: Any) -> None:
        calls.append((services, settings))
        on_ready()

    monkeypatch.setattr("runtime.server.serve.serve", record)
    monkeypatch.setattr("runtime.server.logs.configure_logging", lambda _: None)
    return calls


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example.org")))


def test_addresses() -> None:
    with bind("127.0.0.1", 0) as bound:
        assert url(bound, "127.0.0.1") == f"http://127.0.0.1:{bound.getsockname()[1]}"
        assert url(bound, "::1").startswith("http://[::1]:")


def test_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = run("--port", str(port))
    assert result.exit_code == 2
    assert re.fullmatch(rf"error: port {port} of 127\.0\.0\.1 is in use;.*--port.*\n", result.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--port", "70000"), "--port must be from 0 to 65535, not 70000"),
        (("--host", "no.such.host.invalid"), "no such host"),
        (("--max-queue", "0"), "limit max_queue must be positive"),
        (("--grace", "-1"), "--grace must be from 0 to 86400 s, not -1"),
        (("--grace", "inf"), "not inf"),
        (("--max-upload-mb", "nan"), "--max-upload-mb must be positive, not nan"),
        (("--max-upload-mb", "inf"), "--max-upload-mb must be positive, not inf"),
        (("--allow-host", "https://asr.example"), "asr.example"),
        (("--api-keys-file", "/nonexistent"), "/nonexistent: cannot be read"),
        (("--model", "a b=/x"), "a b=/x"),
        (("--model", "a=/x", "--model", "a=/y"), "two models are named 'a'"),
        (("--model", "/nonexistent", "--port", "0"), "/nonexistent"),
        (("--memory", "much", "--port", "0"), "'much' is not a size"),
    ],
)
def test_invalid_options_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = run()
    assert result.exit_code == 2
    assert result.stderr.endswith("pip install 'asr-deploy[serve]'\n")
    assert result.stderr.count("\n") == 1


def test_models_and_their_names(served: list[Any], tmp_path: Path) -> None:
    result = run("--model", ARTIFACT, "--model", f"whisper-1={ARTIFACT}", "--port", "0")
    assert result.exit_code == 0, result.stderr
    ((services, settings),) = served
    assert list(services) == ["qwen3-asr-tiny-int8", "whisper-1"]
    assert settings.keys == ()
    assert result.stderr.startswith("http://127.0.0.1:")
    assert result.stderr.endswith(" serves qwen3-asr-tiny-int8, whisper-1\n")
    twice = run("--model", ARTIFACT, "--model", ARTIFACT, "--port", "0")
    assert twice.exit_code == 2
    assert re.fullmatch(r"error: .*'qwen3-asr-tiny-int8'.*--model NAME=DIR\n", twice.stderr)


def test_folder_with_an_equals_sign(tmp_path: Path) -> None:
    folder = tmp_path / "a=b"
    folder.mkdir()
    assert _folders([str(folder), f"x={folder}"]) == [(None, folder), ("x", folder)]
    with pytest.raises(OptionError):
        _folders(["=x"])


def test_allowed_hosts(served: list[Any]) -> None:
    assert run("--port", "0", "--allow-host", "ASR.example.", "--allow-host", "b.example").exit_code == 0
    assert served[0][1].hosts == ("127.0.0.1", "asr.example", "b.example")


def test_warnings(served: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_to_all = run("--host", "0.0.0.0", "--port", "0")
    assert re.match("warning: .*0\\.0\\.0\\.0.*--api-keys-file", open_to_all.stderr)
    monkeypatch.setenv("ASR_DEPLOY_API_KEYS", "k1,k2")
    file = tmp_path / "keys"
    file.write_text("k3\n")
    file.chmod(0o644)
    result = run("--host", "0.0.0.0", "--port", "0", "--api-keys-file", file)
    first, ready = result.stderr.splitlines()
    assert first.startswith(f"warning: {file}: ")
    assert "chmod 600" in first
    assert ready.endswith("serves qwen3-asr-tiny-int8")
    assert served[-1][1].keys == ("k3", "k1", "k2")
