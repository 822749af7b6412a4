"""The small tokenizer: BPE with SentencePiece's word marks, single digits and punctuation, the blank last."""

from __future__ import annotations

import random
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tools.tiny.sentences import sentence

VOCABULARY = 512
UNKNOWN, PAD, BLANK = "<unk>", "<pad>", "<blank>"
SPECIAL = (UNKNOWN, "<s>", PAD)
# Digits and punctuation marks are tokens of their own.
ALONE = r"▁?\p{N}|[^\p{L}\p{N}▁]"


def texts(languages: Iterable[str], seed: int, count: int = 20_000) -> list[str]:
    """Return ``count`` sentences to train the tokenizer on, the same number in each language."""
    rng, codes = random.Random(seed), list(languages)
    return [sentence(codes[index % len(codes)], rng, with_context=index % 4 == 0).text for index in range(count)]


def train_tokenizer(corpus: Iterable[str]) -> Tokenizer:
    """Return a tokenizer trained on ``corpus``: ids 0 to 2 are special, the last one is the blank.

    Raises:
        RuntimeError: the corpus has too little variety.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split(Regex(ALONE), "isolated")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - 1, special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(BLANK, special=True, normalized=False)])
    if tokenizer.token_to_id(BLANK) != VOCABULARY - 1:
        raise RuntimeError(f"the corpus gives {tokenizer.get_vocab_size() - 1} of {VOCABULARY - 1} entries")
    return tokenizer
