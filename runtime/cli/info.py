"""The command ``info``: describe a model, or the capabilities of each family."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from runtime.cli.common import OutputFormat, guarded
from runtime.cli.describe import describe, describe_families
from runtime.errors import ArtifactNotFoundError, OptionError
from runtime.families import FAMILIES, capabilities_of, declared
from runtime.model.artifact import open_artifact
from runtime.model.bundled import default_model
from runtime.ort.prepacked import prepacked_graph
from runtime.ort.providers import ProviderSpec


def info(
    folder: Annotated[
        Path | None,
        typer.Argument(help="Folder of the model. [default: describe the families instead]", metavar="[MODEL]"),
    ] = None,
    model: Annotated[Path | None, typer.Option("--model", help="Folder of the model, instead of the argument.")] = None,
    format: Annotated[
        OutputFormat, typer.Option(help="Print a summary, or JSON: the manifest, size and capabilities.")
    ] = OutputFormat.txt,
) -> None:
    """Describe a model: its source, capabilities and checks. Without a model, list the capabilities of each family."""
    with guarded():
        if folder is not None and model is not None:
            raise OptionError(f"two models are given, {folder} and {model}; give one")
        chosen = folder if folder is not None else model
        typer.echo(_families(format) if chosen is None else _model(chosen, format))


def _families(format: OutputFormat) -> str:
    if format is OutputFormat.json:
        return msgspec.json.encode({"families": {family: declared(family) for family in FAMILIES}}).decode()
    try:
        bundled = str(default_model())
    except ArtifactNotFoundError as error:
        bundled = f"none ({error})"
    return f"{describe_families()}\nbundled model: {bundled}"


def _model(folder: Path, format: OutputFormat) -> str:
    artifact = open_artifact(folder)
    capabilities = capabilities_of(artifact)
    prepacked = all(prepacked_graph(artifact, role, [ProviderSpec()]) for role in artifact.manifest.graphs)
    if format is OutputFormat.json:
        fields = {"bytes": artifact.size, "capabilities": capabilities, "prepared": prepacked}
        return msgspec.json.encode(msgspec.structs.asdict(artifact.manifest) | fields).decode()
    return describe(artifact.manifest, artifact.size, capabilities, prepacked=prepacked)
