"""The ``asr-deploy`` console script: the runtime's commands, ``export`` and ``quantize``.

``export`` and ``quantize`` are imported when their command runs, so that ``asr-deploy --help`` and the runtime's
commands never import torch or onnx.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Annotated

import typer

from runtime.cli.app import add_commands
from runtime.version import __version__

_BAD_INPUT = 2
# Pass every argument on, `--help` too.
_FORWARD = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
# These options of `export` work without torch.
_WITHOUT_TORCH = ("--help", "--list")

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Speech recognition without PyTorch: transcribe audio with ONNX models; export and quantize checkpoints.",
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"asr-deploy {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Declare the options that stand before a command."""


add_commands(app)


@app.command("export", context_settings=_FORWARD, add_help_option=False)
def export(context: typer.Context) -> None:
    """Export a checkpoint to an artifact. Needs asr-deploy[export]; `export --help` lists its options."""
    required = () if any(option in context.args for option in _WITHOUT_TORCH) else ("torch", "transformers", "onnx")
    _forward(context, "export", "exporting", required)


@app.command("quantize", context_settings=_FORWARD, add_help_option=False)
def quantize(context: typer.Context) -> None:
    """Quantize an artifact. Needs asr-deploy[quantize]; `quantize --help` lists its options."""
    _forward(context, "quantize", "quantizing", () if "--help" in context.args else ("onnx", "onnx_ir"))


def _forward(context: typer.Context, package: str, activity: str, required: tuple[str, ...]) -> None:
    """Run the command line of ``package`` with the remaining arguments; its exit code becomes that of the process.

    Args:
        context: has the arguments after the command's name.
        package: ``export`` or ``quantize``; also the name of the extra that installs what it needs.
        activity: the verb for the message about a missing package.
        required: modules that must be installed.

    Raises:
        typer.Exit: a required module is not installed; the code is 2.
    """
    missing = next((name for name in required if not _is_installed(name)), None)
    if missing is None:
        try:
            command = importlib.import_module(f"{package}.cli")
        except ImportError as error:
            missing = error.name or package
        else:
            command.app(context.args, prog_name=context.command_path)
            return
    typer.echo(
        f"error: {activity} needs the package {missing!r}, which is not installed: pip install 'asr-deploy[{package}]'",
        err=True,
    )
    raise typer.Exit(_BAD_INPUT)


def _is_installed(module: str) -> bool:
    """Whether a top-level module can be found; the module is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # ValueError: a stub in sys.modules without a spec
        return False
