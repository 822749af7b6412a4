"""A model's tokenizer, read from its file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from runtime.errors import ArtifactInvalidError
from runtime.model.artifact import Artifact

# Characters of a reason: a parser's may quote all of a file.
_LONGEST_REASON = 200


def reason(error: BaseException) -> str:
    """What an error of a library says, in one line that is not too long; its kind when it says nothing."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= _LONGEST_REASON else said[: _LONGEST_REASON - 1] + "…"


@contextmanager
def refusals() -> Iterator[None]:
    """What the package tokenizers refuses becomes a :class:`ValueError` of one line.

    The package raises plain :class:`Exception`, and where its Rust code panics a ``PanicException``, which is not even
    that and which no module exports. All others are let through.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__module__ != "pyo3_runtime":
            raise
        raise ValueError(reason(error)) from None


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a ``tokenizer.json``.

    Raises:
        ValueError: the file cannot be read or holds none; the message says why, and not where.
    """
    with refusals():
        tokenizer = Tokenizer.from_file(str(path))
    if not tokenizer.get_vocab_size():
        raise ValueError("it has no tokens")
    return tokenizer


def open_tokenizer(artifact: Artifact) -> Tokenizer:
    """The tokenizer that the manifest names.

    Raises:
        ArtifactInvalidError: the file is none.
    """
    path = artifact.path / artifact.manifest.tokenizer
    try:
        return read_tokenizer(path)
    except ValueError as error:
        raise ArtifactInvalidError(f"{path}: not a readable tokenizer ({error}); export the model again") from None
