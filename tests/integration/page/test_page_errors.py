"""What goes wrong on the server's page, and the key that it asks for."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import expect
from starlette.responses import HTMLResponse, JSONResponse

from tests.helpers.browser import ScriptedServer
from tests.helpers.page_steps import (
    TEXTS,
    Visit,
    button,
    choose,
    committed,
    completed,
    done,
    listen_to,
    segments,
    shown,
    speech_started,
    transcribed,
)


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        (JSONResponse({"error": {"message": "Unknown language 'xx'."}}, 400), "Unknown language 'xx'."),
        (HTMLResponse("<h1>Bad gateway</h1>", 502), "The server answered with status 502."),
    ],
)
def test_a_refusal_is_an_alert(
    visit: Visit, server: ScriptedServer, refusal: JSONResponse | HTMLResponse, sentence: str
) -> None:
    page = visit()
    server.refusal = refusal
    choose(page)
    expect(page.get_by_role("alert")).to_have_text(sentence)
    expect(page.get_by_role("status")).to_have_text("Stopped.")
    server.refusal = None
    server.before = [done("")]
    button(page, "Transcribe again").click()
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.get_by_role("status")).to_have_text(re.compile("Done"))
    server.refusal = refusal  # the browser's own words about the first one


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        ({"type": "error", "error": {"message": "It took too long."}}, "It took too long."),
        (None, "The connection ended before the transcript was complete. Try again."),
    ],
)
def test_what_breaks_on_the_way_is_an_alert_and_what_came_stays(
    visit: Visit, server: ScriptedServer, event: dict[str, Any] | None, sentence: str
) -> None:
    page = visit()
    server.before, server.after = segments(1), [event] if event else []
    server.go_on.set()
    choose(page)
    expect(page.get_by_role("alert")).to_have_text(sentence)
    assert shown(page) == [TEXTS[0][2]]
    expect(button(page, "Download TXT")).to_be_visible()


def test_a_server_that_is_gone_is_an_alert(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    page.context.route("**/v1/audio/transcriptions", lambda route: route.abort())
    server.refusal = JSONResponse({})  # the browser reports the request that fails
    choose(page)
    expect(page.get_by_role("alert")).to_have_text(re.compile("The server cannot be reached"))


def test_a_key_is_asked_for_and_kept_in_memory_alone(visit: Visit, server: ScriptedServer) -> None:
    server.key = "right"
    page = visit()
    field = page.get_by_label("API key")
    expect(field).to_be_focused()
    expect(page.get_by_role("alert")).to_be_empty()
    field.fill("wrong")
    button(page, "Use key").click()
    expect(page.get_by_role("alert")).to_have_text("This API key is not known.")
    field.fill("right")
    page.keyboard.press("Enter")
    expect(field).to_be_hidden()
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.get_by_role("button", name="Choose a file")).to_be_focused()
    transcribed(page, server)
    kept = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
    assert "right" not in kept
    assert page.content().count("right") == 0
    server.before, server.after = [speech_started("a")], [committed("a"), completed("a", "yes", 0.0, 1.0)]
    listen_to(page)
    expect(page.get_by_role("status")).to_have_text("Done: 1 segment.")
    assert server.protocols == ["realtime", "openai-insecure-api-key.right"]


def test_what_a_missing_key_stopped_is_done_once_there_is_one(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    expect(page.get_by_label("API key")).to_be_hidden()
    server.key = "new"
    server.before = [*segments(1), done("")]
    choose(page)
    page.get_by_label("API key").fill("new")
    button(page, "Use key").click()
    expect(page.get_by_role("status")).to_have_text("Done: 1 segment.")
    assert server.upload[0] == "en-1.wav"
    server.key = "newer"
    page.get_by_role("button", name="Use the microphone").click()
    expect(page.get_by_role("alert")).to_have_text("This API key is not known.")
    server.key = "a b"
    page.get_by_label("API key").fill("a b")
    button(page, "Use key").click()
    expect(page.get_by_role("alert")).to_have_text("This key has characters that live audio cannot carry.")
