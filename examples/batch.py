"""Transcribe many files to JSON lines: ``python examples/batch.py results.jsonl recordings/*.wav``.

A second run skips the files that are in the output already. The command ``python -m runtime batch`` does more: it also
continues within a long file.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from runtime import Request, Transcriber


def main() -> None:
    """Transcribe the files that the output does not have yet; exit with 2 when one failed."""
    parser = argparse.ArgumentParser(description="Transcribe many files to JSON lines.")
    parser.add_argument("output", type=Path)
    parser.add_argument("audio", type=Path, nargs="+")
    parser.add_argument("--model", type=Path, help="artifact folder; default: the bundled model")
    arguments = parser.parse_args()

    lines = arguments.output.read_text(encoding="utf-8").splitlines() if arguments.output.exists() else []
    finished = {json.loads(line)["audio"] for line in lines}
    pending = [path for path in arguments.audio if str(path) not in finished]
    transcriber = Transcriber.from_artifact(arguments.model)
    seconds, failed = 0.0, 0

    def show_progress(new_seconds: float) -> None:
        nonlocal seconds
        seconds += new_seconds
        sys.stderr.write(f"{seconds:.1f} s of audio\n")

    with arguments.output.open("a", encoding="utf-8") as output:
        # Segments of all files are decoded together; outcomes arrive as files finish, not in order.
        for outcome in transcriber.transcribe_many(map(Request, pending), on_progress=show_progress):
            if outcome.transcript is None:
                failed += 1
                sys.stderr.write(f"error: {outcome.error}\n")
                continue
            line = {"audio": str(pending[outcome.index]), "text": outcome.transcript.text}
            output.write(json.dumps(line, ensure_ascii=False) + "\n")
            output.flush()
    raise SystemExit(2 if failed else 0)


if __name__ == "__main__":
    main()
