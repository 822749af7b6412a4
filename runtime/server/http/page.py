"""Web page at ``/``: static files of the package and their security headers."""

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
"""File name and media type of every served path. Paths of clients never reach the file system."""

HEADERS = {
    # Only scripts, styles and connections of this server; nothing inline; no other site may embed the page.
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Browsers revalidate each time and get 304 for an unchanged file, so files of two versions never mix.
    "Cache-Control": "no-cache",
}


def routes() -> list[Route]:
    """Return the routes of the page and its files, each for GET and HEAD."""
    return [Route(path, _file_endpoint(name, media_type)) for path, (name, media_type) in FILES.items()]


def _file_endpoint(name: str, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    """Return the endpoint for one file. The file is read now."""
    body = (files("runtime.server") / "static" / name).read_bytes()
    headers = {**HEADERS, "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"'}

    async def serve(request: Request) -> Response:
        tags = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if headers["ETag"] in tags:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=media_type, headers=headers)

    return serve
