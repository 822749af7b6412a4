"""Run all commands: ``python -m asr_deploy COMMAND``."""

from __future__ import annotations

from asr_deploy.cli import app

if __name__ == "__main__":
    app()
