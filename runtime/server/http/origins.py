"""Which pages of a browser may use a server without keys: its own alone.

A browser lets any page send forms and open WebSockets to any host, the own machine's included, and says in ``Origin``
which page it is. And a page elsewhere can have its own name point to this machine ("DNS rebinding"), which makes it one
of the same origin: only ``Host`` still tells.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from starlette.datastructures import Headers

from runtime.server.http.problems import RequestProblem, cross_site, unknown_host

# Top-level names that nobody can register: RFC 6761, RFC 6762, and ICANN's decision of 2024 on .internal.
_PRIVATE = ("localhost", "local", "internal")


def foreign_page(headers: Headers, names: Collection[str]) -> RequestProblem | None:
    """Why a server without keys, known by ``names`` too, refuses whoever asks; None when it does not."""
    if not is_known_host(headers, names):
        return unknown_host(headers["host"])
    if headers.get("sec-fetch-site") == "cross-site" or not same_origin(headers):
        return cross_site()
    return None


def same_origin(headers: Headers) -> bool:
    """Whether a page of this very host asks, or no page at all."""
    origin = headers.get("origin")
    return origin is None or origin.lower().partition("://")[2] == headers.get("host", "").lower()


def is_known_host(headers: Headers, names: Collection[str]) -> bool:
    """Whether ``Host`` is an address, a name that cannot be a stranger's, or one of ``names``."""
    host = headers.get("host", "").lower()
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdecimal():
        name = host
    name = name.removeprefix("[").removesuffix("]").removesuffix(".")
    if "." not in name or name.rpartition(".")[2] in _PRIVATE or name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
