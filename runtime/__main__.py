"""Run the runtime's commands: ``python -m runtime COMMAND``."""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.cli.process import run

    run("runtime.cli.app")
else:
    from runtime.cli.app import app

    __all__ = ["app"]
