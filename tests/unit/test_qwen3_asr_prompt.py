"""Parse Qwen3-ASR's output into language and text, without its tags."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.families.qwen3_asr.prompt import parse_output


@pytest.mark.parametrize(
    ("raw", "forced", "expected"),
    [
        ("language English<asr_text>Hello.", None, ("English", "Hello.")),
        ("language Chinese<asr_text>你好。", None, ("Chinese", "你好。")),
        ("language None<asr_text>", None, (None, "")),
        ("language None", None, (None, "")),
        (" language English\n", None, ("English", "")),
        ("language None<asr_text>None", None, (None, "")),
        ("language English<asr_text>None.", None, ("English", "None.")),
        ("language none <asr_text> ", None, (None, "")),
        ("language English", None, ("English", "")),
        ("language <asr_text>text", None, (None, "text")),
        ("Language English <asr_text> text ", None, ("English", "text")),
        ("no header at all", None, (None, "no header at all")),
        ("Hello.", "English", ("English", "Hello.")),
        ("language Russian<asr_text>Привет.", "English", ("English", "Привет.")),
        ("language English<asr_text>language None<asr_text>", None, (None, "")),
        ("language English<asr_text>one<asr_text>two", None, ("English", "one two")),
        ("", None, (None, "")),
        ("", "German", ("German", "")),
        ("language English<asr_text>None of them came.", None, ("English", "None of them came.")),
        ("language English<asr_text>The language of birds.", None, ("English", "The language of birds.")),
        ("None of them came.", "English", ("English", "None of them came.")),
        ("Language is a gift.", "English", ("English", "Language is a gift.")),
        ("language English", "English", ("English", "language English")),
        ("language learning is fun", None, (None, "language learning is fun")),
    ],
)
def test_output_is_parsed_into_language_and_text(
    raw: str, forced: str | None, expected: tuple[str | None, str]
) -> None:
    assert parse_output(raw, forced) == expected


@given(
    st.lists(
        st.sampled_from(["language ", "English", "None", "<asr_text>", " ", "text", "\n", "Привет", "你"]), max_size=12
    ),
    st.sampled_from([None, "English"]),
)
def test_parsed_text_has_no_tags(pieces: list[str], forced: str | None) -> None:
    language, text = parse_output("".join(pieces), forced)
    assert "<asr_text>" not in text
    assert text == text.strip()
    assert language is None or (language.lower() != "none" and "<" not in language)
