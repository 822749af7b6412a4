"""SentencePiece models (``tokenizer.model``) as tokenizers, read without the sentencepiece package.

The file is a protocol buffer of a few plain fields. Sources: ``sentencepiece_model.proto`` of google/sentencepiece
(field numbers, kinds of pieces, defaults), the protocol buffers encoding guide (wire types), and for what pieces mean:
T. Kudo, J. Richardson, SentencePiece (arXiv 1808.06226).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from export.checkpoints import AGAIN
from export.errors import CheckpointInvalidError, CheckpointNotFoundError
from runtime.model.tokenizer import refusals

#: What stands for a space in a piece.
MARK = "▁"
#: What a decoder writes for the unknown piece: the default ``unk_surface``.
UNKNOWN_TEXT = " ⁇ "


class Kind(IntEnum):
    """``ModelProto.SentencePiece.Type``."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Algorithm(IntEnum):
    """``TrainerSpec.ModelType``, as far as tokenizers has it."""

    UNIGRAM = 1
    BPE = 2


@dataclass(frozen=True, slots=True)
class Piece:
    """An entry of the vocabulary; its place is its id."""

    text: str
    score: float
    kind: Kind


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """What of the file a tokenizer needs. ``character_map`` is the normalization, in SentencePiece's own coding."""

    pieces: list[Piece]
    algorithm: Algorithm
    character_map: bytes
    dummy_prefix: bool
    extra_spaces_removed: bool

    @property
    def unknown(self) -> int:
        """Id of the unknown piece."""
        return next(at for at, piece in enumerate(self.pieces) if piece.kind is Kind.UNKNOWN)


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """The model in ``path``.

    Raises:
        CheckpointNotFoundError: no such file.
        CheckpointInvalidError: it is no SentencePiece model, or one of a kind that has no tokenizer here.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointNotFoundError(f"{path}: the SentencePiece model is missing; {AGAIN}") from None
    except OSError as error:
        raise CheckpointInvalidError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from None
    try:
        return _model(data)
    except (ValueError, struct.error) as error:
        raise _unusable(path, error) from None


def load_sentencepiece(path: Path) -> Tokenizer:
    """The tokenizer of a SentencePiece model.

    Raises:
        see :func:`read_sentencepiece`; pieces or a normalization that make no tokenizer are a CheckpointInvalidError.
    """
    model = read_sentencepiece(path)
    try:
        with refusals():
            return to_tokenizer(model)
    except ValueError as error:
        raise _unusable(path, error) from None


def _unusable(path: Path, error: Exception) -> CheckpointInvalidError:
    return CheckpointInvalidError(f"{path}: not a SentencePiece model that can be used ({error}); {AGAIN}")


def _model(data: bytes) -> SentencePieceModel:
    pieces: list[Piece] = []
    algorithm, character_map, dummy_prefix, extra_spaces_removed = Algorithm.UNIGRAM, b"", True, True
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(_bytes(value)))
        elif number == 2:
            for key, given in _fields(_bytes(value)):
                if key == 3:
                    algorithm = Algorithm(_number(given))
        elif number == 3:
            for key, given in _fields(_bytes(value)):
                if key == 2:
                    character_map = _bytes(given)
                elif key == 3:
                    dummy_prefix = bool(_number(given))
                elif key == 4:
                    extra_spaces_removed = bool(_number(given))
    if sum(piece.kind is Kind.UNKNOWN for piece in pieces) != 1:
        raise ValueError("it must have one unknown piece")
    if len({piece.text for piece in pieces}) != len(pieces):
        raise ValueError("a piece is there twice")
    return SentencePieceModel(pieces, algorithm, character_map, dummy_prefix, extra_spaces_removed)


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, Kind.NORMAL
    for number, value in _fields(data):
        if number == 1:
            text = _bytes(value).decode()
        elif number == 2:
            (score,) = struct.unpack("<f", _bytes(value))
        elif number == 3:
            kind = Kind(_number(value))
    if not text:
        raise ValueError("a piece is empty")
    return Piece(text, score, kind)


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number stands where bytes are expected")
    return value


def _number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("bytes stand where a number is expected")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Fields of a message: number, and the value as a number (varint) or as bytes (fixed sizes and delimited ones)."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + size > len(data):
            raise ValueError(f"it ends inside of a field at byte {at}")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index in range(10):
        if at + index >= len(data):
            break
        byte = data[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError(f"no number at byte {at}")


def to_tokenizer(model: SentencePieceModel) -> Tokenizer:
    """A tokenizer with the same ids, the same text for ids, and the same ids for text.

    Two texts differ: bytes that are no UTF-8 are replaced together with those around them, and a text's first space is
    left out before an unknown piece too.
    """
    unknown = model.pieces[model.unknown].text
    by_bytes = any(piece.kind is Kind.BYTE for piece in model.pieces)
    if model.algorithm is Algorithm.UNIGRAM:
        scored = [(piece.text, piece.score) for piece in model.pieces]
        tokenizer = Tokenizer(models.Unigram(scored, unk_id=model.unknown, byte_fallback=by_bytes))
    else:
        vocabulary = {piece.text: at for at, piece in enumerate(model.pieces)}
        tokenizer = Tokenizer(
            models.BPE(vocabulary, _merges(model), unk_token=unknown, fuse_unk=True, byte_fallback=by_bytes)
        )
    steps: list[normalizers.Normalizer] = []
    if model.character_map:
        steps.append(normalizers.Precompiled(model.character_map))
    if model.extra_spaces_removed:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    scheme = "always" if model.dummy_prefix else "never"
    # Not split at the marks: pieces may go over them where the model was trained so.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(MARK, prepend_scheme=scheme, split=False)
    shown = [
        decoders.Replace(unknown, UNKNOWN_TEXT),
        decoders.Replace(MARK, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if model.dummy_prefix:
        shown.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(shown)
    control = [piece.text for piece in model.pieces if piece.kind is Kind.CONTROL]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in control])
    return tokenizer


def _merges(model: SentencePieceModel) -> list[tuple[str, str]]:
    """Pairs of pieces that make a piece, those of the highest score first.

    SentencePiece merges whatever two neighbours make the piece with the best score; a list of merges in that order,
    with every way to make each piece, is the same rule.
    """
    usable = {piece.text: at for at, piece in enumerate(model.pieces) if piece.kind in (Kind.NORMAL, Kind.USER_DEFINED)}
    ranked: list[tuple[float, int, int, tuple[str, str]]] = []
    for text, at in usable.items():
        for cut in range(1, len(text)):
            pair = text[:cut], text[cut:]
            if pair[0] in usable and pair[1] in usable:
                ranked.append((-model.pieces[at].score, usable[pair[0]], usable[pair[1]], pair))
    return [pair for *_, pair in sorted(ranked)]
