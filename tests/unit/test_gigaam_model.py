"""The torch Conformer against the published formulas in numpy, for one clip without padding."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from export.families.gigaam.exporter import read_settings, sizes_of
from export.families.gigaam.model import GigaAMCtc
from tests.conftest import REPOSITORY
from tests.helpers.gigaam_checkpoint import TINY, configuration, tensor_shapes, tensors

Array = npt.NDArray[np.float64]


class Formulas:
    """The model in double precision over tensors with published names and shapes."""

    def __init__(self, weights: dict[str, torch.Tensor], heads: int, base: float) -> None:
        self.w = {name.removeprefix("model."): tensor.double().numpy() for name, tensor in weights.items()}
        self.heads, self.base = heads, base

    def convolve(self, x: Array, name: str, stride: int = 1, *, depthwise: bool = False) -> Array:
        """``x`` [frames, channels] under a kernel [out, in, size], padded by half of it with zeros."""
        kernel, bias = self.w[f"{name}.weight"], self.w[f"{name}.bias"]
        size = kernel.shape[2]
        padded = np.pad(x, ((size // 2, size // 2), (0, 0)))
        kernel, rule = (kernel[:, 0], "kc,ck->c") if depthwise else (kernel, "kc,ock->o")
        rows = [np.einsum(rule, padded[start : start + size], kernel) for start in range(0, len(x), stride)]
        convolved: Array = np.array(rows) + bias
        return convolved

    def linear(self, x: Array, name: str) -> Array:
        projected: Array = x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]
        return projected

    def norm(self, x: Array, name: str) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        normalized: Array = scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]
        return normalized

    def feed_forward(self, x: Array, name: str) -> Array:
        return self.linear(silu(self.linear(x, f"{name}.linear1")), f"{name}.linear2")

    def attention(self, x: Array, name: str) -> Array:
        """Each head of the input is rotated by its position before queries and keys are computed."""
        frames, width = x.shape
        size = width // self.heads
        rotated = np.zeros_like(x)
        for head in range(self.heads):
            for pair in range(size // 2):
                angle = np.arange(frames) * self.base ** (-2 * pair / size)
                one, two = head * size + pair, head * size + pair + size // 2
                rotated[:, one] = x[:, one] * np.cos(angle) - x[:, two] * np.sin(angle)
                rotated[:, two] = x[:, two] * np.cos(angle) + x[:, one] * np.sin(angle)
        q, k = self.linear(rotated, f"{name}.linear_q"), self.linear(rotated, f"{name}.linear_k")
        v = self.linear(x, f"{name}.linear_v")
        heads = []
        for head in range(self.heads):
            part = slice(head * size, (head + 1) * size)
            scores = q[:, part] @ k[:, part].T / np.sqrt(size)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, part])
        return self.linear(np.concatenate(heads, axis=1), f"{name}.linear_out")

    def convolution(self, x: Array, name: str) -> Array:
        both = self.convolve(x, f"{name}.pointwise_conv1")
        value, gate = np.split(both, 2, axis=1)
        x = self.convolve(value * sigmoid(gate), f"{name}.depthwise_conv", depthwise=True)
        return self.convolve(silu(self.norm(x, f"{name}.batch_norm")), f"{name}.pointwise_conv2")

    def __call__(self, features: Array, layers: int) -> Array:
        """Features [mels, frames] → log-probabilities [ceil(frames / 4), classes]."""
        x = features.T
        for index in (0, 2):
            x = np.maximum(self.convolve(x, f"encoder.pre_encode.conv.{index}", stride=2), 0)
        for layer in range(layers):
            prefix = f"encoder.layers.{layer}"
            x = x + self.feed_forward(self.norm(x, f"{prefix}.norm_feed_forward1"), f"{prefix}.feed_forward1") / 2
            x = x + self.attention(self.norm(x, f"{prefix}.norm_self_att"), f"{prefix}.self_attn")
            x = x + self.convolution(self.norm(x, f"{prefix}.norm_conv"), f"{prefix}.conv")
            x = x + self.feed_forward(self.norm(x, f"{prefix}.norm_feed_forward2"), f"{prefix}.feed_forward2") / 2
            x = self.norm(x, f"{prefix}.norm_out")
        logits = self.convolve(x, "head.decoder_layers.0")
        shifted = logits - logits.max(-1, keepdims=True)
        log_probs: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        return log_probs


def sigmoid(x: Array) -> Array:
    values: Array = 1 / (1 + np.exp(-x))
    return values


def silu(x: Array) -> Array:
    return x * sigmoid(x)


CONFIG = configuration("ctc", **TINY)
WEIGHTS = tensors(CONFIG)


@pytest.fixture(scope="module")
def model() -> GigaAMCtc:
    model = GigaAMCtc(sizes_of(read_settings(CONFIG, REPOSITORY))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(WEIGHTS[f"model.{name}"].float().reshape(parameter.shape))
    return model


def test_names_and_shapes_equal_the_published_ones(model: GigaAMCtc) -> None:
    ours = {f"model.{name}": model.published_shape(name) for name, _ in model.named_parameters()}
    assert ours == tensor_shapes(CONFIG)


def test_published_model_has_220_million_parameters() -> None:
    with torch.device("meta"):
        real = GigaAMCtc(sizes_of(read_settings(configuration("ctc"), REPOSITORY)))
    assert sum(parameter.numel() for parameter in real.parameters()) == 220_707_874


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 6, 7, 8, 31, 100])
@torch.no_grad()
def test_module_computes_the_formulas(frames: int, model: GigaAMCtc, rng: np.random.Generator) -> None:
    features = rng.standard_normal((64, frames))
    expected = Formulas(WEIGHTS, heads=4, base=5000)(features, layers=2)
    rows, lengths = model(torch.from_numpy(features)[None].float(), torch.tensor([frames]))
    assert lengths.tolist() == [-(-frames // 4)]
    assert rows.shape == (1, *expected.shape)
    assert np.abs(rows[0].numpy() - expected).max() <= 1e-5


@torch.no_grad()
def test_clip_does_not_depend_on_batch_or_padding(model: GigaAMCtc, rng: np.random.Generator) -> None:
    lengths = torch.tensor([61, 60, 33, 5, 4, 1])
    batch = torch.from_numpy(rng.standard_normal((len(lengths), 64, 61)).astype(np.float32) * 30)
    batched, valid = model(batch, lengths)
    assert torch.isfinite(batched).all()
    for clip, length, rows, count in zip(batch, lengths, batched, valid, strict=True):
        alone, _ = model(clip[None, :, :length], length[None])
        assert alone.shape[1] == count
        assert (alone[0] - rows[:count]).abs().max() <= 1e-5
