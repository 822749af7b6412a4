"""Tests of the server's page: keyboard, screen reader, and contrast."""

from __future__ import annotations

import re

import numpy as np
import pytest
from playwright.sync_api import Page, expect
from starlette.responses import JSONResponse

from tests.helpers.browser import ScriptedServer
from tests.helpers.page_steps import (
    Visit,
    choose,
    committed,
    completed,
    partial,
    transcribed,
)


def test_tab_reaches_all_controls(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    transcribed(page, server)
    page.locator("h1").click()  # start of the Tab order
    names = []
    for _ in range(11):
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        names.append(focused.get_attribute("aria-label") or focused.get_attribute("id"))
        assert focused.evaluate("it => getComputedStyle(it).outlineStyle") == "solid"
    assert names == [
        "choose",
        "microphone",
        "language",
        "model",
        "context",
        "job-action",
        "copy",
        *(f"Download {name}" for name in ("TXT", "SRT", "VTT", "JSON")),
    ]
    with page.expect_download():
        page.keyboard.press("Space")


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_file_is_chosen_by_keyboard(visit: Visit, key: str) -> None:
    page = visit()
    with page.expect_file_chooser():  # the chooser is opened inside
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name="Choose a file")).to_be_focused()
        page.keyboard.press(key)


def test_accessibility_tree(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    transcribed(page, server)
    expect(page.locator("body")).to_match_aria_snapshot("""
        - banner:
          - heading "Transcribe" [level=1]
        - main:
          - region "Audio":
            - button "Choose a file or drop it anywhere on this page"
            - button "Use the microphone text appears as you speak"
          - region "Options":
            - combobox "Language"
            - combobox "Model":
              - option "small" [selected]
              - option "large"
            - textbox "Context"
          - alert
          - region "en-1.wav":
            - heading "en-1.wav" [level=2]
            - button "Transcribe again"
            - img "Waveform of en-1.wav, 0:02"
            - status: "Done: 3 segments."
          - region "Transcript":
            - heading "Transcript" [level=2]
            - group "Copy or download":
              - button "Copy"
              - button "Download TXT"
              - button "Download SRT"
              - button "Download VTT"
              - button "Download JSON"
            - list "Segments":
              - listitem:
                - paragraph: It was very quiet in Madrid.
              - listitem:
                - paragraph: "Fish & chips, <b>hot</b>"
              - listitem:
                - paragraph: two lines
    """)
    expect(page.get_by_role("list", name="Segments")).to_have_attribute("aria-live", "polite")
    assert page.locator("#partials").evaluate("it => it.closest('[aria-live], [role=status], [role=alert]')") is None
    assert page.locator("#clock").evaluate("it => it.closest('[aria-live], [role=status], [role=alert]')") is None


def test_contrast_of_light_and_dark(visit: Visit, server: ScriptedServer) -> None:
    pictures = {}
    for scheme in ("light", "dark"):
        page = visit(color_scheme=scheme, reduced_motion="reduce", viewport={"width": 360, "height": 800})
        server.go_on.clear()
        server.refusal = JSONResponse({"error": {"message": "Too long."}}, 413)
        choose(page)
        expect(page.get_by_role("alert")).to_have_text("Too long.")
        ratios = {".alert": contrast(page, ".alert")}
        server.refusal = None
        transcribed(page, server)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        server.before = [partial("a", "It was", " quite")]
        server.after = [committed("a"), completed("a", "It was quiet.", 0, 1)]
        page.get_by_role("button", name="Use the microphone").click()
        expect(page.locator(".unstable")).to_have_text(" quite")
        for css in ("h1", ".lead", "label", "#status", ".clock", ".segment p", ".unstable", ".times", "input"):
            ratios[css] = contrast(page, css)
        for css in ("#microphone .title", "#microphone .hint"):
            ratios[css] = contrast(page, css)
        pictures[scheme] = page.screenshot()
        page.get_by_role("button", name="Stop and keep the transcript").click()
        expect(page.get_by_role("status")).to_have_text("Done: 1 segment.")
        for css in ("#choose .hint", "#microphone .hint", "#copy", "#job-name", "#transcript-title"):
            ratios[f"{css} at rest"] = contrast(page, css)
        assert {css: ratio for css, ratio in ratios.items() if ratio < 4.5} == {}
        server.refusal = JSONResponse({})  # the browser has logged the first one
    assert pictures["light"] != pictures["dark"]


def contrast(page: Page, css: str) -> float:
    """Return the WCAG contrast ratio of an element's text and its background."""
    colors = page.locator(css).first.evaluate("""it => {
        const solid = (color) => !/, 0\\)$/.test(color);
        let behind = it;
        while (behind.parentElement && !solid(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
        return [getComputedStyle(it).color, getComputedStyle(behind).backgroundColor];
    }""")
    bright, dark = sorted((luminance(color) for color in colors), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(color: str) -> float:
    """Return the relative luminance (WCAG 2) of ``rgb(r, g, b)``."""
    matched = re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", color)
    assert matched, color
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (int(part) / 255 for part in matched.groups())
    ]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))
