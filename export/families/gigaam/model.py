"""Torch module of the GigaAM v3 Conformer with its CTC head, from which ``encoder.onnx`` is traced.

Sources: ``modeling_gigaam.py`` and ``config.json`` of the published checkpoints (ai-sage/GigaAM-v3), the package
salute-developers/GigaAM (MIT), arXiv 2506.01192; Conformer: Gulati et al., arXiv 2005.08100. Parameters have the
published names. Two things differ, for graphs that quantize well and batch exactly:

- Convolutions over one frame are linear layers, and those of the subsampling have a second dimension of size 1. So all
  large weights are in matrix products and 2-D convolutions (:meth:`GigaAMCtc.published_shape`).
- Frames past a clip's end are zeroed before each convolution that reads past it, so a clip gives the same output alone
  and in any batch. (The package does this in the subsampling too; the code published with the checkpoints does not.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class GigaAMSizes:
    """Sizes of the model.

    ``classes`` counts the blank, which is the last class. ``positions`` is the largest number of frames after
    subsampling. ``rotary_base`` is the published ``pos_emb_max_len``, which the published code uses as the base of the
    rotary frequencies.
    """

    mels: int
    layers: int
    width: int
    heads: int
    hidden: int
    subsampling_kernel: int
    convolution_kernel: int
    rotary_base: float
    classes: int
    positions: int

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads


def halved(frames: Tensor) -> Tensor:
    """Output frames of a convolution with stride 2 and an odd kernel, padded by half the kernel."""
    return (frames + 1) // 2


def valid_frames(lengths: Tensor, frames: int) -> Tensor:
    """Mask of valid frames: ``lengths`` int64 [B] → float32 [B, frames], 1.0 before a clip's end and 0.0 after."""
    return (torch.arange(frames, device=lengths.device) < lengths[:, None]).to(torch.float32)


