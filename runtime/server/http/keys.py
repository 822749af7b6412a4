"""API keys: where they come from, and how a presented one is compared with them."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from runtime.errors import OptionError

KEYS_VARIABLE = "ASR_DEPLOY_API_KEYS"
_BEARER = "bearer"


def read_keys(file: Path | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """All keys, each once: of ``file``, one a line with ``#`` comments, and of the environment, separated by commas.

    Raises:
        OptionError: the file cannot be read or holds no key, or a key is none that a header can carry.
    """
    found: dict[str, None] = {}
    if file is not None:
        lines = [line.partition("#")[0].strip() for line in _read(file).splitlines()]
        for number, key in enumerate(lines, 1):
            if key:
                found[_checked(key, f"{file}: line {number}")] = None
        if not found:
            raise OptionError(f"{file}: holds no key; write one a line")
    for number, key in enumerate(environment.get(KEYS_VARIABLE, "").split(","), 1):
        if key.strip():
            found[_checked(key.strip(), f"{KEYS_VARIABLE}: key {number}")] = None
    return tuple(found)


def readable_by_others(file: Path) -> bool:
    """Whether others than its owner may read the file. Never on Windows, where its mode does not tell."""
    return os.name == "posix" and bool(file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))


def bearer(authorization: str | None) -> str | None:
    """The key of an ``Authorization: Bearer KEY`` header; None where there is no such header."""
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip() if scheme.lower() == _BEARER and key.strip() else None


def matches(presented: str | None, keys: Iterable[str]) -> bool:
    """Whether ``presented`` is one of the keys.

    Digests of equal length are compared, and with every key: the time taken tells neither how many characters were
    right nor which key it was.
    """
    given = _digest(presented or "")
    found = False
    for key in keys:
        found |= hmac.compare_digest(given, _digest(key))
    return found and bool(presented)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise OptionError(f"{file}: is not a text file; write one key a line") from None
    except OSError as error:
        raise OptionError(f"{file}: cannot be read ({error.strerror}); it should hold one key a line") from None


def _checked(key: str, where: str) -> str:
    if not key.isascii() or not key.isprintable() or " " in key:
        raise OptionError(f"{where}: a key has printable ASCII characters and no spaces")
    return key
