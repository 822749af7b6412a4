"""``python -m runtime``: transcribe files, one or thousands, serve, say what a model is, measure how well."""

from __future__ import annotations

import typer

from runtime.cli import batch, benchmark, evaluate, info, prepare, providers, serve, transcribe

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Speech recognition with ONNX Runtime.",
)
app.command()(transcribe.transcribe)
app.command()(batch.batch)
app.command()(info.info)
app.command("prepare")(prepare.prepare_model)
app.command()(providers.providers)
app.command()(evaluate.evaluate)
app.command()(benchmark.benchmark)
app.command()(serve.serve)


if __name__ == "__main__":
    app()
