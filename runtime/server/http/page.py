"""The page at ``/``: a few static files of the package, and the headers that keep them to themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

HTML = "text/html; charset=utf-8"
SCRIPT = "text/javascript; charset=utf-8"

FILES = {
    "/": ("index.html", HTML),
    "/static/style.css": ("style.css", "text/css; charset=utf-8"),
    "/static/icon.svg": ("icon.svg", "image/svg+xml"),
    "/static/app.js": ("app.js", SCRIPT),
    "/static/api.js": ("api.js", SCRIPT),
    "/static/capture-worklet.js": ("capture-worklet.js", SCRIPT),
    "/static/formats.js": ("formats.js", SCRIPT),
    "/static/live.js": ("live.js", SCRIPT),
    "/static/microphone.js": ("microphone.js", SCRIPT),
    "/static/transcript.js": ("transcript.js", SCRIPT),
    "/static/waveform.js": ("waveform.js", SCRIPT),
}
"""Every path that is answered, and the file and media type for it: no path of a client reaches the file system."""

HEADERS = {
    # Scripts, styles and connections from this server alone, nothing inline, and no other site may frame the page.
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # A browser asks each time and is answered 304 while nothing changed: files of two versions never mix.
    "Cache-Control": "no-cache",
}


def routes() -> list[Route]:
    """The page and what it loads, each for GET and HEAD."""
    return [Route(path, _endpoint(name, media_type)) for path, (name, media_type) in FILES.items()]


def _endpoint(name: str, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    """What answers with one file, which is read now."""
    body = (files("runtime.server") / "static" / name).read_bytes()
    headers = {**HEADERS, "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"'}

    async def serve(request: Request) -> Response:
        known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if headers["ETag"] in known:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=media_type, headers=headers)

    return serve
