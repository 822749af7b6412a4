"""The small Whisper: configuration, first weights, features in torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.audio_utils import mel_filter_bank

from tools.tiny.whisper.tokenizer import POSITIONS

RATE, HOP, MELS, N_FFT = 16_000, 160, 128, 400
# Samples of one row of the encoder's output: its second convolution has a stride of 2.
ROW = 2 * HOP
WINDOW = POSITIONS * ROW
CONTEXT = 448


def config(tokenizer: Tokenizer) -> WhisperConfig:
    """Return the configuration: widths are multiples of 32, a quantization block; few decoder layers, as in turbo."""
    end, start = tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|startoftranscript|>")
    return WhisperConfig(
        vocab_size=tokenizer.get_vocab_size(),
        num_mel_bins=MELS,
        d_model=192,
        encoder_layers=4,
        decoder_layers=3,
        encoder_attention_heads=3,
        decoder_attention_heads=3,
        encoder_ffn_dim=768,
        decoder_ffn_dim=768,
        max_source_positions=POSITIONS,
        max_target_positions=CONTEXT,
        decoder_start_token_id=start,
        eos_token_id=end,
        bos_token_id=end,
        pad_token_id=end,
    )


def untrained(tokenizer: Tokenizer, seed: int) -> WhisperForConditionalGeneration:
    """Return the model with random weights, scaled by the width of each layer's input, so that all parts learn."""
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config(tokenizer))
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and name != "proj_out":
                deep = name.endswith(("out_proj", "fc2"))
                module.weight.normal_(std=(0.35 if deep else 0.7) * module.in_features**-0.5)
            elif isinstance(module, nn.Conv1d):
                # Their output is added to sines of amplitude 1.
                module.weight.normal_(std=2.0 * module.weight[0].numel() ** -0.5)
        model.model.decoder.embed_tokens.weight.normal_(std=0.05)
        model.model.decoder.embed_positions.weight.normal_(std=0.02)
    return model


_WINDOW = torch.hann_window(N_FFT)
_FILTERS = torch.from_numpy(
    mel_filter_bank(1 + N_FFT // 2, MELS, 0.0, 8000.0, RATE, norm="slaney", mel_scale="slaney").T
).float()


def log_mel(waves: Sequence[npt.NDArray[np.float32]], samples: int) -> Tensor:
    """Return features [B, 128, frames] of clips at 16 kHz, padded to ``samples``, a multiple of ``HOP``."""
    padded = torch.zeros(len(waves), samples)
    for row, wave in enumerate(waves):
        padded[row, : len(wave)] = torch.from_numpy(wave)
    spectrum = torch.view_as_real(torch.stft(padded, N_FFT, HOP, window=_WINDOW, return_complex=True)[..., :-1])
    power = spectrum.square().sum(-1)  # five times as fast as the absolute value
    mel = (_FILTERS @ power).clamp(min=1e-10).log10()
    return (torch.maximum(mel, mel.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0
