"""The end of a context that is too long."""

from __future__ import annotations

from runtime.engines.autoregressive import last_tokens


def encode(text: str) -> list[int]:
    return list(text.encode())


def decode(ids: object) -> str:
    return bytes(ids).decode(errors="replace")  # type: ignore[call-overload,no-any-return]


def test_a_text_that_fits_is_unchanged() -> None:
    assert last_tokens("Sara, Jon ", 10, encode, decode) == ("Sara, Jon ", 0)


def test_the_last_tokens_stay() -> None:
    assert last_tokens("Sara, Jon", 3, encode, decode) == ("Jon", 6)
    assert last_tokens("Sara, Jon", 4, encode, decode) == ("Jon", 5)
    assert last_tokens("Sara, Jon", 0, encode, decode) == ("", 9)


def test_a_character_that_is_cut_is_left_out() -> None:
    """Two bytes each."""
    assert last_tokens("Жан", 5, encode, decode) == ("ан", 1)


def test_a_beginning_that_takes_other_tokens_is_shortened_until_it_fits() -> None:
    def dearer(text: str) -> list[int]:
        return encode(text)[:2] + encode(text)  # the beginning of a text takes two more

    end, dropped = last_tokens("abcdefgh", 6, dearer, decode)
    assert len(dearer(end)) <= 6
    assert "abcdefgh".endswith(end)
    assert dropped > 0
