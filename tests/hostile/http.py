"""Wrong keys, methods, and malformed HTTP."""

from __future__ import annotations

import base64
import random

from tests.helpers.load_client import HOST, form, request
from tests.hostile.attempts import (
    FORM,
    KEY,
    TRANSCRIPTIONS,
    WITH_KEY,
    Attempt,
    good,
    kind,
    post,
    recording,
    several,
)

MAX_UPLOAD_BYTES = 2_000_000

several(
    "wrong key",
    {
        "none": {},
        "another": {"Authorization": "Bearer sk-0000"},
        "prefix": {"Authorization": f"Bearer {KEY[:-1]}"},
        "longer": {"Authorization": f"Bearer {KEY}x"},
        "basic": {"Authorization": f"Basic {base64.b64encode(KEY.encode()).decode()}"},
        "not ascii": {"Authorization": "Bearer \xe4\xf6\xfc"},
        "empty": {"Authorization": "Bearer "},
    },
    lambda _, headers: Attempt(request("POST", TRANSCRIPTIONS, FORM | headers, form({}, recording("WAV")))),
)


@kind
def _page_of_another_site(_: random.Random) -> Attempt:
    # Forms of a page cannot send a key. tests/unit/test_server_origins.py tests a server without keys.
    headers, body = good(**{"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"})
    headers = {name: value for name, value in headers.items() if name not in WITH_KEY}
    return Attempt(request("POST", TRANSCRIPTIONS, headers, body))


@kind
def _wrong_method(rng: random.Random) -> Attempt:
    method, path = rng.choice(
        [
            ("GET", TRANSCRIPTIONS),
            ("DELETE", "/v1/models"),
            ("POST", "/v1/models"),
            ("PUT", "/"),
            ("TRACE", "/"),
            ("FOO", "/health"),
        ]
    )
    return Attempt(request(method, path, WITH_KEY))


# Malformed HTTP.


@kind
def _huge_header(rng: random.Random) -> Attempt:
    return Attempt(request("GET", "/v1/models", WITH_KEY | {"X-Huge": "x" * rng.randrange(100_000, 1_000_000)}))


@kind
def _thousands_of_headers(rng: random.Random) -> Attempt:
    return Attempt(
        request("GET", "/v1/models", WITH_KEY | {f"X-{each}": "x" for each in range(rng.randrange(2_000, 9_000))})
    )


@kind
def _huge_url(rng: random.Random) -> Attempt:
    return Attempt(request("GET", "/" + "a" * rng.randrange(20_000, 200_000), WITH_KEY))


@kind
def _garbage_as_http(rng: random.Random) -> Attempt:
    return Attempt(rng.randbytes(rng.randrange(20, 2_000)) + b"\r\n\r\n")


@kind
def _tls_to_a_plain_port(rng: random.Random) -> Attempt:
    return Attempt(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(500) + b"\r\n\r\n")


@kind
def _null_in_a_header(_: random.Random) -> Attempt:
    return Attempt(f"GET /v1/models HTTP/1.1\r\nHost: {HOST}\r\nX-A: a\0b\r\n\r\n".encode())


@kind
def _no_host(_: random.Random) -> Attempt:
    return Attempt(b"GET /health HTTP/1.1\r\n\r\n")


@kind
def _header_in_two_lines(_: random.Random) -> Attempt:
    return Attempt(f"GET /v1/models HTTP/1.1\r\nHost: {HOST}\r\nBad Header: 1\r\n folded: 2\r\n\r\n".encode())


several(
    "invalid length",
    {"negative": "-1", "hexadecimal": "0x10", "words": "ten", "plus": "+5", "huge": "9" * 30},
    lambda _, length: Attempt(request("POST", TRANSCRIPTIONS, {**FORM, **WITH_KEY, "Content-Length": length}, b"")),
)


