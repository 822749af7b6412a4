"""Parakeet in transformers' layout: TDT 0.6B v3 and CTC 1.1B, with made-up pieces for a vocabulary of the real size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import ParakeetCTCConfig, ParakeetForCTC, ParakeetForTDT, ParakeetTDTConfig

from tests.helpers import parakeet_checkpoint as tiny_parakeet
from tools.random_checkpoint.writing import model_shapes, write_config, write_tensors

# Both are FastConformers without biases in attention and convolutions and without scaling of the input.
_ENCODER: dict[str, Any] = {
    "hidden_size": 1024,
    "num_attention_heads": 8,
    "intermediate_size": 4096,
    "conv_kernel_size": 9,
    "subsampling_conv_channels": 256,
    "attention_bias": False,
    "convolution_bias": False,
    "scale_input": False,
}
TDT_VOCABULARY, CTC_VOCABULARY = 8193, 1025


def configuration(name: str) -> ParakeetTDTConfig | ParakeetCTCConfig:
    """Return the published configuration of ``parakeet-tdt-0.6b-v3`` or ``parakeet-ctc-1.1b``."""
    if "-ctc-" in name:
        encoder = _ENCODER | {"num_hidden_layers": 42, "num_mel_bins": 80}
        return ParakeetCTCConfig(vocab_size=CTC_VOCABULARY, pad_token_id=CTC_VOCABULARY - 1, encoder_config=encoder)
    return ParakeetTDTConfig(
        vocab_size=TDT_VOCABULARY,
        blank_token_id=TDT_VOCABULARY - 1,
        pad_token_id=2,
        decoder_hidden_size=640,
        num_decoder_layers=2,
        encoder_config=_ENCODER | {"num_hidden_layers": 24, "num_mel_bins": 128},
    )


def write(name: str, out: Path) -> None:
    """Write ``parakeet-tdt-0.6b-v3`` or ``parakeet-ctc-1.1b``."""
    config = configuration(name)
    write_config(out, config.to_dict())
    tiny_parakeet.tokenizer(config.vocab_size - 1).save(str(out / "tokenizer.json"))
    kind = ParakeetForTDT if isinstance(config, ParakeetTDTConfig) else ParakeetForCTC
    write_tensors(out, model_shapes(kind, config))
