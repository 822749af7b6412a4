"""User actions on the server's page, and server events for the scripted server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page, expect

from tests.conftest import DATA
from tests.helpers.browser import ScriptedServer

RECORDING = DATA / "en-1.wav"
SPEECH = "conversation.item.input_audio_transcription"
TEXTS = [
    (0.258, 2.067, "It was very quiet in Madrid."),
    (3.4, 3.4, "Fish & chips, <b>hot</b>"),
    (3600.5, 3661.0004, "two\nlines"),
    (3700.0, 3701.0, ""),
]

Visit = Callable[..., Page]


def segments(count: int = len(TEXTS)) -> list[dict[str, Any]]:
    """Return the events of the first ``count`` texts."""
    return [
        {
            "type": "transcript.text.segment",
            "id": index,
            "start": start,
            "end": end,
            "text": text,
            "language": "english",
        }
        for index, (start, end, text) in enumerate(TEXTS[:count])
    ]


def done(text: str) -> dict[str, Any]:
    return {"type": "transcript.text.done", "text": text}


def speech_started(item: str) -> dict[str, Any]:
    return {"type": "input_audio_buffer.speech_started", "item_id": item}


def committed(item: str) -> dict[str, Any]:
    return {"type": "input_audio_buffer.committed", "item_id": item}


def partial(item: str, stable: str, unstable: str) -> dict[str, Any]:
    times = {"start": 0.2, "end": 1.2, "language": "English"}
    return {"type": f"{SPEECH}.partial", "item_id": item, "stable": stable, "unstable": unstable, **times}


def completed(item: str, text: str, start: float, end: float) -> dict[str, Any]:
    times = {"start": start, "end": end, "language": "English"}
    return {"type": f"{SPEECH}.completed", "item_id": item, "transcript": text, **times}


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def choose(page: Page, path: Path = RECORDING) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a file").click()
    chooser.value.set_files(path)


def shown(page: Page) -> list[str]:
    return page.get_by_role("list", name="Segments").locator("p").all_inner_texts()


def transcribed(page: Page, server: ScriptedServer) -> None:
    """Transcribe a file with all texts and wait for the result."""
    server.before, server.after = segments(), [done("It was very quiet in Madrid. And so on.")]
    server.go_on.set()
    choose(page)
    expect(page.get_by_role("status")).to_have_text("Done: 3 segments.")


def listen_to(page: Page) -> None:
    """Use the microphone until the transcript has a row, then stop."""
    page.get_by_role("button", name="Use the microphone").click()
    expect(page.locator(".segment").first).to_be_visible()
    page.get_by_role("button", name="Stop and keep the transcript").click()
