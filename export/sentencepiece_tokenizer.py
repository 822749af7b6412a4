"""Convert SentencePiece models (``tokenizer.model``) to tokenizers with the same ids and the same text."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.message import DecodeError
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto, TrainerSpec
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers.convert_slow_tokenizer import generate_merges

from export.checkpoints import AGAIN
from export.errors import CheckpointInvalidError, CheckpointNotFoundError
from runtime.model.tokenizer import reason, refusals

MARK = "▁"  # stands for a space in a piece


def load_sentencepiece(path: Path) -> Tokenizer:
    """Convert the SentencePiece model at ``path``.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CheckpointInvalidError: the file cannot be read, or is not a valid SentencePiece model.
        CheckpointInvalidError: the model's type is neither BPE nor unigram.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointNotFoundError(f"{path}: the SentencePiece model is missing; {AGAIN}") from None
    except OSError as error:
        raise CheckpointInvalidError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from None
    try:
        with refusals():
            return _convert(data)
    except (DecodeError, RuntimeError, ValueError) as error:  # sentencepiece raises RuntimeError
        raise CheckpointInvalidError(f"{path}: not a usable SentencePiece model ({reason(error)}); {AGAIN}") from None


def _convert(data: bytes) -> Tokenizer:
    """Build the tokenizer from the contents of a model file.

    Decoding differs from SentencePiece at the start of a text (one space is removed, whatever the first pieces are)
    and for bytes that are not UTF-8 (all bytes of the run are replaced). Encoding differs for white space other than
    single spaces, marks and control pieces in the text, user-defined pieces and equally scored segmentations.
    """
    proto, processor = ModelProto.FromString(data), SentencePieceProcessor()
    processor.LoadFromSerializedProto(data)  # validates pieces, scores and normalization
    ids, unknown = list(range(processor.GetPieceSize())), processor.unk_id()
    pieces, byte, control = processor.IdToPiece(ids), processor.IsByte(ids), processor.IsControl(ids)
    scored, unused = list(zip(pieces, processor.GetScore(ids), strict=True)), processor.IsUnused(ids)
    algorithm, rules = proto.trainer_spec.model_type, proto.normalizer_spec
    if algorithm == TrainerSpec.UNIGRAM:
        tokenizer = Tokenizer(models.Unigram(scored, unk_id=unknown, byte_fallback=any(byte)))
    elif algorithm == TrainerSpec.BPE:
        vocab = {piece: i for i, piece in enumerate(pieces)}
        whole = [pieces[i] for i in ids if byte[i] or control[i] or unused[i] or i == unknown]
        merges = generate_merges(vocab, scored, skip_tokens=whole)
        bpe = models.BPE(vocab, merges, unk_token=pieces[unknown], fuse_unk=True, byte_fallback=any(byte))
        tokenizer = Tokenizer(bpe)
    else:
        raise ValueError(f"its type is {TrainerSpec.ModelType.Name(algorithm)}, not BPE or UNIGRAM")
    normalizer: list[normalizers.Normalizer] = []
    if rules.precompiled_charsmap:
        normalizer.append(normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        normalizer += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if normalizer:
        tokenizer.normalizer = normalizers.Sequence(normalizer)
    # split=False: pieces may span several words if the model was trained that way.
    scheme = "always" if rules.add_dummy_prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(MARK, prepend_scheme=scheme, split=False)
    unknown_text = decoders.Replace(pieces[unknown], processor.decode([unknown]))
    decoder = [unknown_text, decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if rules.add_dummy_prefix:
        decoder.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(decoder)
    tokenizer.add_special_tokens([AddedToken(pieces[i], special=True, normalized=False) for i in ids if control[i]])
    return tokenizer
