"""The small byte-level BPE: Qwen's normalizer and pre-tokenizer pattern, 900 entries, then the special tokens."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

ENTRIES = 900
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|audio_start|>",
    "<|audio_end|>",
    "<|audio_pad|>",
)
# As in Qwen's tokenizer, these are not special tokens: decoding writes them, and the parser needs the first one.
PLAIN = ("<asr_text>", "<timestamp>")
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_entries(texts: Iterable[str]) -> Tokenizer:
    """Return a tokenizer trained on ``texts``, with BPE entries 0 to 899 and no others.

    Raises:
        RuntimeError: the texts have too little variety.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ENTRIES, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != ENTRIES:
        raise RuntimeError(f"the corpus gives only {tokenizer.get_vocab_size()} of {ENTRIES} BPE entries")
    return tokenizer


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Return a tokenizer trained on ``texts``: BPE entries 0 to 899, then ``SPECIAL`` and ``PLAIN`` in order."""
    tokenizer = train_entries(texts)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in PLAIN])
    return tokenizer
