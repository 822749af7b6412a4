"""Torch modules from which Parakeet's graphs are traced. They share the parameters of transformers' reference.

They differ from the reference's modules so that ONNX Runtime runs the graphs fast and recipes can name their nodes:
convolutions over single frames are matrix products, batch norms are folded into the convolution before them, an LSTM
step is one product per layer, and positions are computed once for all rows and layers.

Sources: Fast Conformer (arXiv 2305.05084), relative positions of Transformer-XL (arXiv 1901.02860, section 3.3 and
appendix B), transformers ``models/parakeet``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Added to the scores of padding frames: far below any score, and finite.
_MASKED = -1e4


def pointwise(conv: Any) -> nn.Linear:
    """Convert a 1-D convolution with kernel size 1 to a linear layer over [..., channels]."""
    linear = nn.Linear(conv.in_channels, conv.out_channels, bias=conv.bias is not None)
    linear.weight = nn.Parameter(conv.weight[:, :, 0].detach(), requires_grad=False)
    if conv.bias is not None:
        linear.bias = nn.Parameter(conv.bias.detach(), requires_grad=False)
    return linear


def with_norm(conv: Any, norm: Any) -> nn.Conv1d:
    """Fold the batch norm after a depthwise convolution, with its running statistics, into the convolution."""
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    shift = -norm.running_mean.double() if conv.bias is None else conv.bias.double() - norm.running_mean.double()
    folded = nn.Conv1d(
        conv.in_channels, conv.out_channels, conv.kernel_size, padding=conv.padding, groups=conv.groups, bias=True
    )
    folded.weight = nn.Parameter((conv.weight.double() * scale[:, None, None]).float().detach(), requires_grad=False)
    folded.bias = nn.Parameter((shift * scale + norm.bias.double()).float().detach(), requires_grad=False)
    return folded


class Stem(nn.Module):
    """2-D convolutions that subsample time, eight frames to one in published models, and a projection."""

    def __init__(self, subsampling: Any) -> None:
        super().__init__()
        self.layers = subsampling.layers
        self.linear = subsampling.linear

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Subsample ``features`` [B, T, mels] with ``lengths`` [B]: [B, T', hidden], and valid frames of T' [B]."""
        x = features.unsqueeze(1)
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.Conv2d) and layer.stride[0] > 1:
                lengths = (lengths + 2 * int(layer.padding[0]) - layer.kernel_size[0]) // layer.stride[0] + 1
            elif isinstance(layer, nn.ReLU):
                # The next convolution over time must read zeros at padding. The reference masks after every
                # convolution. Here a ReLU follows its convolution directly, so that ONNX Runtime can fuse them.
                x = x * valid_frames(lengths, x.shape[2])[:, None, :, None].to(x.dtype)
        x = x.transpose(1, 2)
        return self.linear(x.reshape(x.shape[0], x.shape[1], -1)), lengths


def valid_frames(lengths: Tensor, frames: int) -> Tensor:
    """Mask of valid frames: ``lengths`` int64 [B] → bool [B, frames], False at padding."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


class Attention(nn.Module):
    """Attention over all frames, with scores of content and of relative position."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = attention.q_proj, attention.k_proj, attention.v_proj
        self.o_proj, self.relative_k_proj = attention.o_proj, attention.relative_k_proj
        self.bias_u, self.bias_v = attention.bias_u, attention.bias_v
        self.heads, self.size = attention.bias_u.shape
        self.scaling: float = attention.scaling

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Attend over ``x`` [B, T, hidden].

        ``positions`` [2T - 1, hidden] are encodings of the distances T - 1 down to 1 - T, ``mask`` [B, 1, 1, T] is
        added to the scores.
        """
        batch, frames, _ = x.shape
        q = self.q_proj(x).reshape(batch, frames, self.heads, self.size) * self.scaling
        k = self.k_proj(x).reshape(batch, frames, self.heads, self.size).permute(0, 2, 3, 1)
        v = self.v_proj(x).reshape(batch, frames, self.heads, self.size).transpose(1, 2)
        relative = self.relative_k_proj(positions).reshape(-1, self.heads, self.size).permute(1, 2, 0)
        content_scores = (q + self.bias_u * self.scaling).transpose(1, 2) @ k
        position_scores = (q + self.bias_v * self.scaling).transpose(1, 2) @ relative
        weights = torch.softmax(content_scores + _shifted(position_scores) + mask, dim=-1)
        y = (weights @ v).transpose(1, 2).reshape(batch, frames, self.heads * self.size)
        return self.o_proj(y)  # type: ignore[no-any-return]


def _shifted(scores: Tensor) -> Tensor:
    """Convert scores by distance [B, heads, T, 2T - 1] to scores by key [B, heads, T, T].

    Row i is shifted left by T - 1 - i.
    """
    batch, heads, frames, _ = scores.shape
    padded = F.pad(scores, (1, 0)).reshape(batch, heads, -1, frames)
    return padded[:, :, 1:].reshape(batch, heads, frames, -1)[..., :frames]


class FeedForward(nn.Module):
    """Feed-forward module: linear, SiLU, linear."""

    def __init__(self, feed_forward: Any) -> None:
        super().__init__()
        self.linear1, self.linear2 = feed_forward.linear1, feed_forward.linear2

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module to ``x`` [B, T, hidden]."""
        return self.linear2(F.silu(self.linear1(x)))  # type: ignore[no-any-return]


