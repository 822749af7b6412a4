"""Paths as names, invalid fields, and malformed forms."""

from __future__ import annotations

import random

from tests.helpers.load_client import BOUNDARY, form, request
from tests.hostile.attempts import (
    TRANSCRIPTIONS,
    WITH_KEY,
    Attempt,
    kind,
    post,
    raw_form,
    recording,
    several,
)

_PATHS = {
    "parents": "../../../../etc/passwd",
    "absolute": "/etc/passwd",
    "file url": "file:///etc/passwd",
    "http url": "http://169.254.169.254/latest/meta-data/",
    "null": "a\0.wav",
    "pipe": "|id",
    "device": "/dev/stdin",
    "long": "a" * 5_000,
}
several("path as file name", _PATHS, lambda rng, name: post({}, rng.randbytes(100), name))
several("path as model", _PATHS, lambda _, name: post({"model": name}, recording("WAV")))
several(
    "path in url",
    {
        "parents": "/../../../../etc/passwd",
        "encoded": "/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "encoded twice": "/%252e%252e/%252e%252e/etc/passwd",
        "static": "/static/../../../etc/passwd",
        "static encoded": "/static/..%2f..%2f..%2fetc%2fpasswd",
        "model": "/v1/models/../../../etc/passwd",
        "backslashes": "/..\\..\\..\\windows\\win.ini",
        "null": "/static/%00",
        "admin": "/admin",
        "slash": "/v1/models/",
    },
    lambda _, path: Attempt(request("GET", path, WITH_KEY)),
)

_FIELDS = {
    "temperature": ("1.5", "nan", "inf", "zero", "-0.1", "1e999"),
    "language": ("Klingon", "../en", "xx", "\x00", "e" * 1000),
    "response_format": ("exe", "JSON ", "diarized_json"),
    "timestamp_granularities[]": ("word", "letter"),
    "stream": ("maybe", "2"),
    "chunking_strategy": ("[" * 5_000, '{"type":"server_vad","threshold":0}', "none"),
    "include[]": ("logprobs",),
    "prompt": ("<|audio_pad|>", "x" * 70_000),
    "file_path": ("/etc/passwd",),
    "url": ("http://localhost/",),
    "__proto__": ("1",),
}
several(
    "wrong field",
    {name: (name, values) for name, values in _FIELDS.items()},
    lambda rng, pair: post({pair[0]: rng.choice(pair[1])}, recording("WAV")),
)


@kind
def _thousands_of_fields(rng: random.Random) -> Attempt:
    return post({f"field{number}": "1" for number in range(rng.randrange(100, 3_000))}, recording("WAV"))


@kind
def _the_same_field_many_times(rng: random.Random) -> Attempt:
    part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="language"\r\n\r\nen\r\n'.encode()
    return raw_form(part * rng.randrange(2, 60) + form({}, recording("WAV")))


@kind
def _two_files(_: random.Random) -> Attempt:
    body = form({}, recording("WAV"))
    return raw_form(body.removesuffix(b"--\r\n") + b"\r\n" + body)


@kind
def _form_without_its_end(rng: random.Random) -> Attempt:
    body = form({}, recording("WAV"))
    return raw_form(body[: rng.randrange(1, len(body) - 4)])


@kind
def _form_of_another_boundary(_: random.Random) -> Attempt:
    return raw_form(form({}, recording("WAV")), "other")


@kind
def _boundary_too_long(_: random.Random) -> Attempt:
    return raw_form(form({}, recording("WAV")), "b" * 200)


@kind
def _part_with_many_headers(rng: random.Random) -> Attempt:
    heads = b"".join(b"X-%d: 1\r\n" % number for number in range(rng.randrange(20, 2_000)))
    return raw_form(b"--" + BOUNDARY.encode() + b"\r\n" + heads + b"\r\n\r\n--" + BOUNDARY.encode() + b"--\r\n")


@kind
def _part_without_a_name(_: random.Random) -> Attempt:
    return raw_form(f"--{BOUNDARY}\r\nContent-Disposition: form-data\r\n\r\nx\r\n--{BOUNDARY}--\r\n".encode())


@kind
def _field_that_is_not_utf8(rng: random.Random) -> Attempt:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n'.encode()
    return raw_form(head + b"\xff\xfe" + rng.randbytes(10) + f"\r\n--{BOUNDARY}--\r\n".encode())


@kind
def _garbage_as_form(rng: random.Random) -> Attempt:
    return raw_form(rng.randbytes(rng.randrange(0, 50_000)))


@kind
def _json_instead_of_a_form(_: random.Random) -> Attempt:
    headers = WITH_KEY | {"Content-Type": "application/json"}
    return Attempt(request("POST", TRANSCRIPTIONS, headers, b'{"file": "/etc/passwd"}'))
