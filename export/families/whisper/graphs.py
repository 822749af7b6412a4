"""Torch modules from which Whisper's graphs are traced: the encoder with cross-attention projections, and the decoder.

Attention uses ONNX Runtime's own operators, for which providers have kernels:

* ``MultiHeadAttention`` in the encoder and in cross-attention: over 1500 positions and 20 heads of 64 its CPU kernel
  took 130 ms and 31 MB. Products and softmax as separate nodes took 164 ms and 203 MB, opset 23's ``Attention`` 142 ms
  and 189 MB (one thread, Sapphire Rapids). In cross-attention it reads keys and values
  ``[B, heads, positions, head_dim]`` without a transpose.
* ``GroupQueryAttention`` in the decoder's self-attention, without rotary positions and with as many key heads as query
  heads: it writes new keys and values in place into one buffer that is both past and present, for rows of different
  lengths and for one or many tokens. A step over eight rows of 448 positions took 0.9 ms. ``TensorScatter`` and
  ``Attention`` of opset 24 are also exact and in place, but took 2.2 ms, because they attend to the whole buffer;
  ``MultiHeadAttention`` allocates a new, longer past at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_FLOAT = 1  # onnx.TensorProto.FLOAT


def cross_names(layers: int) -> list[str]:
    """Names of the cross-attention keys and values of all decoder layers, in order."""
    return [f"cross_key_values.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]


def past_names(layers: int, prefix: str = "past_key_values") -> list[str]:
    """Names of the self-attention keys and values of all decoder layers, in order. Outputs' prefix is ``present``."""
    return [f"{prefix}.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]


def _multi_head(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention of ``q`` [B, S, width] over ``k``, ``v``: [B, S, width] or [B, heads, positions, head_dim]."""
    attended: Tensor = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        (q, k, v),
        attrs={"num_heads": heads},
        dtype=_FLOAT,
        shape=q.shape,
        version=1,
    )
    return attended


class CrossEncoder(nn.Module):
    """Encoder, and the cross-attention key and value projections of every decoder layer, computed once per window."""

    def __init__(self, encoder: Any, decoder: Any) -> None:
        """Share the parameters of transformers' ``WhisperEncoder`` and ``WhisperDecoder``."""
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.heads = int(encoder.config.encoder_attention_heads)
        self.decoder_heads = int(encoder.config.decoder_attention_heads)

    def hidden(self, features: Tensor) -> Tensor:
        """Encode ``features`` float32 [B, mels, 2·positions]: [B, positions, d_model]."""
        encoder = self.encoder
        x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(features)))).permute(0, 2, 1)
        x = x + encoder.embed_positions.weight
        for layer in encoder.layers:
            attention, y = layer.self_attn, layer.self_attn_layer_norm(x)
            q, k, v = attention.q_proj(y), attention.k_proj(y), attention.v_proj(y)
            x = x + attention.out_proj(_multi_head(q, k, v, self.heads))
            x = x + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(x))))
        hidden: Tensor = encoder.layer_norm(x)
        return hidden

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """Encode ``features`` float32 [B, mels, 2·positions].

        Returns:
            Cross-attention keys and values [B, heads, positions, head_dim], in the order of :func:`cross_names`.
        """
        x = self.hidden(features)
        batch, positions, _ = x.shape
        return tuple(
            projection(x).reshape(batch, positions, self.decoder_heads, -1).transpose(1, 2)
            for layer in self.decoder.layers
            for projection in (layer.encoder_attn.k_proj, layer.encoder_attn.v_proj)
        )


class CachedDecoder(nn.Module):
    """Decoder for prefill and step: hidden states before the output head, and all keys and values so far."""

    def __init__(self, model: Any) -> None:
        """Share the parameters of ``model``, transformers' ``WhisperDecoder``.

        The attribute's name gives nodes the same names as in other decoders.
        """
        super().__init__()
        self.model = model
        self.heads = int(model.config.decoder_attention_heads)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, past: dict[str, Tensor], cross: dict[str, Tensor]
    ) -> tuple[Tensor, ...]:
        """Append tokens to each row.

        A row's first new position is the number of ones in its mask minus the new tokens. It is 0 if that is negative,
        which is the case for a first prompt that is padded on the right.

        Args:
            input_ids: int64 [B, S], new tokens.
            attention_mask: int64 [B, total]: in each row as many ones as it has tokens after this pass, then zeros.
            past: each layer's keys and values [B, heads, room, head_dim], by :func:`past_names`.
            cross: the encoder's keys and values [B, heads, positions, head_dim], by :func:`cross_names`.

        Returns:
            Hidden states [B, S, d_model] after the last norm, then the present keys and values.
        """
        model, count = self.model, input_ids.shape[1]
        valid = attention_mask.sum(1)
        positions = (valid - count).clamp(min=0)[:, None] + torch.arange(count)
        last = (valid - 1).to(torch.int32)
        total = torch.scalar_tensor(attention_mask.shape[1], dtype=torch.int32)
        x = model.embed_tokens(input_ids) + model.embed_positions.weight[positions]
        present: list[Tensor] = []
        for index, layer in enumerate(model.layers):
            keys, values, cross_keys, cross_values = (
                names[f"{prefix}.{index}.{kind}"]
                for names, prefix in ((past, "past_key_values"), (cross, "cross_key_values"))
                for kind in ("key", "value")
            )
            y, *new = self._cached(layer.self_attn, layer.self_attn_layer_norm(x), (keys, values, last, total))
            present += new
            x = x + y
            cross_attention = layer.encoder_attn
            q = cross_attention.q_proj(layer.encoder_attn_layer_norm(x))
            x = x + cross_attention.out_proj(_multi_head(q, cross_keys, cross_values, self.heads))
            x = x + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(x))))
        return model.layer_norm(x), *present

    def _cached(self, attention: Any, x: Tensor, cache: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Causal attention of ``x`` over a cache: output, present keys, present values."""
        batch, count, width = x.shape
        # The shape without a preallocated buffer; with one, present is the buffer itself.
        shape = [batch, self.heads, cache[0].shape[2] + count, width // self.heads]
        y, keys, values = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            (attention.q_proj(x), attention.k_proj(x), attention.v_proj(x), *cache),
            attrs={"num_heads": self.heads, "kv_num_heads": self.heads},
            dtypes=[_FLOAT] * 3,
            shapes=[[batch, count, width], shape, shape],
            version=1,
        )
        return attention.out_proj(y), keys, values
