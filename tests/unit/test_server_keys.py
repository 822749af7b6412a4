"""Tests of reading and comparing API keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import OptionError
from runtime.server.keys import KEYS_VARIABLE, bearer_key, is_valid_key, read_keys, readable_by_others
from runtime.server.settings import Settings


def test_keys_of_a_file_and_of_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# our keys\nfirst  # of Sara\n\n  second\nfirst\n", encoding="utf-8")
    assert read_keys(file, {KEYS_VARIABLE: "third, second,,"}) == ("first", "second", "third")
    assert read_keys(None, {}) == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# nothing\n\n", "holds no key"),
        (b"\xff\xfe", "is not a text file"),
        (b"ok\ntwo words\n", "line 2: .*printable ASCII"),
        ("schlüssel".encode(), "line 1: .*printable ASCII"),
    ],
)
def test_invalid_key_files(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(OptionError, match=message) as refused:
        read_keys(file, {})
    assert "two words" not in str(refused.value)


def test_missing_file_and_invalid_variable(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot be read"):
        read_keys(tmp_path / "none", {})
    with pytest.raises(OptionError, match=f"{KEYS_VARIABLE}: key 2"):
        read_keys(None, {KEYS_VARIABLE: "a,b c"})


def test_readable_by_others(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("k")
    for mode, others in ((0o600, False), (0o640, True), (0o604, True)):
        file.chmod(mode)
        assert readable_by_others(file) is others


def test_bearer_key() -> None:
    assert bearer_key("Bearer abc") == bearer_key("bearer  abc ") == "abc"
    assert [bearer_key(header) for header in (None, "", "abc", "Bearer", "Bearer ", "Basic abc")] == [None] * 6


def test_is_valid_key() -> None:
    assert is_valid_key("b", ("a", "b"))
    assert not any(is_valid_key(key, ("a", "b")) for key in (None, "", "c", "a ", "é", "\udcff"))
    assert not is_valid_key("", ("",))
    assert Settings().accepts_key(None)
    assert Settings(keys=("a",)).accepts_key("a")
    assert not Settings(keys=("a",)).accepts_key(None)
