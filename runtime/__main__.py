"""``python -m runtime``: transcribe files and live speech, serve, say what a model is, measure how well it works."""

from __future__ import annotations

import typer

from runtime.cli import batch, benchmark, evaluate, info, prepare, providers, serve, stream, transcribe

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Speech recognition with ONNX Runtime.",
)
app.command()(transcribe.transcribe)
app.command()(batch.batch)
app.command()(stream.stream)
app.command()(serve.serve)
app.command()(info.info)
app.command("prepare")(prepare.prepare_model)
app.command()(providers.providers)
app.command()(evaluate.evaluate)
app.command()(benchmark.benchmark)


if __name__ == "__main__":
    app()
