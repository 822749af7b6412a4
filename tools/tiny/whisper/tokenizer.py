"""The small byte-level BPE, with Whisper's special tokens behind it in the published order."""

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
    """A sentence as it stands in a transcript: after a space, where the script has any."""
    return text if language == "zh" else f" {text}"


def texts(count: int = 20_000) -> Iterable[str]:
    """What the tokenizer is trained on: sentences, and contexts."""
    rng = random.Random(SEED)
    for index in range(count):
        language = list(LANGUAGES)[index % 3]
        made = sentence(language, rng, with_context=index % 4 == 0)
        yield spaced(language, made.text)
        if made.context:
            yield f" {made.context}"


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of ``token``.

    Raises:
        RuntimeError: the tokenizer has none.
    """
    found = tokenizer.token_to_id(token)
    if found is None:
        raise RuntimeError(f"the tokenizer has no {token}")
    return int(found)


def train_tokenizer() -> Tokenizer:
    """Ids 0–899 are BPE entries, then the special tokens, then 1501 timestamps, which are added but not special."""
    tokenizer = train_entries(texts())
    specials = special_tokens(tuple(LANGUAGES), POSITIONS)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials if "." not in t])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in specials if "." in t])
    return tokenizer
