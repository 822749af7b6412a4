"""What a layout of Whisper checkpoints gives: configuration, generation settings, tokenizer and named tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import msgspec
from tokenizers import Tokenizer
from torch import Tensor
from transformers import WhisperConfig
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from export.checkpoints import TOKENIZER_FILES, CheckpointFolder
from export.checks import parse_config
from export.errors import CheckpointInvalidError, CheckpointNotFoundError
from export.tokenizer import SINGLE, load_tokenizer
from export.weights import NamedTensor

# Names in transformers' model.
EMBEDDING = "model.decoder.embed_tokens.weight"
HEAD = "proj_out.weight"
# The id of <|endoftext|> in GPT-2's vocabulary, which the English-only models have. Their tokenizers have language and
# task tokens too, but the models were trained without them. OpenAI tells them apart by the vocabulary's size, 51,864,
# which a fine-tuned model can change.
ENGLISH_STOP_ID = 50_256
# A first timestamp is at most 50 · 20 ms: the default of OpenAI's ``DecodingOptions.max_initial_timestamp``.
MAX_INITIAL_TIMESTAMP_INDEX = 50
TASKS = ("transcribe", "translate")


class Generation(msgspec.Struct, frozen=True):
    """Settings of decoding, named as in transformers' ``generation_config.json``."""

    decoder_start_token_id: int
    eos_token_id: int
    no_timestamps_token_id: int
    is_multilingual: bool = False
    lang_to_id: dict[str, int] = {}
    task_to_id: dict[str, int] = {}
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    max_initial_timestamp_index: int | None = None
    prev_sot_token_id: int | None = None


class Layout(ABC):
    """A checkpoint's files, read as transformers' model needs them.

    Attributes:
        name: name of the layout, for the manifest.
        described_by: what the configuration was read from, for messages.
        folder: the checkpoint.
        config: the model's geometry, of a kind that graphs and runtime support.
        generation: ids of special tokens, languages and suppressed tokens; all are in the vocabulary.
        tokenizer: the checkpoint's tokenizer.
    """

    name: ClassVar[str]
    described_by: ClassVar[str]
    folder: CheckpointFolder
    config: WhisperConfig
    generation: Generation
    tokenizer: Tokenizer

    @abstractmethod
    def __init__(self, folder: CheckpointFolder) -> None:
        """Read everything but the weights.

        Raises:
            CheckpointNotFoundError: a file is missing.
            CheckpointInvalidError: a file cannot be read, or graphs and runtime do not support its settings.
        """

    @property
    @abstractmethod
    def settings(self) -> Path:
        """File of the generation settings, for messages."""

    @abstractmethod
    def tensors(self) -> Iterator[NamedTensor]:
        """Yield every tensor: its name in the file, its name in transformers' model, its values.

        Raises:
            CheckpointInvalidError: a tensor is missing, unexpected, or cannot be read.
        """

    def check_front_end(self, window_samples: int) -> None:  # noqa: B027  (optional)
        """Check settings of the feature extraction, where the layout has them, for windows of ``window_samples``.

        Raises:
            CheckpointInvalidError: a setting differs from the only value that is supported.
        """


def check_heads(path: Path, heads: Mapping[str, int], width: int) -> None:
    """Check that numbers of attention heads divide the model's width.

    Raises:
        CheckpointInvalidError: one does not.
    """
    for key, count in heads.items():
        if count < 1 or width % count:
            raise CheckpointInvalidError(f"{path}: {key} is {count}, which does not divide d_model, {width}")


def check_generation(path: Path, generation: Generation, vocabulary: int) -> None:
    """Check that languages and tasks are complete, and that all ids are below ``vocabulary``.

    Raises:
        CheckpointInvalidError: they are not.
    """
    if generation.is_multilingual and not (generation.lang_to_id and "transcribe" in generation.task_to_id):
        raise CheckpointInvalidError(f"{path}: a multilingual model needs lang_to_id and task_to_id")
    ids = [
        generation.decoder_start_token_id,
        generation.eos_token_id,
        generation.no_timestamps_token_id + 1,
        *generation.lang_to_id.values(),
        *generation.task_to_id.values(),
        *(generation.suppress_tokens or ()),
        *(generation.begin_suppress_tokens or ()),
    ]
    if outside := [each for each in ids if not 0 <= each < vocabulary]:
        raise CheckpointInvalidError(f"{path}: id {outside[0]} is not in a vocabulary of {vocabulary}")


def make_config(path: Path, geometry: Mapping[str, int], tokenizer: Tokenizer) -> WhisperConfig:
    """Make transformers' configuration from the sizes that a file has.

    Args:
        path: the file, for messages.
        geometry: sizes by their keys in ``WhisperConfig``.
        tokenizer: gives the ids of start and stop token.

    Raises:
        CheckpointInvalidError: a size is not positive, or the width is not divisible by the heads.
        CheckpointInvalidError: the tokenizer lacks a token.
    """
    if wrong := [key for key, value in geometry.items() if value < 1]:
        raise CheckpointInvalidError(f"{path}: {wrong[0]} is {geometry[wrong[0]]}, not a positive number")
    heads = {key: geometry[key] for key in ("encoder_attention_heads", "decoder_attention_heads")}
    check_heads(path, heads, geometry["d_model"])
    stop = special_id(tokenizer, "<|endoftext|>", path)
    ids = {
        "decoder_start_token_id": special_id(tokenizer, "<|startoftranscript|>", path),
        "eos_token_id": stop,
        "bos_token_id": stop,
        "pad_token_id": stop,
    }
    if stop >= geometry["vocab_size"]:
        raise CheckpointInvalidError(
            f"{path}: the tokenizer's <|endoftext|> has the id {stop}, which is not in a vocabulary of "
            f"{geometry['vocab_size']}"
        )
    config: WhisperConfig = parse_config(WhisperConfig, {**geometry, **ids}, path)
    return config