class Convolution(nn.Module):
    """Convolution module: gated linear unit, depthwise convolution over time, SiLU, projection."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.pointwise_conv1, self.pointwise_conv2 = (
            pointwise(module.pointwise_conv1),
            pointwise(module.pointwise_conv2),
        )
        self.depthwise_conv = with_norm(module.depthwise_conv, module.norm)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Apply the module to ``x`` [B, T, hidden]; ``valid`` float [B, T, 1] is 1.0 for valid frames."""
        x = F.glu(self.pointwise_conv1(x), dim=-1) * valid
        x = self.depthwise_conv(x.transpose(1, 2)).transpose(1, 2)
        return self.pointwise_conv2(F.silu(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Conformer layer: half a feed-forward, attention, convolution, half a feed-forward, norm."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.feed_forward1, self.feed_forward2 = FeedForward(block.feed_forward1), FeedForward(block.feed_forward2)
        self.self_attn, self.conv = Attention(block.self_attn), Convolution(block.conv)
        self.norm_feed_forward1, self.norm_feed_forward2 = block.norm_feed_forward1, block.norm_feed_forward2
        self.norm_self_att, self.norm_conv, self.norm_out = block.norm_self_att, block.norm_conv, block.norm_out

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor, valid: Tensor) -> Tensor:
        """Apply the layer to ``x`` [B, T, hidden]; see :class:`Attention` and :class:`Convolution` for the others."""
        x = x + 0.5 * self.feed_forward1(self.norm_feed_forward1(x))
        x = x + self.self_attn(self.norm_self_att(x), positions, mask)
        x = x + self.conv(self.norm_conv(x), valid)
        x = x + 0.5 * self.feed_forward2(self.norm_feed_forward2(x))
        return self.norm_out(x)  # type: ignore[no-any-return]


class FastConformer(nn.Module):
    """Encoder followed by a linear layer on each frame: the joint network's projection, or a CTC head.

    Output frames past a row's length are finite and undefined. They do not affect valid frames.
    """

    def __init__(self, encoder: Any, head: nn.Linear) -> None:
        super().__init__()
        self.subsampling = Stem(encoder.subsampling)
        self.layers = nn.ModuleList(Block(block) for block in encoder.layers)
        self.head = head
        self.scale: float = encoder.input_scale
        self.inv_freq: Tensor
        self.register_buffer("inv_freq", encoder.encode_positions.inv_freq.float(), persistent=False)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode ``features`` float32 [B, T, mels] with ``lengths`` int64 [B].

        Returns:
            Float32 [B, T', width], and valid frames of T' int64 [B].
        """
        x, lengths = self.subsampling(features, lengths)
        x = x * self.scale
        frames = x.shape[1]
        valid = valid_frames(lengths, frames)
        mask = torch.where(valid, 0.0, _MASKED)[:, None, None, :]
        positions = self.positions(frames)
        for layer in self.layers:
            x = layer(x, positions, mask, valid[..., None].to(x.dtype))
        return self.head(x), lengths

    def positions(self, frames: int) -> Tensor:
        """Encode the distances frames - 1 down to 1 - frames: [2·frames - 1, hidden], sines and cosines interleaved."""
        distances = (frames - 1) - torch.arange(2 * frames - 1, device=self.inv_freq.device)
        angles = distances[:, None].float() * self.inv_freq
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class DecoderJoint(nn.Module):
    """One step of the prediction network (embedding, LSTM layers, projection) and the joint network."""

    def __init__(self, decoder: Any, head: nn.Linear, vocab_size: int) -> None:
        super().__init__()
        self.embedding, self.decoder_projector, self.head = decoder.embedding, decoder.decoder_projector, head
        self.layers = nn.ModuleList(_gates(decoder.lstm, layer) for layer in range(decoder.lstm.num_layers))
        self.vocab_size = vocab_size

    def forward(
        self, token: Tensor, hidden: Tensor, cell: Tensor, frame: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Advance the prediction network by one token and join it with an encoder frame.

        Args:
            token: int64 [B], the previous token.
            hidden: float32 [layers, B, width], LSTM state.
            cell: float32 [layers, B, width], LSTM state.
            frame: float32 [B, width], encoder frame.

        Returns:
            Logits of tokens [B, vocab] and of durations [B, durations], hidden and cell state after the token.
        """
        x = self.embedding(token)
        hiddens, cells = [], []
        for index, layer in enumerate(self.layers):
            # Gates in the order of torch.nn.LSTM: input, forget, candidate, output.
            gates = layer(torch.cat([x, hidden[index]], dim=-1))
            input_gate, forget_gate, candidate, output_gate = gates.chunk(4, dim=-1)
            state = forget_gate.sigmoid() * cell[index] + input_gate.sigmoid() * candidate.tanh()
            x = output_gate.sigmoid() * state.tanh()
            hiddens.append(x)
            cells.append(state)
        logits = self.head(F.relu(frame + self.decoder_projector(x)))
        tokens, durations = logits[:, : self.vocab_size], logits[:, self.vocab_size :]
        return tokens, durations, torch.stack(hiddens), torch.stack(cells)


def _gates(lstm: nn.LSTM, layer: int) -> nn.Linear:
    """Join an LSTM layer's products with input and state into one linear layer over both, concatenated."""
    parameters = {
        name: getattr(lstm, f"{name}_l{layer}").detach() for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    weight = torch.cat([parameters["weight_ih"], parameters["weight_hh"]], dim=1)
    gates = nn.Linear(weight.shape[1], weight.shape[0])
    gates.weight = nn.Parameter(weight, requires_grad=False)
    gates.bias = nn.Parameter(parameters["bias_ih"] + parameters["bias_hh"], requires_grad=False)
    return gates
