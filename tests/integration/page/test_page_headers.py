"""Tests of the files and the content security policy of the server's page."""

from __future__ import annotations

from http.client import HTTPConnection
from importlib.resources import files
from urllib.parse import urlsplit

from playwright.sync_api import Browser

from runtime.server.http import page as pages


def test_only_listed_files_are_served(address: str) -> None:
    listed = sorted(name for name, _ in pages.FILES.values())
    assert listed == sorted(entry.name for entry in (files("runtime.server") / "static").iterdir())
    connection = HTTPConnection(urlsplit(address).netloc)
    for path, (name, media_type) in pages.FILES.items():
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.read() == (files("runtime.server") / "static" / name).read_bytes()
        assert answer.headers["content-type"] == media_type
        assert answer.headers["content-security-policy"].startswith("default-src 'self';")
        assert "unsafe" not in answer.headers["content-security-policy"]
        connection.request("GET", path, headers={"If-None-Match": f'"other", W/{answer.headers["etag"]}'})
        again = connection.getresponse()
        assert (again.status, again.read()) == (304, b"")
        connection.request("HEAD", path)
        head = connection.getresponse()
        assert (head.status, head.read()) == (200, b"")
    for path in ("/static/", "/static/../page.py", "/static/%2e%2e/page.py", "/static/..%2fpage.py", "/page.py"):
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 404
    connection.request("POST", "/")
    assert connection.getresponse().status == 405
    connection.close()


def test_policy_blocks_inline_code_and_other_origins(browser: Browser, address: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    blocked = page.evaluate("""() => new Promise((resolve) => {
        const blocked = [];
        document.addEventListener("securitypolicyviolation", (event) => {
            blocked.push(event.effectiveDirective);
            if (blocked.length === 4) resolve(blocked);
        });
        document.body.insertAdjacentHTML("beforeend", "<p style='color: red' onclick='1'></p>");
        const script = document.createElement("script");
        script.textContent = "window.ran = true";
        document.body.append(script);
        fetch("http://elsewhere.invalid/").catch(() => null);
    })""")
    assert sorted(blocked) == ["connect-src", "script-src-attr", "script-src-elem", "style-src-attr"]
    assert page.evaluate("window.ran") is None
    context.close()
