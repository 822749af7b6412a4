"""What Whisper's two graphs are traced from: the encoder with all that the decoder needs of it, and the decoder.

Attention is written with ONNX Runtime's own operators, which providers have kernels for:

* ``MultiHeadAttention`` in the encoder and across: over 1500 positions and 20 heads of 64 its CPU kernel took 130 ms
  and 31 MB where the products and the softmax written out took 164 ms and 203 MB, and opset 23's ``Attention`` 142 ms
  and 189 MB (one thread, Sapphire Rapids). Across, it reads keys and values ``[B, heads, positions, head_dim]`` as they
  lie.
* ``GroupQueryAttention`` without rotation, and with as many key heads as query heads, over the text: it writes new keys
  and values into the buffer that is past and present in one, for rows of different lengths, many tokens or one. A step
  over eight rows of 448 positions took 0.9 ms; ``TensorScatter`` and ``Attention`` of opset 24 are exact and in place
  too, but took 2.2 ms, for they attend to the whole buffer; ``MultiHeadAttention`` makes a new, longer past every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_FLOAT = 1  # onnx.TensorProto.FLOAT


def cross_names(layers: int) -> list[str]:
    """Names of the decoder layers' cross-attention keys and values, in order."""
    return [f"cross_key_values.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]


def past_names(layers: int, prefix: str = "past_key_values") -> list[str]:
    """Names of the decoder layers' own keys and values, in order; those that come out are ``present``."""
    return [f"{prefix}.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]


def _multi_head(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention of ``q`` [B, S, width] over ``k``, ``v``, either like it or [B, heads, positions, head_dim]."""
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
    """Encoder and the key and value projections of every decoder layer's cross-attention, computed once a window."""

    def __init__(self, encoder: Any, decoder: Any) -> None:
        """Share the parameters of transformers' ``WhisperEncoder`` and ``WhisperDecoder``."""
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.heads = int(encoder.config.encoder_attention_heads)
        self.decoder_heads = int(encoder.config.decoder_attention_heads)

    def hidden(self, features: Tensor) -> Tensor:
        """``features`` float [B, mels, 2·positions] → [B, positions, d_model]."""
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
        """As :meth:`hidden`, then in the order of :func:`cross_names`, each [B, heads, positions, head_dim]."""
        x = self.hidden(features)
        batch, positions, _ = x.shape
        return tuple(
            projection(x).reshape(batch, positions, self.decoder_heads, -1).transpose(1, 2)
            for layer in self.decoder.layers
            for projection in (layer.encoder_attn.k_proj, layer.encoder_attn.v_proj)
        )


class CachedDecoder(nn.Module):
    """Prefill and step in one: the hidden rows before the head, and all keys and values so far.

    ``model`` is transformers' ``WhisperDecoder``; it has this name so that nodes are called as in other decoders.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.heads = int(model.config.decoder_attention_heads)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, past: dict[str, Tensor], cross: dict[str, Tensor]
    ) -> tuple[Tensor, ...]:
        """New tokens of each row, after what its buffers hold.

        A row's tokens follow what the row holds: its positions begin at the ones of its mask less the new tokens, or
        at 0 where a prompt, padded on the right, begins the row.

        Args:
            input_ids: int64 [B, S].
            attention_mask: int64 [B, total]: as many ones in each row as it will have tokens, then zeros.
            past: each layer's keys and values [B, heads, room, head_dim], by :func:`past_names`.
            cross: those of the encoder's output, by :func:`cross_names`.

        Returns:
            [B, S, d_model] after the last norm, and the present keys and values.
        """
        model, count = self.model, input_ids.shape[1]
        valid = attention_mask.sum(1)
        positions = (valid - count).clamp(min=0)[:, None] + torch.arange(count)
        last = (valid - 1).to(torch.int32)
        total = torch.scalar_tensor(attention_mask.shape[1], dtype=torch.int32)
        x = model.embed_tokens(input_ids) + model.embed_positions.weight[positions]
        present: list[Tensor] = []
        for index, layer in enumerate(model.layers):
            keys, values, across_keys, across_values = (
                names[f"{prefix}.{index}.{kind}"]
                for names, prefix in ((past, "past_key_values"), (cross, "cross_key_values"))
                for kind in ("key", "value")
            )
            y, *new = self._cached(layer.self_attn, layer.self_attn_layer_norm(x), (keys, values, last, total))
            present += new
            x = x + y
            across = layer.encoder_attn
            q = across.q_proj(layer.encoder_attn_layer_norm(x))
            x = x + across.out_proj(_multi_head(q, across_keys, across_values, self.heads))
            x = x + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(x))))
        return model.layer_norm(x), *present

    def _cached(self, attention: Any, x: Tensor, cache: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Causal attention over a cache: (output, present keys, present values)."""
        batch, count, width = x.shape
        # What is there without a buffer; in one, present is the buffer.
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
