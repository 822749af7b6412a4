"""Fixtures: browser, scripted server, and the page opened at that server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.helpers.browser import PATIENCE, ScriptedServer, chromium, serving
from tests.helpers.page_steps import (
    RECORDING,
    Visit,
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder as slow: they need a browser."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(RECORDING) as launched:
        yield launched


@pytest.fixture
def server() -> ScriptedServer:
    return ScriptedServer()


@pytest.fixture
def address(server: ScriptedServer) -> Iterator[str]:
    with serving(server.app) as url:
        yield url


@pytest.fixture
def visit(browser: Browser, address: str, server: ScriptedServer) -> Iterator[Visit]:
    """Return a function that opens the page. At the end, there must be no errors and no requests to other origins."""
    problems: list[str] = []
    contexts = []

    def console(kind: str, text: str) -> None:
        # The browser logs each refused request.
        refused = text.startswith(("Failed to load resource", "WebSocket connection to"))
        if kind in ("error", "warning") and not (refused and (server.key or server.refusal)):
            problems.append(text)

    def opened(**options: Any) -> Page:
        context = browser.new_context(permissions=["microphone", "clipboard-read", "clipboard-write"], **options)
        context.set_default_timeout(PATIENCE * 1000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: console(message.type, message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("websocket", lambda socket: requested(socket.url.replace("ws", "http", 1)))
        page.on("request", lambda request: requested(request.url))
        page.goto(address)
        page.locator("#model option, #key-form:not([hidden])").first.wait_for(state="attached")
        return page

    def requested(url: str) -> None:
        if not url.removeprefix("blob:").startswith(address):
            problems.append(f"a request to {url}")

    yield opened
    for context in contexts:
        context.close()
    assert problems == []
