"""Run the runtime's commands: ``python -m runtime COMMAND``."""

from __future__ import annotations

from runtime.cli.app import app

__all__ = ["app"]

if __name__ == "__main__":
    app()
