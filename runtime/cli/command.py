"""A command of the command line whose messages about wrong values are plain sentences."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand

# What pydantic, which Typer converts values with, puts before the sentence.
_PREFIX = "Value error, "


class Command(TyperCommand):
    """Pass as ``cls`` to ``Typer.command``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments.

        Raises:
            typer.BadParameter: a value is wrong.
        """
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix(_PREFIX)
            raise