class Subsampling(nn.Module):
    """Two convolutions over time with stride 2, each followed by a ReLU: [B, mels, T] → [B, ceil(T / 4), width]."""

    def __init__(self, sizes: GigaAMSizes) -> None:
        super().__init__()
        kernel, width = sizes.subsampling_kernel, sizes.width

        def convolution(channels: int) -> nn.Conv2d:
            return nn.Conv2d(channels, width, (1, kernel), stride=(1, 2), padding=(0, kernel // 2))

        # A sequence with the activations, because the published names count them.
        self.conv = nn.Sequential(convolution(sizes.mels), nn.ReLU(), convolution(width), nn.ReLU())

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Subsample ``features`` [B, mels, T]: frames [B, ceil(T / 4), width] and valid lengths int64 [B]."""
        x = features[:, :, None]
        for index in (0, 2):
            x = x * valid_frames(lengths, x.shape[3])[:, None, None]
            x = F.relu(self.conv[index](x))
            lengths = halved(lengths)
        return x[:, :, 0].transpose(1, 2), lengths


class Attention(nn.Module):
    """Self-attention with rotary positions on the input of the query and key projections, not on their output."""

    def __init__(self, sizes: GigaAMSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.linear_q = nn.Linear(sizes.width, sizes.width)
        self.linear_k = nn.Linear(sizes.width, sizes.width)
        self.linear_v = nn.Linear(sizes.width, sizes.width)
        self.linear_out = nn.Linear(sizes.width, sizes.width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> Tensor:
        """Attend over all frames of ``x`` [B, T, width].

        ``cos`` and ``sin`` are [T, 1, head size], ``bias`` [B, 1, 1, T] is added to the scores.
        """
        batch, frames, width = x.shape
        parts = x.reshape(batch, frames, self.heads, -1)
        first, second = parts.chunk(2, dim=-1)
        rotated = parts * cos + torch.cat([-second, first], dim=-1) * sin
        rotated = rotated.reshape(batch, frames, width)

        def split(y: Tensor) -> Tensor:
            return y.reshape(batch, frames, self.heads, -1).transpose(1, 2)

        q, k, v = split(self.linear_q(rotated)), split(self.linear_k(rotated)), split(self.linear_v(x))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.linear_out(y.transpose(1, 2).reshape(batch, frames, width))  # type: ignore[no-any-return]


class Convolution(nn.Module):
    """Convolution module: gated linear unit, depthwise convolution over time, layer norm, SiLU, projection."""

    def __init__(self, sizes: GigaAMSizes) -> None:
        super().__init__()
        width, kernel = sizes.width, sizes.convolution_kernel
        self.pointwise_conv1 = nn.Linear(width, 2 * width)
        self.depthwise_conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.batch_norm = nn.LayerNorm(width)  # the published name, whichever kind of norm it is
        self.pointwise_conv2 = nn.Linear(width, width)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Apply the module to ``x`` [B, T, width]; ``valid`` float [B, T, 1] is 1.0 for valid frames."""
        x = F.glu(self.pointwise_conv1(x), dim=-1) * valid
        x = self.depthwise_conv(x.transpose(1, 2)).transpose(1, 2)
        return self.pointwise_conv2(F.silu(self.batch_norm(x)))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Feed-forward module: linear, SiLU, linear."""

    def __init__(self, sizes: GigaAMSizes) -> None:
        super().__init__()
        self.linear1 = nn.Linear(sizes.width, sizes.hidden)
        self.linear2 = nn.Linear(sizes.hidden, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module to ``x`` [B, T, width]."""
        return self.linear2(F.silu(self.linear1(x)))  # type: ignore[no-any-return]


class ConformerLayer(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, each after a norm; then a final norm."""

    def __init__(self, sizes: GigaAMSizes) -> None:
        super().__init__()
        self.norm_feed_forward1 = nn.LayerNorm(sizes.width)
        self.feed_forward1 = FeedForward(sizes)
        self.norm_self_att = nn.LayerNorm(sizes.width)
        self.self_attn = Attention(sizes)
        self.norm_conv = nn.LayerNorm(sizes.width)
        self.conv = Convolution(sizes)
        self.norm_feed_forward2 = nn.LayerNorm(sizes.width)
        self.feed_forward2 = FeedForward(sizes)
        self.norm_out = nn.LayerNorm(sizes.width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor, valid: Tensor) -> Tensor:
        """Apply the layer to ``x`` [B, T, width]; other arguments as in :class:`Attention` and :class:`Convolution`."""
        x = x + 0.5 * self.feed_forward1(self.norm_feed_forward1(x))
        x = x + self.self_attn(self.norm_self_att(x), cos, sin, bias)
        x = x + self.conv(self.norm_conv(x), valid)
        x = x + 0.5 * self.feed_forward2(self.norm_feed_forward2(x))
        return self.norm_out(x)  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Subsampling and Conformer layers."""

    cos: Tensor
    sin: Tensor

    def __init__(self, sizes: GigaAMSizes) -> None:
        super().__init__()
        self.pre_encode = Subsampling(sizes)
        self.layers = nn.ModuleList(ConformerLayer(sizes) for _ in range(sizes.layers))
        cos, sin = rotary_tables(sizes)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode ``features`` [B, mels, T]: frames [B, ceil(T / 4), width] and valid lengths int64 [B]."""
        x, lengths = self.pre_encode(features, lengths)
        frames = x.shape[1]
        valid = valid_frames(lengths, frames)
        # Large and finite instead of -inf, so that a clip without valid frames stays finite.
        bias = ((valid - 1.0) * 1e4)[:, None, None]
        cos, sin = self.cos[:frames], self.sin[:frames]
        for layer in self.layers:
            x = layer(x, cos, sin, bias, valid[:, :, None])
        return x, lengths


class CtcHead(nn.Module):
    """Linear layer to the classes. It is a sequence of one layer, as the published name has it."""

    def __init__(self, sizes: GigaAMSizes) -> None:
        super().__init__()
        self.decoder_layers = nn.Sequential(nn.Linear(sizes.width, sizes.classes))

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities [B, T, classes] of frames ``x`` [B, T, width]."""
        return F.log_softmax(self.decoder_layers(x), dim=-1)


class GigaAMCtc(nn.Module):
    """Encoder and CTC head: log-mel features to log-probabilities of the classes."""

    def __init__(self, sizes: GigaAMSizes) -> None:
        super().__init__()
        self.encoder = Encoder(sizes)
        self.head = CtcHead(sizes)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Compute log-probabilities.

        Args:
            features: float32 [B, mels, T], log-mels of clips padded to the longest, with any values.
            lengths: int64 [B], valid frames.

        Returns:
            Log-probabilities float32 [B, ceil(T / 4), classes] and their valid frames int64 [B]. Frames past a clip's
            end are finite and undefined.
        """
        x, lengths = self.encoder(features, lengths)
        return self.head(x), lengths

    def published_shape(self, name: str) -> list[int]:
        """Shape of parameter ``name`` in published checkpoints, which have 1-D convolutions everywhere."""
        shape = list(self.get_parameter(name).shape)
        if name.startswith("encoder.pre_encode.") and len(shape) == 4:
            return [shape[0], shape[1], shape[3]]
        pointwise = ".pointwise_conv" in name or name.startswith("head.")
        return [*shape, 1] if pointwise and len(shape) == 2 else shape


def rotary_tables(sizes: GigaAMSizes) -> tuple[Tensor, Tensor]:
    """Cosines and sines [positions, 1, head size] of position × base^(-2i / head size), for both halves of a head."""
    exponents = torch.arange(0, sizes.head_size, 2).float() / sizes.head_size
    angles = torch.outer(torch.arange(sizes.positions).float(), 1.0 / sizes.rotary_base**exponents)
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos(), angles.sin()
