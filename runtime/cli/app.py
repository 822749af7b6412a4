"""The runtime's commands as one Typer application."""

from __future__ import annotations

import typer

from runtime.cli import batch, benchmark, evaluate, info, prepare, providers, serve, stream, transcribe


def add_commands(app: typer.Typer) -> None:
    """Register the nine commands of the runtime with ``app``, in the order in which ``--help`` lists them."""
    app.command("transcribe")(transcribe.transcribe)
    app.command("batch")(batch.batch)
    app.command("stream")(stream.stream)
    app.command("serve")(serve.serve)
    app.command("info")(info.info)
    app.command("prepare")(prepare.prepare_model)
    app.command("providers")(providers.providers)
    app.command("evaluate")(evaluate.evaluate)
    app.command("benchmark")(benchmark.benchmark)


app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Recognize speech with ONNX Runtime.",
)
add_commands(app)
