"""Run the command line: ``python -m quantize``."""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.cli.process import run

    run("quantize.cli")
else:
    from quantize.cli import app

    __all__ = ["app"]
