"""Use the server with OpenAI's client.

Start a server with ``python -m runtime serve``, then run ``python examples/openai_client.py talk.wav``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from openai import OpenAI, OpenAIError


def main() -> None:
    """Print the models, a transcription, and the same transcription as a stream of events."""
    parser = argparse.ArgumentParser(description="Use the server with OpenAI's client.")
    parser.add_argument("audio", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--key", default="none", help="one of the server's API keys, if it has any")
    arguments = parser.parse_args()

    client = OpenAI(base_url=arguments.url, api_key=arguments.key)
    try:
        names = [model.id for model in client.models.list()]
    except OpenAIError as error:  # no server at this address, or a wrong key
        parser.exit(2, f"error: {arguments.url}: {error}\n")
    print("models:", ", ".join(names))

    with arguments.audio.open("rb") as file:
        print("text:", client.audio.transcriptions.create(model=names[0], file=file).text)

    with arguments.audio.open("rb") as file:
        print("stream: ", end="")
        for event in client.audio.transcriptions.create(model=names[0], file=file, stream=True):
            if event.type == "transcript.text.delta":
                print(event.delta, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
