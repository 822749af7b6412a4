"""A checkpoint's byte-level BPE tokenizer, in one file or in several."""

from __future__ import annotations

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from export.checkpoints import TOKENIZER_FILES, CheckpointFolder
from export.errors import CheckpointNotFoundError


def load_tokenizer(folder: CheckpointFolder) -> Tokenizer:
    """``tokenizer.json``, or what transformers makes of vocabulary, merges and added tokens.

    Raises:
        CheckpointNotFoundError: a file is missing.
    """
    single = folder.path / "tokenizer.json"
    if single.is_file():
        return Tokenizer.from_file(str(single))
    for name in TOKENIZER_FILES:
        if not (folder.path / name).is_file():
            raise CheckpointNotFoundError(f"{folder.path / name}: the tokenizer needs this file, or a tokenizer.json")
    backend: Tokenizer = AutoTokenizer.from_pretrained(folder.path, local_files_only=True).backend_tokenizer
    return backend
