"""Compare models and execution providers on one file.

``python examples/compare.py tests/data/en-3.wav MODEL MODEL@PROVIDER ...``, such as
``artifacts/qwen3-asr-0.6b artifacts/qwen3-asr-0.6b-int8 artifacts/qwen3-asr-0.6b@openvino``. The first one is the
reference.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from runtime import AsrError, Transcriber


def main() -> None:
    """Print one line for each model: size, real-time factor, share of equal tokens, text."""
    parser = argparse.ArgumentParser(description="Compare models and execution providers on one file.")
    parser.add_argument("audio", type=Path)
    parser.add_argument("models", nargs="+", metavar="MODEL[@PROVIDER]")
    arguments = parser.parse_args()

    reference: list[int] = []
    for entry in arguments.models:
        folder, _, provider = entry.partition("@")
        try:
            transcriber = Transcriber.from_artifact(folder, provider=provider or "cpu")
            transcriber.transcribe(arguments.audio)  # the first run also allocates memory
            transcript = transcriber.transcribe(arguments.audio)
        except AsrError as error:
            parser.exit(2, f"error: {error}\n")
        tokens = [token for segment in transcript.segments for token in segment.tokens]
        reference = reference or tokens
        equal = sum(left == right for left, right in zip(tokens, reference, strict=False))
        factor = transcript.timings.total / transcript.duration
        print(f"{transcript.model} on {transcript.provider}, {transcriber.artifact.size / 1e6:.1f} MB")
        print(f"  RTF {factor:.3f}, {equal} of {len(reference)} tokens equal: {transcript.text}")


if __name__ == "__main__":
    main()
