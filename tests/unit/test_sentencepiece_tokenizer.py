"""SentencePiece models as tokenizers: ids and texts are those of the sentencepiece package."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from sentencepiece.sentencepiece_model_pb2 import ModelProto, TrainerSpec
from tokenizers import Tokenizer

from export.errors import CheckpointInvalidError, CheckpointNotFoundError
from export.sentencepiece_tokenizer import load_sentencepiece
from tests.conftest import REPOSITORY

REFERENCES = REPOSITORY / "tests" / "references" / "sentencepiece"
NAMES = ["bpe", "unigram", "bpe-bytes"]
TOKENIZERS = {name: load_sentencepiece(REFERENCES / f"{name}.model") for name in NAMES}
PROCESSORS = {name: SentencePieceProcessor(model_file=str(REFERENCES / f"{name}.model")) for name in NAMES}
Piece = ModelProto.SentencePiece
# Excluded because ids may differ: white space other than the space, the mark, and names of control pieces.
TEXTS = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="▁<") | st.sampled_from(" абвдеов.,"))


@pytest.mark.parametrize("name", NAMES)
def test_ids_and_texts_equal_the_recorded_ones(name: str, tmp_path: Path) -> None:
    TOKENIZERS[name].save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    recorded: dict[str, Any] = json.loads((REFERENCES / f"{name}.json").read_text(encoding="utf-8"))
    assert tokenizer.get_vocab_size() == recorded["pieces"]
    for index in range(recorded["pieces"]):
        assert tokenizer.id_to_token(index) == PROCESSORS[name].IdToPiece(index)
    assert len(recorded["encoded"]) > 10
    for text, ids, back in recorded["encoded"]:
        assert tokenizer.encode(text).ids == ids, text
        assert tokenizer.decode(ids) == back
    assert len(recorded["decoded"]) == 20
    for ids, text in recorded["decoded"]:
        # The package keeps the space of an unknown piece at the beginning.
        assert tokenizer.decode(ids).strip() == text.strip()


@pytest.mark.parametrize("name", NAMES)
@given(text=TEXTS)
def test_any_text_has_the_same_ids_as_sentencepiece(name: str, text: str) -> None:
    ids = PROCESSORS[name].EncodeAsIds(text)
    assert TOKENIZERS[name].encode(text).ids == ids
    assert TOKENIZERS[name].decode(ids) == PROCESSORS[name].Decode(ids)


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_byte_pieces_encode_any_character(text: str) -> None:
    ids = PROCESSORS["bpe-bytes"].EncodeAsIds(text)
    assert TOKENIZERS["bpe-bytes"].encode(text).ids == ids
    assert TOKENIZERS["bpe-bytes"].decode(ids) == text


def test_normalization_equals_sentencepiece(samples: list[dict[str, Any]], tmp_path: Path) -> None:
    model, path = io.BytesIO(), tmp_path / "tokenizer.model"
    SentencePieceTrainer.Train(
        sentence_iterator=iter([sample["text"] for sample in samples] + ["fi 1 a"] * 9),
        model_writer=model,
        model_type="bpe",
        vocab_size=200,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc_cf",
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    tokenizer, processor = load_sentencepiece(path), SentencePieceProcessor(model_file=str(path))
    for text in ("ﬁ①Ａ", "  В\u00a0лесу\tи\nё ", "ЁЖ", *(sample["text"] for sample in samples)):
        assert tokenizer.encode(text).ids == processor.EncodeAsIds(text)
    assert tokenizer.decode(tokenizer.encode("ﬁ①Ａ").ids) == "fi1a"


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"tokenizer.model: .* missing"):
        load_sentencepiece(tmp_path / "tokenizer.model")


def test_folder_instead_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointInvalidError, match=r"cannot be read \(Is a directory\); download"):
        load_sentencepiece(tmp_path)


def small(change: Callable[[Any], object] = lambda model: None) -> bytes:
    """A model with two pieces, after ``change``."""
    model = ModelProto(pieces=[Piece(piece="<unk>", type=Piece.UNKNOWN), Piece(piece="a", score=-1.0)])
    change(model)
    data: bytes = model.SerializeToString()
    return data


def test_unknown_piece_decodes_to_the_surface_of_the_model(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(small(lambda model: model.trainer_spec.MergeFrom(TrainerSpec(unk_surface="?"))))
    assert load_sentencepiece(path).decode([1, 0, 1]) == "a?a"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "unk is not defined"),
        (b"[]", "Error parsing message"),
        (small()[:-1], "Error parsing message"),
        (small(lambda model: model.pieces.pop(0)), "unk is not defined"),
        (small(lambda model: model.pieces.add(piece="a")), "a is already defined"),
        (small(lambda model: model.pieces.add(piece="")), "piece must not be empty"),
        (small(lambda model: model.pieces.add(piece="b", score=float("nan"))), "score is NaN"),
        (small(lambda model: model.pieces.add(piece="<0x00>", type=Piece.BYTE)), "byte piece <0x00> is found"),
        (small().replace(b"a", b"\xff"), "can't decode byte"),
        (small(lambda model: setattr(model.trainer_spec, "unk_surface", "?")).replace(b"?", b"\xff"), "can't decode"),
        (small(lambda model: setattr(model.trainer_spec, "model_type", TrainerSpec.CHAR)), "its type is CHAR, not BPE"),
        (small(lambda model: setattr(model.normalizer_spec, "precompiled_charsmap", b"\xff" * 20)), "Trie data size"),
    ],
)
def test_invalid_models_are_one_line_errors(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    with pytest.raises(CheckpointInvalidError, match=rf"not a usable SentencePiece model \(.*{message}") as caught:
        load_sentencepiece(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@given(size=st.integers(0, 1563), index=st.integers(0, 1563), byte=st.integers(0, 255))
def test_damage_is_refused_or_harmless(
    size: int, index: int, byte: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A damaged file is read or raises CheckpointInvalidError, no other error."""
    data = bytearray((REFERENCES / "bpe.model").read_bytes())
    data[index] = byte
    path = tmp_path_factory.mktemp("damaged") / "tokenizer.model"
    for damaged in (bytes(data), bytes(data)[:size]):
        path.write_bytes(damaged)
        with contextlib.suppress(CheckpointInvalidError):
            load_sentencepiece(path)
