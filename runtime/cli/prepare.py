"""The command ``prepare``: write prepacked graphs, which load faster and share memory between processes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runtime.cli.common import ModelOption, guarded
from runtime.model.artifact import open_artifact
from runtime.model.bundled import default_model
from runtime.ort.prepacked import FOLDER_VARIABLE, prepack, remove_prepacked


def prepare_model(
    model: ModelOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help=f"Folder to write to; set {FOLDER_VARIABLE} to it afterwards. [default: the user's cache]",
        ),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Delete the prepared graphs of this model instead.")] = False,
) -> None:
    """Write a model's graphs with weights prepacked for this machine's processor.

    Prepacked weights are mapped into memory at load time: loading is faster, and several processes share the memory.
    Takes about twice the model's size on disk. Graphs that were prepared for another processor or by another version
    of onnxruntime are not used.
    """
    with guarded():
        artifact = open_artifact(model if model is not None else default_model())
        if remove:
            freed = remove_prepacked(artifact, out)
            typer.echo(f"freed {freed / 1e6:.1f} MB" if freed else "nothing was prepared")
            return
        graphs = prepack(artifact, out, on_progress=lambda role: typer.echo(f"preparing the {role} …", err=True))
    for graph in graphs:
        state = "prepared" if graph.new else "was prepared"
        typer.echo(f"{graph.role}: {state}, {graph.size / 1e6:.1f} MB in {graph.path.parent}")
