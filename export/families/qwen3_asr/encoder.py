"""Torch module from which the Qwen3-ASR encoder is traced: the audio encoder over a batch of independent windows.

The reference (transformers ``Qwen3ASREncoder``) packs all valid rows of all clips into one sequence and attends inside
windows of 800 frames. Attention never crosses a window. So a batch of windows gives the same numbers, by a graph
without data-dependent shapes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHUNK_FRAMES = 100
CHUNK_TOKENS = 13


def chunk_token_count(frames: Tensor) -> Tensor:
    """Output rows for ``frames`` mel frames (0 to 100) of one chunk, after three convolutions with stride 2."""
    for _ in range(3):
        frames = (frames + 1) // 2
    return frames


def window_token_count(frames: Tensor) -> Tensor:
    """Output rows for ``frames`` valid mel frames of one window: 13 per full chunk, fewer for the last one."""
    return frames // CHUNK_FRAMES * CHUNK_TOKENS + chunk_token_count(frames % CHUNK_FRAMES)


class WindowedEncoder(nn.Module):
    """Audio tower and projector of a ``Qwen3ASRForConditionalGeneration``, sharing its parameters.

    The convolutions process each zero-padded chunk of 100 frames alone, positions restart with every chunk, and
    attention is full inside the window. Rows past a window's :func:`window_token_count` are finite and undefined.
    """

    def __init__(self, tower: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.projector = projector
        self.heads: int = tower.config.encoder_attention_heads  # type: ignore[union-attr,assignment]

    def hidden(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Encode windows.

        Args:
            features: float32 [W, mels, T], T a multiple of 100.
            lengths: int64 [W], valid frames.

        Returns:
            Float32 [W, T/100·13, d_model].
        """
        tower = self.tower
        windows, mels, frames = features.shape
        chunks = frames // CHUNK_FRAMES
        x = features.reshape(windows, mels, chunks, CHUNK_FRAMES).permute(0, 2, 1, 3)
        x = x.reshape(windows * chunks, 1, mels, CHUNK_FRAMES)
        for conv in (tower.conv2d1, tower.conv2d2, tower.conv2d3):
            x = F.gelu(conv(x))  # type: ignore[operator]
        channels, bins = x.shape[1], x.shape[2]
        x = x.permute(0, 3, 1, 2).reshape(windows * chunks, CHUNK_TOKENS, channels * bins)
        x = tower.conv_out(x) + tower.positional_embedding.positional_embedding.to(x.dtype)  # type: ignore[operator,union-attr]
        x = x.reshape(windows, chunks * CHUNK_TOKENS, x.shape[-1])

        valid = torch.arange(chunks * CHUNK_TOKENS, device=lengths.device) < window_token_count(lengths)[:, None]
        # Large and finite instead of -inf: a window without valid rows (padding of a static batch) stays finite.
        bias = torch.where(valid, 0.0, -1e4).to(x.dtype)[:, None, None, :]
        for layer in tower.layers:  # type: ignore[union-attr]
            x = x + self._attention(layer.self_attn, layer.self_attn_layer_norm(x), bias)
            x = x + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(x))))
        return tower.ln_post(x)  # type: ignore[operator,no-any-return]

    def _attention(self, attention: Any, x: Tensor, bias: Tensor) -> Tensor:
        windows, rows, width = x.shape

        def split(projection: nn.Module) -> Tensor:
            return projection(x).reshape(windows, rows, self.heads, -1).transpose(1, 2)  # type: ignore[no-any-return]

        q, k, v = split(attention.q_proj), split(attention.k_proj), split(attention.v_proj)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return attention.out_proj(y.transpose(1, 2).reshape(windows, rows, width))  # type: ignore[no-any-return]

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Encode windows as :meth:`hidden` does and project to the decoder's width: float32 [W, T/100·13, hidden]."""
        return self.projector(self.hidden(features, lengths))  # type: ignore[no-any-return]
