"""Parameter counts of published models, computed from the sizes in their configuration without a download."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class Sizes(Protocol):
    """Sizes of one model."""

    @property
    def parameters(self) -> int:
        """Number of trained parameters; those that two parts share are counted once."""


def _linear(out_features: int, in_features: int, *, bias: bool = True) -> int:
    return out_features * in_features + out_features * bias


def _norm(width: int) -> int:
    return 2 * width


@dataclass(frozen=True, slots=True)
class Qwen3AsrSizes:
    """Sizes of Qwen3-ASR: convolutions of ``channels``, encoder layers of ``width``, a projector, a Qwen3 decoder."""

    layers: int
    width: int
    ffn: int
    decoder_layers: int
    decoder_width: int
    decoder_ffn: int
    heads: int = 16
    kv_heads: int = 8
    head_dim: int = 128
    vocabulary: int = 151_936
    channels: int = 480
    mels: int = 128

    @property
    def parameters(self) -> int:
        """Number of trained parameters. The output head is the embedding."""
        stem = sum(_linear(self.channels, 9 * inputs) for inputs in (1, self.channels, self.channels))
        stem += _linear(self.width, self.channels * math.ceil(self.mels / 8), bias=False)
        attention = 4 * _linear(self.width, self.width)
        layer = attention + _linear(self.ffn, self.width) + _linear(self.width, self.ffn) + 2 * _norm(self.width)
        projector = _linear(self.width, self.width) + _linear(self.decoder_width, self.width)
        encoder = stem + self.layers * layer + _norm(self.width) + projector
        attended = (2 * self.heads + 2 * self.kv_heads) * self.head_dim
        block = self.decoder_width * (attended + 3 * self.decoder_ffn + 2) + 2 * self.head_dim
        return encoder + self.decoder_width * (self.vocabulary + 1) + self.decoder_layers * block


@dataclass(frozen=True, slots=True)
class WhisperSizes:
    """Sizes of Whisper: encoder and decoder layers of ``width``, with feed-forward parts four times as wide."""

    width: int
    layers: int
    decoder_layers: int
    mels: int
    vocabulary: int
    positions: int = 1500
    context: int = 448

    @property
    def parameters(self) -> int:
        """Number of trained parameters. The output head is the embedding."""
        width = self.width
        attention = 3 * _linear(width, width) + _linear(width, width, bias=False)
        inner = _linear(4 * width, width) + _linear(width, 4 * width)
        encoder = _linear(width, 3 * self.mels) + _linear(width, 3 * width) + self.positions * width
        encoder += self.layers * (attention + inner + 2 * _norm(width)) + _norm(width)
        decoder = (self.vocabulary + self.context) * width
        decoder += self.decoder_layers * (2 * attention + inner + 3 * _norm(width)) + _norm(width)
        return encoder + decoder


@dataclass(frozen=True, slots=True)
class ParakeetSizes:
    """Sizes of Parakeet: a Fast Conformer with a CTC head (``predictor`` is 0) or a transducer with ``durations``."""

    layers: int
    mels: int
    vocabulary: int
    bias: bool
    width: int = 1024
    ffn: int = 4096
    kernel: int = 9
    channels: int = 256
    predictor: int = 0
    predictor_layers: int = 2
    durations: int = 5

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        width, bias = self.width, self.bias
        # Three convolutions with stride 2; the second and third are depthwise and pointwise.
        stem = _linear(self.channels, 9) + 2 * (_linear(self.channels, 9) + _linear(self.channels, self.channels))
        stem += _linear(width, self.channels * self.mels // 8)
        inner = _linear(self.ffn, width, bias=bias) + _linear(width, self.ffn, bias=bias)
        attention = 4 * _linear(width, width, bias=bias) + width * width + 2 * width
        convolution = _linear(2 * width, width, bias=bias) + _linear(width, self.kernel, bias=bias) + _norm(width)
        convolution += _linear(width, width, bias=bias)
        encoder = stem + self.layers * (2 * inner + attention + convolution + 5 * _norm(width))
        if not self.predictor:
            return encoder + _linear(self.vocabulary, width)
        size = self.predictor
        predictor = self.vocabulary * size + self.predictor_layers * 2 * _linear(4 * size, size)
        joint = _linear(size, width) + _linear(size, size) + _linear(self.vocabulary + self.durations, size)
        return encoder + predictor + joint


@dataclass(frozen=True, slots=True)
class GigaAMSizes:
    """Sizes of GigaAM: a Conformer with feed-forward parts four times as wide, and a CTC head of ``classes``."""

    classes: int
    layers: int = 16
    width: int = 768
    mels: int = 64
    kernel: int = 5

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        width, kernel = self.width, self.kernel
        stem = _linear(width, kernel * self.mels) + _linear(width, kernel * width)
        inner = _linear(4 * width, width) + _linear(width, 4 * width)
        convolution = _linear(2 * width, width) + _linear(width, kernel) + _norm(width) + _linear(width, width)
        layer = 2 * inner + 4 * _linear(width, width) + convolution + 5 * _norm(width)
        return stem + self.layers * layer + _linear(self.classes, width)


def rounded(parameters: int) -> str:
    """Format a parameter count with three significant digits: ``627 M``, ``1.06 B``."""
    return f"{parameters / 1e9:.2f} B" if parameters >= 999_500_000 else f"{parameters / 1e6:.3g} M"
