"""Transcribe one audio file: ``python examples/transcribe_file.py talk.wav``."""

from __future__ import annotations

import argparse
from pathlib import Path

from runtime import AsrError, Transcriber


def main() -> None:
    """Print the text, then each segment with its times and confidence."""
    parser = argparse.ArgumentParser(description="Transcribe one audio file.")
    parser.add_argument("audio", type=Path)
    parser.add_argument("--model", type=Path, help="artifact folder; default: the bundled model")
    parser.add_argument("--language", help="English name or code; default: detect it")
    parser.add_argument("--context", default="", help="hot words or free text")
    arguments = parser.parse_args()

    try:
        transcriber = Transcriber.from_artifact(arguments.model)
        transcript = transcriber.transcribe(arguments.audio, arguments.language, arguments.context)
    except AsrError as error:  # a missing file, an unknown language, a damaged model, ...
        parser.exit(2, f"error: {error}\n")

    print(transcript.text)
    for segment in transcript.segments:
        print(f"{segment.start:7.2f} {segment.end:7.2f}  {segment.confidence:.2f}  {segment.language}  {segment.text}")


if __name__ == "__main__":
    main()
