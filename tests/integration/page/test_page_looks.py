"""The server's page by keyboard, by ear and by eye."""

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


def test_everything_is_reached_by_tab(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    transcribed(page, server)
    page.locator("h1").click()  # where Tab starts from
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
def test_a_file_is_chosen_by_keyboard(visit: Visit, key: str) -> None:
    page = visit()
    with page.expect_file_chooser():  # waits for it from here on
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name="Choose a file")).to_be_focused()
        page.keyboard.press(key)


def test_a_screen_reader_is_told_names_states_and_finals(visit: Visit, server: ScriptedServer) -> None:
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


def test_light_and_dark_differ_and_both_have_contrast(visit: Visit, server: ScriptedServer) -> None:
    pictures = {}
    for scheme in ("light", "dark"):
        page = visit(color_scheme=scheme, reduced_motion="reduce", viewport={"width": 360, "height": 800})
        server.go_on.clear()
        server.refusal = JSONResponse({"error": {"message": "Too long."}}, 413)
        choose(page)
        expect(page.get_by_role("alert")).to_have_text("Too long.")
        looked_at = {".alert": contrast(page, ".alert")}
        server.refusal = None
        transcribed(page, server)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        server.before = [partial("a", "It was", " quite")]
        server.after = [committed("a"), completed("a", "It was quiet.", 0, 1)]
        page.get_by_role("button", name="Use the microphone").click()
        expect(page.locator(".unstable")).to_have_text(" quite")
        for css in ("h1", ".lead", "label", "#status", ".clock", ".segment p", ".unstable", ".times", "input"):
            looked_at[css] = contrast(page, css)
        for css in ("#microphone .title", "#microphone .hint"):
            looked_at[css] = contrast(page, css)
        pictures[scheme] = page.screenshot()
        page.get_by_role("button", name="Stop and keep the transcript").click()
        expect(page.get_by_role("status")).to_have_text("Done: 1 segment.")
        for css in ("#choose .hint", "#microphone .hint", "#copy", "#job-name", "#transcript-title"):
            looked_at[f"{css} at rest"] = contrast(page, css)
        assert {css: ratio for css, ratio in looked_at.items() if ratio < 4.5} == {}
        server.refusal = JSONResponse({})  # the browser's own words about the first one
    assert pictures["light"] != pictures["dark"]


def contrast(page: Page, css: str) -> float:
    """WCAG's contrast ratio of an element's text with what is painted behind it."""
    colours = page.locator(css).first.evaluate("""it => {
        const solid = (colour) => !/, 0\\)$/.test(colour);
        let behind = it;
        while (behind.parentElement && !solid(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
        return [getComputedStyle(it).color, getComputedStyle(behind).backgroundColor];
    }""")
    bright, dark = sorted((luminance(colour) for colour in colours), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it, of ``rgb(r, g, b)``."""
    matched = re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", colour)
    assert matched, colour
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (int(part) / 255 for part in matched.groups())
    ]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))
