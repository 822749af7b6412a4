"""Write ``docs/reference/cli.md`` from the ``--help`` of every command: ``python -m tools.cli_reference``.

With ``--check`` nothing is written, and the exit code is 1 when the stored page differs from what the commands print.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import typer
from typer.testing import CliRunner

import export.__main__
import quantize.__main__
import runtime.__main__
from runtime.host.files import write_atomically

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "cli.md"
APPS = {
    "python -m runtime": runtime.__main__.app,
    "python -m export": export.__main__.app,
    "python -m quantize": quantize.__main__.app,
}
INTRODUCTION = """\
# Command line

This page is written by `python -m tools.cli_reference` from the `--help` of every command. A test compares the two.

The script `asr-deploy` has all commands of the three packages. `asr-deploy transcribe` is
`python -m runtime transcribe`; `asr-deploy export` is `python -m export`; `asr-deploy quantize` is
`python -m quantize`.

Results go to standard output, everything else to standard error. The exit code is 0 on success, 2 after bad input or
when standard output cannot be written (one sentence on standard error says what to do), and 130 after an interrupt.
`transcribe` and `batch` continue after a bad file; their exit code is then 2.
"""
# Columns of the help texts; click breaks lines there.
WIDTH = 100


def render_page() -> str:
    """Return the page as Markdown: a section for each command, with its help."""
    sections = [INTRODUCTION]
    for program, app in APPS.items():
        command = typer.main.get_command(app)
        sections.append(_section(2, program, app, []))
        # A group has commands; a single command has none.
        sections += [_section(3, program, app, [name]) for name in getattr(command, "commands", {})]
    return "\n".join(sections)


def _section(level: int, program: str, app: typer.Typer, words: list[str]) -> str:
    title = " ".join([program, *words])
    return f"{'#' * level} `{title}`\n\n```text\n{help_text(program, app, words)}\n```\n"


def help_text(program: str, app: typer.Typer, words: list[str]) -> str:
    """Return what ``program words --help`` prints, in :data:`WIDTH` columns."""
    result = CliRunner().invoke(app, [*words, "--help"], prog_name=program, terminal_width=WIDTH, color=False)
    if result.exit_code:
        raise RuntimeError(f"{program} {' '.join(words)} --help failed: {result.output}")
    return "\n".join(line.rstrip() for line in result.stdout.strip().splitlines())


def main() -> int:
    """Write or check the page; return the exit code."""
    parser = argparse.ArgumentParser(description="Write docs/reference/cli.md from the --help of every command.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when the page is out of date")
    page = render_page()
    if not parser.parse_args().check:
        write_atomically(PAGE, page.encode())
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page:
        return 0
    sys.stderr.write(f"{PAGE}: out of date; run: python -m tools.cli_reference\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
