"""Feed an audio file in chunks, as if it were live: ``python examples/live_stream.py talk.wav``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import soundfile

from runtime import AsrError, Transcriber
from runtime.pipeline.events import Event, Final, Partial, Speech


def show(events: Iterable[Event]) -> None:
    """Print one line for each event; the part after | may still change."""
    for event in events:
        match event:
            case Speech():
                print(f"{event.start:6.2f} s: speech")
            case Partial():
                print(f"{event.end:6.2f} s: {event.stable}|{event.unstable}")
            case Final():
                print(f"{event.result.end:6.2f} s: final: {event.result.text}")


def main() -> None:
    """Read the file chunk by chunk and print events."""
    parser = argparse.ArgumentParser(description="Feed an audio file in chunks, as if it were live.")
    parser.add_argument("audio", type=Path)
    parser.add_argument("--model", type=Path, help="artifact folder; default: the bundled model")
    parser.add_argument("--chunk", type=float, default=0.1, help="seconds of a chunk")
    arguments = parser.parse_args()

    try:
        transcriber = Transcriber.from_artifact(arguments.model)
        with soundfile.SoundFile(arguments.audio) as file:
            stream = transcriber.stream(sample_rate=file.samplerate)
            for samples in file.blocks(int(arguments.chunk * file.samplerate), dtype="float32", always_2d=True):
                show(stream.feed(samples.mean(axis=1)))  # a stream takes mono samples
        show(stream.finish())
    except (AsrError, soundfile.LibsndfileError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
