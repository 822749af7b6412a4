"""Measure a cold start of the command line: ``python -m runtime.cli.cold_start``.

``benchmark`` starts this module as a new process and measures the time until its first line. The module imports the
same modules as a command does, so that their import time is part of the cold start. Nothing imports it: ``runtime.cli``
imports ``runtime.bench``, and an import in the other direction would close a circle.
"""

from __future__ import annotations

import sys

import msgspec

import runtime.cli.app  # noqa: F401 (its import time is part of a cold start)
from runtime.bench.child import ColdJob, open_transcriber, run_on_stdin, transcribe_clip


def main() -> int:
    """Read a :class:`ColdJob` as JSON from standard input and write the clip's text to standard output.

    Returns:
        0, or 2 after one sentence on standard error.
    """
    return run_on_stdin(_transcribe)


def _transcribe(data: bytes) -> bytes:
    job = msgspec.json.decode(data, type=ColdJob)
    (transcript,) = transcribe_clip(open_transcriber(job.setup), job.clip, 1, job.new_tokens)
    return transcript.text.encode()


if __name__ == "__main__":
    sys.exit(main())
