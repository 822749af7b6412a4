"""Find languages by the names and codes that people write, in ``languages.tsv`` (made by ``tools/make_languages.py``).

Known are ISO 639-1, -2 and -3 codes, English and own names, and locales such as ``pt-BR``, ``zh_Hant_TW`` and
``en_US.UTF-8``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

import msgspec

# A language subtag of 2 or 3 letters, then script, region, variants and extensions (RFC 5646, section 2.1). POSIX
# writes an underscore, and may add an encoding and a modifier.
_LOCALE = re.compile(r"([a-z]{2,3})((?:-[a-z0-9]{1,8})+)?(?:\.[a-z0-9-]+)?(?:@[a-z0-9-]+)?")
# `zh-yue`: an extended language subtag names the language (RFC 5646, section 2.2.2).
_EXTENDED = re.compile(r"-([a-z]{3})(?:-|$)")


class KnownLanguage(msgspec.Struct, frozen=True):
    """A language: its shortest ISO 639 code, and its English name."""

    code: str
    name: str


class FoundLanguage(msgspec.Struct, frozen=True):
    """A language, and the part of a locale that was dropped to find it: ``BR`` of ``pt-BR``; empty for a language."""

    language: KnownLanguage
    dropped: str = ""


class _Table(msgspec.Struct, frozen=True):
    """Languages by spelling in lower case, and languages that varieties and countries point to."""

    by_spelling: dict[str, KnownLanguage]
    by_hint: dict[str, KnownLanguage]


@cache
def _table() -> _Table:
    table = _Table({}, {})
    text = (files("runtime.model") / "languages.tsv").read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        code, name, spellings, hints = line.split("\t")
        language = KnownLanguage(code, name)
        for spelling in (code, name, *filter(None, spellings.split("|"))):
            table.by_spelling[spelling.casefold()] = language
        for hint in filter(None, hints.split("|")):
            table.by_hint.setdefault(hint.casefold(), language)
    return table


def find_language(text: str) -> FoundLanguage | None:
    """Return the language that a name, a code or a locale names, in any case; None if it is unknown."""
    key = " ".join(text.split()).casefold()
    table = _table()
    if language := table.by_spelling.get(key):
        return FoundLanguage(language)
    match = _LOCALE.fullmatch(key.replace("_", "-"))
    if not match:
        return None
    end, language = match.end(1), table.by_spelling.get(match[1])
    if (extended := _EXTENDED.match(match[2] or "")) and extended[1] in table.by_spelling:
        end, language = end + 1 + len(extended[1]), table.by_spelling[extended[1]]
    return FoundLanguage(language, text.strip()[end + 1 :]) if language else None


def related_languages(text: str) -> list[KnownLanguage]:
    """Return the languages that ``text`` may mean though it does not name one.

    These are the language of a country or its code (``jp``, ``Brazil``), the language of which ``text`` is a variety
    (``Swiss German``, ``arz``), and languages whose names are among its words.
    """
    key = " ".join(text.split()).casefold()
    words = re.sub(r"[-_(),/]", " ", key).split()
    table = _table()
    # The last words first: "Brazilian Portuguese", "South Levantine Arabic".
    parts: Iterable[str] = (key, " ".join(words), *reversed(words))
    found = [
        language for part in parts for names in (table.by_hint, table.by_spelling) if (language := names.get(part))
    ]
    return list(dict.fromkeys(found))
