"""Tests of errors and the API key on the server's page."""

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
    ("refusal", "message"),
    [
        (JSONResponse({"error": {"message": "Unknown language 'xx'."}}, 400), "Unknown language 'xx'."),
        (HTMLResponse("<h1>Bad gateway</h1>", 502), "The server answered with status 502."),
    ],
)
def test_error_response_is_an_alert(
    visit: Visit, server: ScriptedServer, refusal: JSONResponse | HTMLResponse, message: str
) -> None:
    page = visit()
    server.refusal = refusal
    choose(page)
    expect(page.get_by_role("alert")).to_have_text(message)
    expect(page.get_by_role("status")).to_have_text("Stopped.")
    server.refusal = None
    server.before = [done("")]
    button(page, "Transcribe again").click()
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.get_by_role("status")).to_have_text(re.compile("Done"))
    server.refusal = refusal  # the browser has logged the first one


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"type": "error", "error": {"message": "It took too long."}}, "It took too long."),
        (None, re.compile("connection ended before")),
    ],
)
def test_failure_during_the_stream_keeps_the_segments(
    visit: Visit, server: ScriptedServer, event: dict[str, Any] | None, message: str | re.Pattern[str]
) -> None:
    page = visit()
    server.before, server.after = segments(1), [event] if event else []
    server.go_on.set()
    choose(page)
    expect(page.get_by_role("alert")).to_have_text(message)
    assert shown(page) == [TEXTS[0][2]]
    expect(button(page, "Download TXT")).to_be_visible()


def test_unreachable_server_is_an_alert(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    page.context.route("**/v1/audio/transcriptions", lambda route: route.abort())
    server.refusal = JSONResponse({})  # the browser reports the request that fails
    choose(page)
    expect(page.get_by_role("alert")).to_have_text(re.compile("The server cannot be reached"))


def test_key_is_requested_and_only_in_memory(visit: Visit, server: ScriptedServer) -> None:
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
    storage = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
    assert "right" not in storage
    assert page.content().count("right") == 0
    server.before, server.after = [speech_started("a")], [committed("a"), completed("a", "yes", 0.0, 1.0)]
    listen_to(page)
    expect(page.get_by_role("status")).to_have_text("Done: 1 segment.")
    assert server.protocols == ["realtime", "openai-insecure-api-key.right"]


def test_action_is_repeated_once_there_is_a_key(visit: Visit, server: ScriptedServer) -> None:
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
    expect(page.get_by_role("alert")).to_have_text(re.compile("This key has characters"))
