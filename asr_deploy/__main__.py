"""Run all commands: ``python -m asr_deploy COMMAND``, and the console script ``asr-deploy``."""

from __future__ import annotations

from runtime.host import interrupts


def main() -> None:
    """Run the command line of this process, and end it."""
    interrupts.end_at_once()
    from runtime.cli.process import run

    run("asr_deploy.cli")


if __name__ == "__main__":
    main()
