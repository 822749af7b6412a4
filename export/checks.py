"""Checks of a checkpoint's configuration that several families share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer

from export.errors import CheckpointInvalidError


def check_model_type(raw: Mapping[str, Any], expected: str, path: Path) -> None:
    """Check ``model_type`` of the configuration ``raw``.

    Raises:
        CheckpointInvalidError: it is not ``expected``.
    """
    model_type = raw.get("model_type")
    if model_type != expected:
        raise CheckpointInvalidError(
            f"{path}: model_type is {model_type!r}, not {expected!r}: this is another kind of checkpoint"
        )


def parse_config(config_class: Any, raw: dict[str, Any], path: Path) -> Any:
    """Parse the configuration ``raw`` with a configuration class of transformers.

    Args:
        config_class: a subclass of ``PretrainedConfig``.
        raw: contents of the file.
        path: the file, for messages.

    Raises:
        CheckpointInvalidError: transformers rejects it; its reason is in the message, on one line.
    """
    try:
        return config_class.from_dict(raw)
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointInvalidError(f"{path}: contradicts itself or the architecture ({reason})") from None


def check_values(path: Path, values: Mapping[str, tuple[Any, Any]], prefix: str = "") -> None:
    """Check that settings have the only value that graphs and runtime support.

    Args:
        path: the configuration file, for messages.
        values: key → (value, supported value).
        prefix: put before each key in messages.

    Raises:
        CheckpointInvalidError: a value is another one.
    """
    for key, (value, supported) in values.items():
        if value != supported:
            raise CheckpointInvalidError(
                f"{path}: {prefix}{key} is {value!r}, but this exporter supports only {supported!r}"
            )


def check_front_end(path: Path, raw: Mapping[str, Any], supported: Mapping[str, Any]) -> None:
    """Check the feature extractor's settings ``raw``, read from ``path``. Missing keys are not checked.

    Raises:
        CheckpointInvalidError: a key of ``supported`` has another value.
    """
    for key, value in supported.items():
        if raw.get(key, value) != value:
            raise CheckpointInvalidError(f"{path}: {key} is {raw[key]!r}, but the model's front end needs {value!r}")


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, folder: Path) -> None:
    """Check that every token id of ``tokenizer`` has a row in the embedding.

    Raises:
        CheckpointInvalidError: it has more tokens than ``vocab_size``.
    """
    tokens = tokenizer.get_vocab_size()
    if tokens > vocab_size:
        raise CheckpointInvalidError(
            f"{folder}: the tokenizer has {tokens} tokens, more than the vocab_size {vocab_size} of the model"
        )
