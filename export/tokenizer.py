"""Load a checkpoint's tokenizer from one file, or from the vocabulary and merges of a byte-level BPE."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from export.checkpoints import AGAIN, TOKENIZER_FILES, CheckpointFolder
from export.errors import CheckpointInvalidError, CheckpointNotFoundError
from runtime.model.tokenizer import read_tokenizer, reason

SINGLE = "tokenizer.json"


def load_single(folder: CheckpointFolder) -> Tokenizer:
    """Load the tokenizer in ``tokenizer.json``.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CheckpointInvalidError: the file is not a readable tokenizer.
    """
    path = folder.path / SINGLE
    if not path.exists():
        raise CheckpointNotFoundError(f"{path}: the checkpoint's tokenizer is missing; {AGAIN}")
    try:
        return read_tokenizer(path)
    except ValueError as error:
        raise CheckpointInvalidError(f"{path}: not a readable tokenizer ({error}); {AGAIN}") from None


def load_tokenizer(folder: CheckpointFolder) -> Tokenizer:
    """Load ``tokenizer.json``, or build the tokenizer from vocabulary, merges and added tokens with transformers.

    Raises:
        CheckpointNotFoundError: a file is missing.
        CheckpointInvalidError: a file cannot be read, or the files do not make a tokenizer.
    """
    if (folder.path / SINGLE).exists():
        return load_single(folder)
    for name in TOKENIZER_FILES:
        if not (folder.path / name).is_file():
            raise CheckpointNotFoundError(f"{folder.path / name}: the tokenizer needs this file, or a {SINGLE}")
    # Checked first, because transformers does not name the faulty file and accepts an empty list of merges.
    vocabulary, merges, configuration = TOKENIZER_FILES
    folder.read_json(vocabulary)
    folder.read_json(configuration)
    _check_merges(folder.path / merges)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder.path, local_files_only=True, trust_remote_code=False)
        backend: Tokenizer = tokenizer.backend_tokenizer
    except Exception as error:  # noqa: BLE001  (transformers raises errors of any kind for wrong files)
        raise CheckpointInvalidError(
            f"{folder.path}: {', '.join(TOKENIZER_FILES)} make no tokenizer ({reason(error)}); {AGAIN}"
        ) from None
    return backend


def _check_merges(path: Path) -> None:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointInvalidError(f"{path}: cannot be read ({reason(error)}); {AGAIN}") from None
    if not any(line and not line.startswith("#version") for line in lines):
        raise CheckpointInvalidError(f"{path}: holds no merges; {AGAIN}")
