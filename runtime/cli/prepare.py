"""``prepare``: make a model load faster, and smaller in memory, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runtime.cli.common import ModelOption, guarded
from runtime.model.artifact import open_artifact
from runtime.ort.prepacked import FOLDER_VARIABLE, prepack, remove_prepacked
from runtime.transcriber import default_model


def prepare_model(
    model: ModelOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help=f"Folder to write to, and to name in {FOLDER_VARIABLE} afterwards. [default: the user's cache]",
        ),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Delete what was prepared of this model instead.")] = False,
) -> None:
    """Write a model's graphs with weights in the layout that this machine's processor reads.

    Loading maps them instead of packing the weights anew: faster, and in less memory that several processes share.
    Takes about twice the model's size on the disk. What another processor or another onnxruntime made is never used.
    """
    with guarded():
        artifact = open_artifact(model if model is not None else default_model())
        if remove:
            freed = remove_prepacked(artifact, out)
            typer.echo(f"freed {freed / 1e6:.1f} MB" if freed else "nothing was prepared")
            return
        made = prepack(artifact, out, on_progress=lambda role: typer.echo(f"preparing the {role} …", err=True))
    for graph in made:
        state = "prepared" if graph.new else "was prepared"
        typer.echo(f"{graph.role}: {state}, {graph.size / 1e6:.1f} MB in {graph.path.parent}")
