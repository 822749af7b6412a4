"""SentencePiece models read without their package: ids and texts are those that the package gives."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from export.errors import CheckpointInvalidError, CheckpointNotFoundError
from export.sentencepiece import Kind, load_sentencepiece, read_sentencepiece, to_tokenizer
from tests.conftest import REPOSITORY

REFERENCES = REPOSITORY / "tests" / "references" / "sentencepiece"
NAMES = ["bpe", "unigram", "bpe-bytes"]


def reference(name: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads((REFERENCES / f"{name}.json").read_text(encoding="utf-8"))
    return said


@pytest.mark.parametrize("name", NAMES)
def test_ids_and_texts_are_those_of_the_package(name: str, tmp_path: Path) -> None:
    model = read_sentencepiece(REFERENCES / f"{name}.model")
    to_tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    said = reference(name)
    assert len(model.pieces) == tokenizer.get_vocab_size() == said["pieces"]
    for at, piece in enumerate(model.pieces):
        assert tokenizer.id_to_token(at) == piece.text
    assert len(said["encoded"]) > 10
    for text, ids, back in said["encoded"]:
        assert tokenizer.encode(text).ids == ids, text
        assert tokenizer.decode(ids) == back
    assert len(said["decoded"]) == 20
    for ids, text in said["decoded"]:
        # The package keeps the space of an unknown piece at the beginning.
        assert tokenizer.decode(ids).strip() == text.strip()


def test_pieces_have_their_kinds() -> None:
    pieces = read_sentencepiece(REFERENCES / "bpe-bytes.model").pieces
    assert [piece.kind for piece in pieces[:2]] == [Kind.UNKNOWN, Kind.BYTE]
    assert sum(piece.kind is Kind.BYTE for piece in pieces) == 256


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="the SentencePiece model is missing"):
        read_sentencepiece(tmp_path / "tokenizer.model")


def delimited(number: int, data: bytes) -> bytes:
    """A field with bytes, at most 127 of them."""
    return bytes([number << 3 | 2, len(data)]) + data


UNKNOWN = delimited(1, delimited(1, b"<unk>") + b"\x18\x02")
A = delimited(1, delimited(1, b"a"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "one unknown piece"),
        (A, "one unknown piece"),
        (UNKNOWN + A + A, "a piece is there twice"),
        (UNKNOWN + delimited(1, b""), "a piece is empty"),
        (UNKNOWN + A[:-1], "it ends inside of a field at byte 13"),
        (UNKNOWN + b"\x0a", "no number at byte 12"),
        (UNKNOWN + b"\x80" * 11, "no number at byte 11"),
        (UNKNOWN + b"\x08\x01", "a number stands where bytes are expected"),
        (UNKNOWN + delimited(1, delimited(1, b"a") + delimited(3, b"")), "bytes stand where a number is expected"),
        (UNKNOWN + b"\x0b", "wire type 3"),
        (UNKNOWN + delimited(1, delimited(1, b"\xff")), "can't decode byte"),
        (UNKNOWN + delimited(1, delimited(1, b"a") + b"\x18\x09"), "9 is not a valid Kind"),
        (UNKNOWN + delimited(1, delimited(1, b"a") + delimited(2, b"\x00")), "requires a buffer of 4 bytes"),
        (UNKNOWN + delimited(2, b"\x18\x04"), "4 is not a valid Algorithm"),  # single characters
    ],
)
def test_what_is_no_model_is_one_sentence(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    with pytest.raises(CheckpointInvalidError, match=message) as caught:
        read_sentencepiece(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_in_its_place_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointInvalidError, match=r"cannot be read \(Is a directory\); download the checkpoint again"
    ):
        load_sentencepiece(tmp_path)


def test_a_normalization_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(UNKNOWN + A + delimited(3, delimited(2, b"\xff" * 20)))
    with pytest.raises(
        CheckpointInvalidError, match=r"not a SentencePiece model that can be used .*recompiled"
    ) as caught:
        load_sentencepiece(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@given(cut=st.integers(0, 1563), at=st.integers(0, 1563), byte=st.integers(0, 255))
def test_damage_is_noticed_or_harmless(cut: int, at: int, byte: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A damaged file is refused or read; nothing else is raised."""
    data = bytearray((REFERENCES / "bpe.model").read_bytes())
    data[at] = byte
    path = tmp_path_factory.mktemp("damaged") / "tokenizer.model"
    for damaged in (bytes(data), bytes(data)[:cut]):
        path.write_bytes(damaged)
        with contextlib.suppress(CheckpointInvalidError):
            load_sentencepiece(path)
