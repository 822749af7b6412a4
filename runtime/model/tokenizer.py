"""Read the tokenizer of a model and report files that the package tokenizers refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from runtime.errors import ArtifactInvalidError
from runtime.model.artifact import Artifact

# Characters of an error message: those of parsers may quote the whole file.
_MAX_REASON = 200


def reason(error: BaseException) -> str:
    """Return the message of a library's error in one line of at most 200 characters, or its class if it has none."""
    message = " ".join(str(error).split()) or type(error).__name__
    return message if len(message) <= _MAX_REASON else message[: _MAX_REASON - 1] + "…"


@contextmanager
def refusals() -> Iterator[None]:
    """Convert errors of the package tokenizers to :class:`ValueError` with a message of one line.

    The package raises plain :class:`Exception`, and for a panic of its Rust code a ``PanicException``, which derives
    from :class:`BaseException` and is exported by no module. All other exceptions pass unchanged.

    Raises:
        ValueError: the package refused its input.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__module__ != "pyo3_runtime":
            raise
        raise ValueError(reason(error)) from None


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a ``tokenizer.json``.

    Raises:
        ValueError: the file cannot be read, is not a tokenizer or has no tokens. The message does not contain the path.
    """
    with refusals():
        tokenizer = Tokenizer.from_file(str(path))
    if not tokenizer.get_vocab_size():
        raise ValueError("it has no tokens")
    return tokenizer


def open_tokenizer(artifact: Artifact) -> Tokenizer:
    """Read the tokenizer that the manifest names.

    Raises:
        ArtifactInvalidError: the file is not a readable tokenizer.
    """
    path = artifact.path / artifact.manifest.tokenizer
    try:
        return read_tokenizer(path)
    except ValueError as error:
        raise ArtifactInvalidError(f"{path}: not a readable tokenizer ({error}); export the model again") from None
