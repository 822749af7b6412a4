"""The small byte-level BPE, followed by Whisper's special tokens in the published order."""

from __future__ import annotations

import random
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer

from tests.helpers.whisper_checkpoint import special_tokens
from tools.tiny.qwen3_asr.tokenizer import train_entries
from tools.tiny.sentences import LANGUAGES, sentence

POSITIONS = 1500
SEED = 1


def spaced(language: str, text: str) -> str:
    """Return a sentence as in a transcript: after a space, except in Chinese."""
    return text if language == "zh" else f" {text}"


def texts(count: int = 20_000) -> Iterable[str]:
    """Yield texts to train the tokenizer on: sentences and contexts."""
    rng = random.Random(SEED)
    for index in range(count):
        language = list(LANGUAGES)[index % 3]
        spoken = sentence(language, rng, with_context=index % 4 == 0)
        yield spaced(language, spoken.text)
        if spoken.context:
            yield f" {spoken.context}"


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """Return the id of a token.

    Raises:
        RuntimeError: the tokenizer lacks it.
    """
    index = tokenizer.token_to_id(token)
    if index is None:
        raise RuntimeError(f"the tokenizer lacks the token {token}")
    return int(index)


def train_tokenizer() -> Tokenizer:
    """Return a tokenizer with BPE entries 0 to 899, the special tokens, and 1501 timestamps, which are not special."""
    tokenizer = train_entries(texts())
    specials = special_tokens(tuple(LANGUAGES), POSITIONS)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials if "." not in t])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in specials if "." in t])
    return tokenizer
