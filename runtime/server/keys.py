"""API keys: reading and comparing them."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from runtime.errors import OptionError

KEYS_VARIABLE = "ASR_DEPLOY_API_KEYS"
_SCHEME = "bearer"


def read_keys(file: Path | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Read the distinct keys of a file and of the environment.

    Args:
        file: one key per line; ``#`` starts a comment.
        environment: its variable ``ASR_DEPLOY_API_KEYS`` holds keys separated by commas.

    Raises:
        OptionError: the file cannot be read.
        OptionError: the file holds no key.
        OptionError: a key has characters other than printable ASCII, or a space.
    """
    keys: dict[str, None] = {}
    if file is not None:
        lines = [line.partition("#")[0].strip() for line in _read(file).splitlines()]
        for number, key in enumerate(lines, 1):
            if key:
                keys[_checked(key, f"{file}: line {number}")] = None
        if not keys:
            raise OptionError(f"{file}: holds no key; write one key per line")
    for number, key in enumerate(environment.get(KEYS_VARIABLE, "").split(","), 1):
        if key.strip():
            keys[_checked(key.strip(), f"{KEYS_VARIABLE}: key {number}")] = None
    return tuple(keys)


def readable_by_others(file: Path) -> bool:
    """Return whether users other than the owner may read the file. Always False on Windows."""
    return os.name == "posix" and bool(file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))


def bearer_key(authorization: str | None) -> str | None:
    """Return the key of an ``Authorization: Bearer KEY`` header, or None if the header has no such form."""
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip() if scheme.lower() == _SCHEME and key.strip() else None


def is_valid_key(key: str | None, keys: Iterable[str]) -> bool:
    """Return whether ``key`` is one of ``keys``.

    Compares SHA-256 digests in constant time with every key, so that the time reveals neither how many characters
    match nor which key matches.
    """
    digest = _digest(key or "")
    valid = False
    for each in keys:
        valid |= hmac.compare_digest(digest, _digest(each))
    return valid and bool(key)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise OptionError(f"{file}: is not a text file; write one key per line") from None
    except OSError as error:
        raise OptionError(f"{file}: cannot be read ({error.strerror}); it should hold one key per line") from None


def _checked(key: str, where: str) -> str:
    if not key.isascii() or not key.isprintable() or " " in key:
        raise OptionError(f"{where}: a key must consist of printable ASCII characters without spaces")
    return key
