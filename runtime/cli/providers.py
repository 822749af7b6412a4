"""``providers``: what this machine has."""

from __future__ import annotations

import typer

from runtime.description import describe_machine


def providers() -> None:
    """List the execution providers that this onnxruntime was built with, and how to get the others.

    Whether one becomes active also depends on its drivers: `transcribe --provider NAME` fails if it does not.
    """
    typer.echo(describe_machine())
