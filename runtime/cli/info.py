"""``info``: what a model is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from runtime.artifact import open_artifact
from runtime.cli.common import OutputFormat, guarded
from runtime.description import describe
from runtime.prepared import prepared_graph
from runtime.providers import ProviderSpec
from runtime.transcriber import default_model


def info(
    model: Annotated[
        Path | None, typer.Argument(help="The model's folder. [default: the small model that comes along]")
    ] = None,
    format: Annotated[OutputFormat, typer.Option(help="A summary, or the manifest as JSON.")] = OutputFormat.txt,
) -> None:
    """Say what a model is: where it came from, what it can do, what was checked."""
    with guarded():
        artifact = open_artifact(model if model is not None else default_model())
        prepared = all(prepared_graph(artifact, role, [ProviderSpec()]) for role in artifact.manifest.graphs)
    if format is OutputFormat.json:
        typer.echo(msgspec.json.encode(artifact.manifest))
    else:
        typer.echo(describe(artifact.manifest, artifact.size, prepared=prepared))
