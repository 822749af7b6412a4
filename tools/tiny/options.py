"""Folders and command-line options that the makers of all small checkpoints share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

REPOSITORY = Path(__file__).resolve().parents[2]
WORK = REPOSITORY / "build" / "tiny"
CHECKPOINTS = REPOSITORY / "artifacts" / "checkpoints"
LICENCE = REPOSITORY / "LICENSE"

Work = Annotated[Path, typer.Option(help="Folder for corpora and training states; a second run continues there.")]
Checkpoint = Annotated[Path, typer.Option(help="Folder of the checkpoint.")]
Threads = Annotated[int, typer.Option(help="Threads of torch and of the runtime.")]
Fresh = Annotated[int, typer.Option(help="Number of a held-out set with other seeds; 0 is the set of the model card.")]
