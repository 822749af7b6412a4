"""The small tokenizer: BPE over SentencePiece's marks, digits and punctuation by themselves, the blank last."""

from __future__ import annotations

import random
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tools.tiny.sentences import sentence

VOCABULARY = 512
UNKNOWN, PAD, BLANK = "<unk>", "<pad>", "<blank>"
SPECIAL = (UNKNOWN, "<s>", PAD)
# A number is read as it is written, digit by digit; a mark of punctuation belongs to no word.
ALONE = r"▁?\p{N}|[^\p{L}\p{N}▁]"


def texts(languages: Iterable[str], seed: int, count: int = 20_000) -> list[str]:
    """What the tokenizer is trained on: ``count`` sentences, of each language equally many."""
    rng, codes = random.Random(seed), list(languages)
    return [sentence(codes[index % len(codes)], rng, with_context=index % 4 == 0).text for index in range(count)]


def train_tokenizer(corpus: Iterable[str]) -> Tokenizer:
    """Train on ``corpus``: ids 0–2 are special, the last is the blank."""
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
