"""Qwen3-ASR's prompt pieces and its output format."""

from __future__ import annotations

import re

import msgspec

TEXT_TAG = "<asr_text>"

_HEADER = re.compile(r"^\s*language\s+(?P<name>[^<\n]*?)\s*<asr_text>", re.IGNORECASE)
# A header without its tag. Matched only exactly as the model writes it, because a transcript may start with this word.
_BARE_HEADER = re.compile(r"^language (?P<name>[A-Z][a-z]+)$")


class Prompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Fixed pieces of the prompt; ``language`` is a format string with ``{name}``."""

    before_context: str
    before_audio: str
    after_audio: str
    language: str


def parse_output(text: str, forced: str | None) -> tuple[str | None, str]:
    """Split decoded text into language and transcript; remove headers, tags and a literal ``None``.

    Args:
        text: decoded text, ``language English<asr_text>transcript``.
        forced: the language that the prompt already named, or None. The model then writes the transcript alone; a
            header that it writes all the same is removed.

    Returns:
        (language, transcript); (None, "") for ``language None``, which means no speech.
    """
    language, text = forced, text.strip()
    while match := _HEADER.match(text) or (None if forced else _BARE_HEADER.match(text)):
        name = match["name"].strip()
        language = forced or (None if name.lower() in ("", "none") else name)
        text = text[match.end() :].strip()
    text = text.replace(TEXT_TAG, " ").strip()
    if language is None and text.lower() in ("none", "none."):
        text = ""  # the header's word again, without speech
    return language, text
