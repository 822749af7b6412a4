"""Write SubRip subtitles: ``python examples/subtitles.py talk.wav talk.srt``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from runtime import AsrError, Transcriber
from runtime.writers import as_srt


def main() -> None:
    """Transcribe with short segments, one subtitle for each."""
    parser = argparse.ArgumentParser(description="Write SubRip subtitles of an audio file.")
    parser.add_argument("audio", type=Path)
    parser.add_argument("subtitles", type=Path)
    parser.add_argument("--model", type=Path, help="artifact folder; default: the bundled model")
    parser.add_argument("--seconds", type=float, default=6.0, help="longest subtitle, in seconds")
    arguments = parser.parse_args()

    def show_progress(done: float, total: float) -> None:
        sys.stderr.write(f"{done:.0f} of {total:.0f} s\n")

    try:
        transcriber = Transcriber.from_artifact(arguments.model, segment_seconds=arguments.seconds)
        transcript = transcriber.transcribe(arguments.audio, on_progress=show_progress)
    except AsrError as error:
        parser.exit(2, f"error: {error}\n")
    arguments.subtitles.write_text(as_srt(transcript), encoding="utf-8")


if __name__ == "__main__":
    main()
