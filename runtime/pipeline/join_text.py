"""Join the texts of consecutive segments."""

from __future__ import annotations

# Scripts written without spaces between words: Thai and Lao, Burmese, Khmer, CJK punctuation and kana, Bopomofo, kana
# extensions, ideographs, and full-width forms. Hangul is written with spaces.
_UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3000, 0x312F),
    (0x31A0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF00, 0xFF9F),
    (0xFFE0, 0xFFEF),
    (0x20000, 0x323AF),
)
_CLOSING = frozenset(",.;:!?)]}，。；：！？）」』】》、")
_OPENING = frozenset("([{¿¡（「『【《")
_DOTS = ("..", "…")


def is_unspaced(char: str) -> bool:
    """Return whether ``char`` belongs to a script without spaces: Chinese, Japanese, Thai, Lao, Khmer, Burmese."""
    return any(first <= ord(char) <= last for first, last in _UNSPACED)


def join_texts(texts: list[str]) -> str:
    """Join texts of consecutive segments.

    Adds a space between two texts unless the characters on both sides belong to an unspaced script; quotation marks and
    dots, which occur in every script, are skipped for this test. Adds no space before closing punctuation or after an
    opening bracket.
    """
    joined = ""
    for text in filter(None, (text.strip() for text in texts)):
        joined += (" " if joined and _needs_space(joined, text) else "") + text
    return joined


def _needs_space(before: str, after: str) -> bool:
    if before[-1] in _OPENING or (after[0] in _CLOSING and not after.startswith(_DOTS)):
        return False
    sides = (next(filter(_has_script, side), " ") for side in (reversed(before), after))
    return not all(map(is_unspaced, sides))


def _has_script(char: str) -> bool:
    return char.isalnum() or is_unspaced(char)
