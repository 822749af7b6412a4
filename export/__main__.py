"""Run the command line: ``python -m export``."""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.cli.process import run

    run("export.cli")
else:
    from export.cli import app

    __all__ = ["app"]
