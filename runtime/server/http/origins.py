"""Protection of a server without API keys against web pages of other sites.

A browser lets any page submit forms and open WebSockets to any host, including the local machine; the header ``Origin``
names the page's site. A page can also point its own host name at this machine (DNS rebinding), which makes its requests
same-origin. Only the header ``Host`` reveals that.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from starlette.datastructures import Headers

from runtime.server.http.api_errors import ApiError, cross_site, unknown_host

# Top-level names that cannot be registered: RFC 6761, RFC 6762, and ICANN's decision of 2024 on .internal.
_PRIVATE_TLDS = ("localhost", "local", "internal")


def cross_site_error(headers: Headers, names: Collection[str]) -> ApiError | None:
    """Return the error for a request that may come from a page of another site, or None if it is allowed.

    Args:
        headers: headers of the request.
        names: host names of this server, in addition to IP addresses and local names.
    """
    if not is_known_host(headers, names):
        return unknown_host(headers["host"])
    if headers.get("sec-fetch-site") == "cross-site" or not is_same_origin(headers):
        return cross_site()
    return None


def is_same_origin(headers: Headers) -> bool:
    """Return whether ``Origin`` is absent or matches ``Host``."""
    origin = headers.get("origin")
    return origin is None or origin.lower().partition("://")[2] == headers.get("host", "").lower()


def is_known_host(headers: Headers, names: Collection[str]) -> bool:
    """Return whether ``Host`` is an IP address, a name that cannot be registered publicly, or one of ``names``."""
    host = headers.get("host", "").lower()
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdecimal():
        name = host
    name = name.removeprefix("[").removesuffix("]").removesuffix(".")
    if "." not in name or name.rpartition(".")[2] in _PRIVATE_TLDS or name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
