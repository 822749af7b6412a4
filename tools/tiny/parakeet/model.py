"""The small Parakeet: configuration, first weights, features in torch, and the encoder as it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ParakeetForTDT, ParakeetTDTConfig
from transformers.audio_utils import mel_filter_bank

from tools.tiny.parakeet.labels import LONGEST
from tools.tiny.parakeet.tokenizer import PAD, SPECIAL, VOCABULARY

RATE, HOP, MELS, N_FFT, WINDOW, PREEMPHASIS = 16_000, 160, 80, 512, 400, 0.97
SUBSAMPLING = 8
_POWER_GUARD, _DEVIATION_GUARD = 2.0**-24, 1e-5


def config() -> ParakeetTDTConfig:
    """Return the configuration; widths are multiples of 32, the size of a quantization block."""
    return ParakeetTDTConfig(
        vocab_size=VOCABULARY,
        blank_token_id=VOCABULARY - 1,
        pad_token_id=SPECIAL.index(PAD),
        decoder_hidden_size=160,
        num_decoder_layers=2,
        durations=list(range(LONGEST + 1)),
        encoder_config={
            "hidden_size": 160,
            "num_hidden_layers": 4,
            "num_attention_heads": 5,
            "intermediate_size": 640,
            "subsampling_conv_channels": 32,
            "num_mel_bins": MELS,
            "subsampling_factor": SUBSAMPLING,
        },
    )


@torch.no_grad()
def new_model(seed: int) -> ParakeetForTDT:
    """Return a model with random weights that keep the scale of activations, since the stem has no norms."""
    torch.manual_seed(seed)
    model = ParakeetForTDT(config())
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Linear | nn.Conv1d):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.3)
        elif isinstance(module, nn.BatchNorm1d):
            module.momentum = 0.03  # average over many batches, since the clips of a batch have similar lengths
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Conv1d) and module.bias is not None:
            nn.init.zeros_(module.bias)
    model.encoder.subsampling.linear.weight /= model.encoder.input_scale
    return model


_HANN = torch.hann_window(WINDOW, periodic=False)
_FILTERS = torch.from_numpy(
    mel_filter_bank(1 + N_FFT // 2, MELS, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney").T
).float()


def log_mel(clips: Sequence[npt.NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
    """Return ``runtime.features.nemo_mel`` features [B, T, mels] of 16 kHz clips, 0 past each clip, and frames [B]."""
    longest = max(HOP, *(len(clip) for clip in clips))
    waves = torch.zeros(len(clips), longest)
    for row, clip in enumerate(clips):
        wave = torch.from_numpy(clip)
        waves[row, : len(clip)] = wave
        waves[row, 1 : len(clip)] -= PREEMPHASIS * wave[:-1]
    frames = torch.tensor([max(1, len(clip) // HOP) for clip in clips])
    spectrum = torch.stft(waves, N_FFT, HOP, win_length=WINDOW, window=_HANN, pad_mode="constant", return_complex=True)[
        ..., : int(frames.max())
    ]
    mel = (_FILTERS @ (spectrum.real**2 + spectrum.imag**2) + _POWER_GUARD).log()
    valid = (torch.arange(mel.shape[-1]) < frames[:, None])[:, None]
    mean = (mel * valid).double().sum(-1, keepdim=True) / frames[:, None, None]  # exact, so that silence gives 0
    centered = (mel - mean).float() * valid
    deviation = ((centered**2).sum(-1, keepdim=True) / (frames - 1).clamp(min=1)[:, None, None]).sqrt()
    return (centered / (deviation + _DEVIATION_GUARD)).transpose(1, 2).contiguous(), frames


def encoded_frames(frames: int) -> int:
    """Return the number of encoder frames of ``frames`` feature frames."""
    for _ in range(3):
        frames = (frames - 1) // 2 + 1
    return frames


def encode(encoder: Any, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Run transformers' encoder without dropout, written for training.

    The reference's batch norms also count padding, and it projects the positions for every row. Convolutions run in
    float32: measured on a CPU, their backward pass is several times as fast as in bf16.

    Returns:
        Encoded frames [B, T', hidden] and their numbers [B], for features [B, T, mels] and numbers of frames [B].
    """
    x = features.unsqueeze(1)
    with torch.autocast("cpu", enabled=False):
        for layer in encoder.subsampling.layers:
            x = layer(x)
            if isinstance(layer, nn.Conv2d) and layer.stride[0] > 1:
                frames = (frames - 1) // 2 + 1
            elif isinstance(layer, nn.ReLU):
                x = x * (torch.arange(x.shape[2]) < frames[:, None])[:, None, :, None].to(x.dtype)
    x = x.transpose(1, 2).flatten(2)
    x = encoder.subsampling.linear(x).float() * encoder.input_scale
    valid = torch.arange(x.shape[1]) < frames[:, None]
    mask = torch.where(valid, 0.0, -1e4)[:, None, None, :]
    distances = (x.shape[1] - 1) - torch.arange(2 * x.shape[1] - 1)
    angles = distances[:, None].float() * encoder.encode_positions.inv_freq
    positions = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
    for block in encoder.layers:
        x = x + 0.5 * _feed_forward(block.feed_forward1, block.norm_feed_forward1(x))
        x = x + _attention(block.self_attn, block.norm_self_att(x), positions, mask)
        x = x + _convolution(block.conv, block.norm_conv(x), valid)
        x = x + 0.5 * _feed_forward(block.feed_forward2, block.norm_feed_forward2(x))
        x = block.norm_out(x)
    return x, frames


def _feed_forward(module: Any, x: Tensor) -> Tensor:
    return module.linear2(F.silu(module.linear1(x)))  # type: ignore[no-any-return]


def _attention(module: Any, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
    batch, count, _ = x.shape
    heads, size = module.bias_u.shape
    q = module.q_proj(x).reshape(batch, count, heads, size) * module.scaling
    k = module.k_proj(x).reshape(batch, count, heads, size).permute(0, 2, 3, 1)
    v = module.v_proj(x).reshape(batch, count, heads, size).transpose(1, 2)
    far = module.relative_k_proj(positions).reshape(-1, heads, size).permute(1, 2, 0)
    contents = (q + module.bias_u * module.scaling).transpose(1, 2) @ k
    indices = (q + module.bias_v * module.scaling).transpose(1, 2) @ far
    indices = F.pad(indices, (1, 0)).reshape(batch, heads, -1, count)[:, :, 1:]
    indices = indices.reshape(batch, heads, count, -1)[..., :count]
    weights = torch.softmax(contents + indices + mask, dim=-1)
    y = (weights.to(v.dtype) @ v).transpose(1, 2).reshape(batch, count, heads * size)
    return module.o_proj(y)  # type: ignore[no-any-return]


def _convolution(module: Any, x: Tensor, valid: Tensor) -> Tensor:
    x = F.linear(x, module.pointwise_conv1.weight[:, :, 0], module.pointwise_conv1.bias)
    x = F.glu(x, dim=-1) * valid[..., None].to(x.dtype)
    with torch.autocast("cpu", enabled=False):
        x = module.depthwise_conv(x.float().transpose(1, 2)).transpose(1, 2)
        rows = F.silu(module.norm(x[valid]))
    rows = F.linear(rows, module.pointwise_conv2.weight[:, :, 0], module.pointwise_conv2.bias)
    return torch.zeros(x.shape, dtype=rows.dtype).masked_scatter(valid[..., None], rows)
