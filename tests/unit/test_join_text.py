"""Joining of segment texts depends on the script and on punctuation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.pipeline.join_text import is_unspaced, join_texts


@pytest.mark.parametrize(
    ("texts", "joined"),
    [
        (["Hello there.", "How are you?"], "Hello there. How are you?"),
        (["你好。", "今天很热。"], "你好。今天很热。"),
        (["今天", "OK", "很热"], "今天 OK 很热"),
        (["おはよう。", "コーヒー", "です"], "おはよう。コーヒーです"),
        (["สวัสดี", "ครับ"], "สวัสดีครับ"),
        (["안녕", "하세요"], "안녕 하세요"),
        (["Привет,", "мир"], "Привет, мир"),
        (["السلام", "عليكم"], "السلام عليكم"),
        (["नमस्ते।", "दुनिया"], "नमस्ते। दुनिया"),
        # Quotation marks and dots belong to any script: the character next to them decides.
        (["他说", "“你好”"], "他说“你好”"),
        (["她说……", "再见"], "她说……再见"),
        (["He said", "“hello”", "to me"], "He said “hello” to me"),
        (["你好。", "“Hello”"], "你好。 “Hello”"),
        # Punctuation joins the text before it, and opening brackets join the text after them.
        (["Well", ", yes"], "Well, yes"),
        (["你好", "，世界"], "你好，世界"),
        (["Hello", "，世界"], "Hello，世界"),
        (["See (", "below"], "See (below"),
        (["well", "...and then"], "well ...and then"),
        (["well", "…and then"], "well …and then"),
        (["?", "!"], "?!"),
        (["", "  ", "One.", "", "Two.\n"], "One. Two."),
        ([" "], ""),
        ([], ""),
    ],
)
def test_texts_are_joined(texts: list[str], joined: str) -> None:
    assert join_texts(texts) == joined


@given(st.lists(st.text(max_size=8)))
def test_joining_adds_only_spaces_and_loses_nothing(texts: list[str]) -> None:
    joined = join_texts(texts)
    assert "".join(joined.split()) == "".join("".join(texts).split())
    assert joined == joined.strip()


def test_scripts_without_spaces_are_recognized() -> None:
    assert all(map(is_unspaced, "你ぁーㄅกກក။。（"))
    assert not any(map(is_unspaced, "aя한ㄱअ.“… 1ﾡ"))
