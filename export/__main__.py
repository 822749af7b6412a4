"""``python -m export NAME``: a checkpoint becomes an artifact that the runtime opens."""

from __future__ import annotations

import logging
import os
import resource
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from export.checkpoints import CHECKPOINTS, locate
from export.errors import CheckpointNotFoundError
from export.report import Report
from runtime.errors import AsrError

_KNOWN = "; ".join(f"{checkpoint.name}: {checkpoint.summary}" for checkpoint in CHECKPOINTS.values())

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    name: Annotated[str, typer.Argument(metavar="NAME", help=_KNOWN)],
    checkpoint: Annotated[
        Path | None, typer.Option(help="A local checkpoint folder, of either layout, in place of the named source.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="A commit, tag or branch on the hub in place of the pinned commit.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The artifact's folder. [default: artifacts/NAME]")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what the libraries underneath report.")] = False,
) -> None:
    """Export a checkpoint to ONNX graphs with tokenizer and manifest."""
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, format="%(name)s: %(message)s")
    # Progress bars of the libraries would mix with ours; they write where no terminal is, too.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    began = time.monotonic()
    try:
        if name not in CHECKPOINTS:
            raise CheckpointNotFoundError(f"unknown model {name!r}; known are {', '.join(CHECKPOINTS)}")
        known = CHECKPOINTS[name]
        folder = locate(known, checkpoint, revision)
        from export.package import export_artifact  # imports torch: seconds that a wrong name need not cost

        with Report() as report:
            artifact = export_artifact(known, folder, out or Path("artifacts") / name, report)
    except AsrError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except ImportError as error:
        typer.echo(
            f"error: exporting needs the package {error.name!r}, which is not installed: "
            "pip install 'asr-deploy[export]'",
            err=True,
        )
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("error: interrupted; nothing was written", err=True)
        raise typer.Exit(130) from None
    for graph, result in artifact.manifest.parity.items():
        report.console.print(f"{graph}: at most {result.max_abs_difference:.1e} from the reference")
    # ru_maxrss counts kilobytes on Linux and bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    report.console.print(
        f"{artifact.size / 1e6:.1f} MB in {time.monotonic() - began:.0f} s, peak resident memory {peak / 1e9:.1f} GB"
    )
    typer.echo(artifact.path)


if __name__ == "__main__":
    app()