@kind
def _larger_than_allowed_declared(rng: random.Random) -> Attempt:
    length = MAX_UPLOAD_BYTES + (1 << 20) + rng.randrange(1, 10**12)
    headers = {**FORM, **WITH_KEY, "Content-Length": str(length), "Expect": "100-continue"}
    return Attempt(request("POST", TRANSCRIPTIONS, headers, b""))


@kind
def _larger_than_allowed_sent(rng: random.Random) -> Attempt:
    return post({}, recording("WAV") + bytes(MAX_UPLOAD_BYTES + rng.randrange(1, 500_000)))


@kind
def _larger_than_allowed_in_chunks(rng: random.Random) -> Attempt:
    body = form({}, bytes(MAX_UPLOAD_BYTES + rng.randrange(1, 500_000)))
    chunks = [body[at : at + 65_536] for at in range(0, len(body), 65_536)]
    return _chunked(b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in chunks) + b"0\r\n\r\n")


def _chunked(body: bytes) -> Attempt:
    headers = FORM | WITH_KEY | {"Transfer-Encoding": "chunked"}
    return Attempt(request("POST", TRANSCRIPTIONS, headers) + body, to_end=True)


several(
    "chunk",
    {
        "invalid size": b"zz\r\nabc\r\n0\r\n\r\n",
        "negative size": b"-5\r\nabc\r\n0\r\n\r\n",
        "huge size": b"f" * 30 + b"\r\nabc\r\n0\r\n\r\n",
        "longer than its size": b"3\r\nabcdef\r\n0\r\n\r\n",
        "long extension": b"3;" + b"x" * 100_000 + b"\r\nabc\r\n0\r\n\r\n",
        "garbage behind the form": b"3\r\nabc\r\n0\r\n\r\n\x00\x01\x02\r\n\r\n",
    },
    lambda _, body: _chunked(body),
)


def _smuggled(headers: str) -> Attempt:
    """Hide a request in the body of one whose length is ambiguous."""
    key = f"Authorization: Bearer {KEY}\r\n"
    hidden = f"GET /v1/models HTTP/1.1\r\nHost: {HOST}\r\n{key}\r\n"
    head = f"POST {TRANSCRIPTIONS} HTTP/1.1\r\nHost: {HOST}\r\n{key}Content-Type: {FORM['Content-Type']}\r\n"
    return Attempt(f"{head}{headers}\r\n0\r\n\r\n{hidden}".encode("latin-1"), to_end=True)


several(
    "smuggled request",
    {
        "two lengths": "Content-Length: 5\r\nContent-Length: 60\r\n",
        "length in a list": "Content-Length: 5, 60\r\n",
        "length and chunks": "Content-Length: 5\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "unknown coding": "Transfer-Encoding: chunked, xchunked\r\n",
        "obscured coding": "Transfer-Encoding:\x0bchunked\r\n",
        "space before the colon": "Content-Length : 5\r\n",
    },
    lambda _, headers: _smuggled(headers),
)


@kind
def _body_that_ends_early(rng: random.Random) -> Attempt:
    data = request("POST", TRANSCRIPTIONS, *good())
    return Attempt(data[: rng.randrange(len(data) - 20_000, len(data) - 10)], half_close=True)


@kind
def _head_that_ends_early(rng: random.Random) -> Attempt:
    data = request("POST", TRANSCRIPTIONS, FORM | WITH_KEY)
    return Attempt(data[: rng.randrange(1, len(data) - 4)], half_close=True)


@kind
def _slow_head(rng: random.Random) -> Attempt:
    data = request("GET", "/v1/models", WITH_KEY | {"X-Slow": "x" * 1000})
    begun = rng.randrange(0, 20)
    return Attempt(data[:begun], drip=data[begun:])


@kind
def _head_that_never_comes(_: random.Random) -> Attempt:
    return Attempt(b"GET")


@kind
def _body_that_never_comes(rng: random.Random) -> Attempt:
    headers, body = good()
    return Attempt(request("POST", TRANSCRIPTIONS, headers, body)[: -len(body) + rng.randrange(0, 1_000)])
