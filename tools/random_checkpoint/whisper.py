"""Whisper large-v3-turbo in transformers' layout, with a tokenizer of the real size."""

from __future__ import annotations

from pathlib import Path

from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from tests.helpers.whisper_checkpoint import special_tokens, write_companions
from tools.random_checkpoint.writing import model_shapes, write_config, write_tensors

TEXT_TOKENS, POSITIONS = 50_257, 1500


def write(name: str, out: Path) -> None:
    """Write ``whisper-large-v3-turbo``."""
    specials = special_tokens(tuple(LANGUAGES), POSITIONS)
    ids = {token: TEXT_TOKENS + index for index, token in enumerate(specials)}
    config = WhisperConfig(
        vocab_size=TEXT_TOKENS + len(specials),
        num_mel_bins=128,
        encoder_layers=32,
        decoder_layers=4,
        encoder_attention_heads=20,
        decoder_attention_heads=20,
        encoder_ffn_dim=5120,
        decoder_ffn_dim=5120,
        d_model=1280,
        max_source_positions=POSITIONS,
        max_target_positions=448,
        decoder_start_token_id=ids["<|startoftranscript|>"],
        eos_token_id=ids["<|endoftext|>"],
        bos_token_id=ids["<|endoftext|>"],
        pad_token_id=ids["<|endoftext|>"],
    )
    write_config(out, config.to_dict())
    write_companions(out, config, tuple(LANGUAGES), suppress=[ids["<|startoftranscript|>"], ids["<|startofprev|>"]])
    write_tensors(out, model_shapes(WhisperForConditionalGeneration, config))
