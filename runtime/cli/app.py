"""The runtime's commands as one Typer application."""

from __future__ import annotations

import typer

from runtime.cli import batch, benchmark, evaluate, info, prepare, providers, serve, stream, transcribe
from runtime.cli.command import Command


def add_commands(app: typer.Typer) -> None:
    """Register the nine commands of the runtime with ``app``, in the order in which ``--help`` lists them."""
    app.command("transcribe", cls=Command)(transcribe.transcribe)
    app.command("batch", cls=Command)(batch.batch)
    app.command("stream", cls=Command)(stream.stream)
    app.command("serve", cls=Command)(serve.serve)
    app.command("info", cls=Command)(info.info)
    app.command("prepare", cls=Command)(prepare.prepare_model)
    app.command("providers", cls=Command)(providers.providers)
    app.command("evaluate", cls=Command)(evaluate.evaluate)
    app.command("benchmark", cls=Command)(benchmark.benchmark)


app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Recognize speech with ONNX Runtime.",
)
add_commands(app)