def make_generation(
    path: Path,
    tokenizer: Tokenizer,
    language_ids: Iterable[int] | None,
    suppress: list[int] | None,
    begin_suppress: list[int] | None,
) -> Generation:
    """Make generation settings from a tokenizer's special tokens.

    Args:
        path: the file of the other settings, for messages.
        tokenizer: the checkpoint's.
        language_ids: ids of the language tokens. Ids of other special tokens, which older converters list, are left
            out. None selects every language that the tokenizer has.
        suppress: tokens that are never generated.
        begin_suppress: tokens that are not generated first.

    Raises:
        CheckpointInvalidError: the tokenizer lacks a token, or a language's id is not that of a special token.
    """
    stop = special_id(tokenizer, "<|endoftext|>", path)
    by_id = {special_id(tokenizer, name, path): name for name in language_tokens(tokenizer)}
    for each in (language_ids := sorted(by_id if language_ids is None else language_ids)):
        if each < stop or tokenizer.id_to_token(each) is None:
            raise CheckpointInvalidError(f"{path}: id {each} of lang_ids is not a special token of the tokenizer")
    languages = {by_id[each]: each for each in language_ids if each in by_id} if stop != ENGLISH_STOP_ID else {}
    return Generation(
        decoder_start_token_id=special_id(tokenizer, "<|startoftranscript|>", path),
        eos_token_id=stop,
        no_timestamps_token_id=special_id(tokenizer, "<|notimestamps|>", path),
        is_multilingual=bool(languages),
        lang_to_id=languages,
        task_to_id={task: special_id(tokenizer, f"<|{task}|>", path) for task in TASKS} if languages else {},
        suppress_tokens=suppress,
        begin_suppress_tokens=begin_suppress,
        max_initial_timestamp_index=MAX_INITIAL_TIMESTAMP_INDEX,
        prev_sot_token_id=special_id(tokenizer, "<|startofprev|>", path),
    )


def language_tokens(tokenizer: Tokenizer) -> list[str]:
    """Language tokens that the tokenizer has, such as ``<|en|>``."""
    return [token for code in LANGUAGES if tokenizer.token_to_id(token := f"<|{code}|>") is not None]


def special_id(tokenizer: Tokenizer, token: str, path: Path) -> int:
    """Id of a special token.

    Raises:
        CheckpointInvalidError: the tokenizer has no such token.
    """
    token_id: int | None = tokenizer.token_to_id(token)
    if token_id is None:
        raise CheckpointInvalidError(f"{path.parent}: the tokenizer has no {token}: it is not that of a Whisper model")
    return token_id


def load_added_tokenizer(folder: CheckpointFolder) -> Tokenizer:
    """Load the tokenizer beside weights whose layout does not always include one.

    Raises:
        CheckpointNotFoundError: there is none; the message says what to add.
        CheckpointInvalidError: its files cannot be read.
    """
    if not any((folder.path / name).exists() for name in (SINGLE, *TOKENIZER_FILES)):
        raise CheckpointNotFoundError(
            f"{folder.path}: holds no tokenizer; add the {SINGLE} of the model that these weights were trained from, "
            f"or its {', '.join(TOKENIZER_FILES)}"
        )
    return load_tokenizer(folder)


def check_names(path: Path, present: Iterable[str], expected: Iterable[str]) -> None:
    """Check that a file has exactly the expected tensors.

    Raises:
        CheckpointInvalidError: a tensor is missing or unexpected.
    """
    missing, unexpected = sorted({*expected} - {*present}), sorted({*present} - {*expected})
    for names, problem in ((missing, "is missing"), (unexpected, "is unexpected in a Whisper model of this size")):
        if names:
            more = f" (and {len(names) - 1} more)" if names[1:] else ""
            raise CheckpointInvalidError(f"{path}: tensor {names[0]!r} {problem}{more}")


def shape_of(path: Path, name: str, shapes: Mapping[str, tuple[int, ...]], rank: int) -> tuple[int, ...]:
    """Shape of a tensor that the geometry is read from.

    Raises:
        CheckpointInvalidError: it is missing, or has another rank.
    """
    if name not in shapes:
        raise CheckpointInvalidError(f"{path}: tensor {name!r} is missing")
    if len(shapes[name]) != rank:
        raise CheckpointInvalidError(f"{path}: tensor {name!r} has shape {list(shapes[name])}, not {rank} dimensions")
    return shapes[name]


def split_rows(path: Path, name: str, tensor: Tensor, parts: int) -> list[Tensor]:
    """Split a tensor of ``parts`` projections that are stacked in rows.

    Raises:
        CheckpointInvalidError: its rows are not divisible by ``parts``.
    """
    if not tensor.ndim or tensor.shape[0] % parts:
        raise CheckpointInvalidError(
            f"{path}: tensor {name!r} has shape {list(tensor.shape)}, which is not {parts} stacked projections"
        )
    return list(tensor.reshape(parts, tensor.shape[0] // parts, *tensor.shape[1:]).unbind())
