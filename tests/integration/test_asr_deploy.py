"""The ``asr-deploy`` command: all commands in one application, and what it does without optional packages."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from asr_deploy.cli import app
from runtime.version import __version__
from tests.conftest import ARTIFACT, DATA, REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
SCRIPT = PROJECT["project"]["scripts"]["asr-deploy"]
COMMANDS = (
    "transcribe",
    "batch",
    "stream",
    "serve",
    "info",
    "prepare",
    "providers",
    "evaluate",
    "benchmark",
    "export",
    "quantize",
)
# Runs asr-deploy in a process in which the modules of the first argument cannot be imported.
WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

missing = sys.argv[1].split(",")
sys.meta_path.insert(0, Missing())
sys.argv = ["asr-deploy", *sys.argv[2:]]
from asr_deploy.cli import app
app()
"""


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="asr-deploy")


def run_without(modules: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a process without ``modules``, a list separated by commas."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, modules, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )


def test_help_lists_all_commands() -> None:
    result = run("--help")
    assert result.exit_code == 0
    lines = result.stdout[result.stdout.index("Commands:") :].splitlines()[1:]
    assert tuple(line.split()[0] for line in lines if line.strip()) == COMMANDS


def test_version() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"asr-deploy {__version__}\n")


@pytest.mark.parametrize(("command", "option"), [("export", "--revision"), ("quantize", "--reduce-range")])
def test_help_of_a_forwarded_command_has_its_options(command: str, option: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Usage: asr-deploy {command} " in result.stdout
    assert option in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("transcribe", "absent.wav"), 2, "absent.wav: no such file"),
        (("export", "no-such-model"), 2, "no-such-model"),
        (("export", "--no-such-option"), 2, "--no-such-option"),
        (("quantize", "/nowhere", "--recipe", "int8"), 2, "/nowhere"),
        (("quantize",), 2, "ARTIFACT"),
        (("no-such-command",), 2, "no-such-command"),
    ],
)
def test_exit_codes_and_messages_pass_through(arguments: tuple[str, ...], code: int, message: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr


def test_an_interrupt_of_a_forwarded_command_has_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("quantize.cli"), "open_artifact", interrupted)
    result = run("quantize", ARTIFACT, "--recipe", "int8")
    assert (result.exit_code, result.stdout) == (130, "")
    assert "interrupted" in result.stderr


@pytest.mark.parametrize(
    ("modules", "arguments", "extra"),
    [
        ("torch", ("export", "qwen3-asr-0.6b"), "export"),
        ("torch,transformers,onnx,onnx_ir,rich", ("export", "qwen3-asr-0.6b"), "export"),
        ("onnx", ("quantize", "/nowhere", "--recipe", "int8"), "quantize"),
        ("rich", ("quantize", "--help"), "quantize"),
    ],
)
def test_a_missing_package_is_one_sentence_with_the_remedy(
    modules: str, arguments: tuple[str, ...], extra: str
) -> None:
    result = run_without(modules, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert repr(modules.partition(",")[0]) in result.stderr
    assert f"pip install 'asr-deploy[{extra}]'" in result.stderr


def test_other_commands_run_without_optional_packages() -> None:
    """Commands of the runtime import neither ``export`` nor ``quantize``; ``export --help`` needs no torch."""
    missing = "torch,transformers,onnx,onnx_ir,onnxscript,huggingface_hub,jiwer"
    assert run_without(f"{missing},export,quantize", "--help").returncode == 0
    result = run_without(f"{missing},export,quantize", "transcribe", DATA / "en-1.wav", "--model", ARTIFACT)
    assert (result.returncode, result.stdout, result.stderr) == (0, "It was very quiet in Madrid.\n", "")
    for arguments in (("export", "--help"), ("export", "--list"), ("quantize", "--help")):
        assert run_without(missing, *arguments).returncode == 0


def test_every_shipped_package_is_typed_and_in_the_wheel() -> None:
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(packages) == {"asr_deploy", "export", "quantize", "runtime"}
    assert all((REPOSITORY / package / "py.typed").is_file() for package in packages)
    module, _, name = SCRIPT.partition(":")
    assert callable(getattr(import_module(module), name))


def test_the_console_script_runs_the_commands() -> None:
    module, _, name = SCRIPT.partition(":")
    code = f"import sys; from {module} import {name}; sys.argv[1:] = ['--version']; {name}()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"asr-deploy {__version__}\n", "")
