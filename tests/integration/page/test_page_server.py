"""Tests of the page with the real server and the small model: a file, and the same recording as a microphone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from runtime import Transcriber
from runtime.server.app import make_app
from runtime.server.limits import Limits
from runtime.server.metrics import Metrics
from runtime.server.scheduling.service import Service
from runtime.server.settings import Settings
from tests.conftest import ARTIFACT, DATA
from tests.helpers.browser import PATIENCE, chromium, serving

RECORDING = DATA / "en-1.wav"
KEY = "open-sesame"


def refused(text: str) -> bool:
    """Return whether the browser logged a refused request, which a test provokes."""
    return text.startswith("Failed to load resource") and "400" in text


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """Page of a server with a key, which is entered. At the end, there must be no errors."""
    metrics = Metrics()
    service = Service("tiny", Transcriber.from_artifact(ARTIFACT), Limits(), metrics)
    app = make_app({"tiny": service}, Settings(keys=(KEY,)), metrics)
    problems: list[str] = []
    with serving(app) as address, chromium(RECORDING) as browser:
        context = browser.new_context(permissions=["microphone"])
        context.set_default_timeout(PATIENCE * 1000)
        page = context.new_page()
        page.goto(address)
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Use key").click()
        expect(page.get_by_label("API key")).to_be_hidden()
        page.on("console", lambda message: None if refused(message.text) else problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        yield page
        context.close()
    assert problems == []


@pytest.fixture(scope="module")
def text(samples: list[dict[str, Any]]) -> str:
    return str(next(sample["text"] for sample in samples if sample["file"] == RECORDING.name))


@pytest.mark.slow
def test_a_file(page: Page, text: str) -> None:
    assert "English" in page.locator("#languages option").all_inner_texts()
    page.set_input_files("#file", RECORDING)
    expect(page.get_by_role("status")).to_have_text("Done: 1 segment.", timeout=PATIENCE * 1000)
    expect(page.get_by_role("list", name="Segments").locator("p")).to_have_text(text)
    expect(page.get_by_role("list", name="Segments").locator("p")).to_have_attribute("lang", "en")


@pytest.mark.slow
def test_the_microphone(page: Page, text: str) -> None:
    page.get_by_role("button", name="Use the microphone").click()
    # The segment opens during speech. Whether it has text yet depends on the speed of the machine.
    expect(page.locator("#partials .segment")).to_be_visible(timeout=PATIENCE * 1000)
    # The silence after the recording ends the segment.
    expect(page.get_by_role("list", name="Segments").locator("p")).to_have_text(text, timeout=PATIENCE * 1000)
    page.get_by_role("button", name="Stop and keep the transcript").click()
    expect(page.get_by_role("status")).to_have_text("Done: 1 segment.", timeout=PATIENCE * 1000)
    expect(page.get_by_role("alert")).to_be_empty()


@pytest.mark.slow
def test_errors_are_shown(page: Page) -> None:
    page.get_by_label("Language").fill("Klingon")
    page.set_input_files("#file", RECORDING)
    expect(page.get_by_role("alert")).to_have_text(re.compile("Klingon"))
    page.get_by_role("button", name="Use the microphone").click()
    expect(page.get_by_role("status")).to_have_text(re.compile("No speech"))
    expect(page.get_by_role("alert")).to_have_text(re.compile("Klingon"))
