"""Twin of a checkpoint with outlier channels: the same function, with a few channels of much larger activations.

Large language models have such channels, and quantization of activations with one scale per token or tensor loses
accuracy because of them; a model as small as this one has none. Wherever an exact rescaling is possible, the twin
multiplies a few channels of an activation and divides the weights that read them.

The residual stream is not rescaled: RMSNorm divides by the mean over all channels, so a larger channel changes the
others. The last norm of the decoder is not changed either: lm_head, which reads it, is the matrix of the embedding.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen3ASRConfig

from export.checkpoints import CheckpointFolder
from export.errors import CheckpointInvalidError
from export.families.qwen3_asr.exporter import native_config
from export.file_names import SINGLE
from quantize.output_folder import appearing

SEED = 9300
SHARE, LEAST = 0.01, 2
# The powers of two between 30 and 100, by which products and quotients are exact in floating point, so all partial sums
# of the twin are those of the original. Other factors would round each divided weight, and that error could not be told
# from the error of quantization.
FACTORS = (32.0, 64.0)
TOKENIZER_AND_PROCESSOR = ("*.json", "*.jinja", "merges.txt", "LICENSE*")


@dataclass(frozen=True, slots=True)
class Site:
    """An activation whose channels can be rescaled: the output of ``producer``, read by ``consumers`` alone.

    Under grouped-query attention channel ``d`` of key-value head ``h`` reaches the ``groups`` query heads of that
    group, so one channel of v_proj is ``groups`` columns of o_proj; elsewhere ``groups`` is 1.
    """

    producer: str
    consumers: tuple[str, ...]
    width: int
    groups: int = 1
    head_dim: int = 1

    def columns(self, channel: int) -> list[int]:
        """Return the consumers' input columns that read ``channel`` of the producer."""
        head, inner = divmod(channel, self.head_dim)
        return [(head * self.groups + group) * self.head_dim + inner for group in range(self.groups)]


@dataclass(frozen=True, slots=True)
class Outliers:
    """The factor of each chosen channel of an activation."""

    site: Site
    factors: dict[int, float]


def sites(config: Qwen3ASRConfig) -> Iterator[Site]:
    """Yield the activations of encoder, projector and decoder that can be rescaled exactly."""
    audio, text = config.audio_config, config.text_config
    tower, width = "model.audio_tower", audio.d_model
    for index in range(audio.encoder_layers):
        prefix = f"{tower}.layers.{index}"
        attention = tuple(f"{prefix}.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj"))
        yield Site(f"{prefix}.self_attn_layer_norm", attention, width)
        yield Site(f"{prefix}.self_attn.v_proj", (f"{prefix}.self_attn.out_proj",), width)
        yield Site(f"{prefix}.final_layer_norm", (f"{prefix}.fc1",), width)
    yield Site(f"{tower}.ln_post", ("model.multi_modal_projector.linear_1",), width)
    groups = text.num_attention_heads // text.num_key_value_heads
    for index in range(text.num_hidden_layers):
        prefix = f"model.language_model.layers.{index}"
        attention = tuple(f"{prefix}.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj"))
        yield Site(f"{prefix}.input_layernorm", attention, text.hidden_size)
        values = text.num_key_value_heads * text.head_dim
        yield Site(f"{prefix}.self_attn.v_proj", (f"{prefix}.self_attn.o_proj",), values, groups, text.head_dim)
        yield Site(
            f"{prefix}.post_attention_layernorm", (f"{prefix}.mlp.gate_proj", f"{prefix}.mlp.up_proj"), text.hidden_size
        )
        yield Site(f"{prefix}.mlp.up_proj", (f"{prefix}.mlp.down_proj",), text.intermediate_size)


def choose(config: Qwen3ASRConfig, seed: int = SEED, factors: tuple[float, ...] = FACTORS) -> list[Outliers]:
    """Return random channels of every activation, 1 % and at least two, and one of ``factors`` for each."""
    rng = random.Random(seed)
    chosen = []
    for site in sites(config):
        channels = sorted(rng.sample(range(site.width), max(LEAST, round(site.width * SHARE))))
        chosen.append(Outliers(site, {channel: rng.choice(factors) for channel in channels}))
    return chosen


def rescale(tensors: dict[str, Tensor], chosen: list[Outliers]) -> None:
    """Multiply the producers' rows (and biases) and divide the consumers' columns of float32 ``tensors``, in place."""
    for outliers in chosen:
        site = outliers.site
        for channel, factor in outliers.factors.items():
            for part in ("weight", "bias"):
                if (tensor := tensors.get(f"{site.producer}.{part}")) is not None:
                    tensor[channel] *= factor
            for consumer in site.consumers:
                tensors[f"{consumer}.weight"][:, site.columns(channel)] /= factor


def write_twin(checkpoint: Path, out: Path, seed: int = SEED, factors: tuple[float, ...] = FACTORS) -> list[Outliers]:
    """Write the twin of a checkpoint folder (native layout) to ``out``, and return the rescaled channels.

    The weights are float32, since fp16 would round quotients that are subnormal. The model card is not copied, since it
    describes the original.

    Raises:
        OutputError: ``out`` exists.
        CheckpointNotFoundError: ``checkpoint`` has no configuration.
        CheckpointInvalidError: ``checkpoint`` has another layout or lacks a tensor.
    """
    folder = CheckpointFolder(checkpoint, "", None)
    raw = folder.config()
    config, layout = native_config(raw, checkpoint / "config.json")
    if layout != "native":
        raise CheckpointInvalidError(f"{checkpoint}: has the original layout; a twin needs the native layout")
    chosen = choose(config, seed, factors)
    with appearing(out) as work:
        tensors = {name: tensor.to(torch.float32) for name, tensor in folder.tensors()}
        for outliers in chosen:
            for module in (outliers.site.producer, *outliers.site.consumers):
                if f"{module}.weight" not in tensors:
                    raise CheckpointInvalidError(f"{checkpoint}: tensor '{module}.weight' is missing")
        rescale(tensors, chosen)
        for pattern in TOKENIZER_AND_PROCESSOR:
            for path in checkpoint.glob(pattern):
                if not path.name.endswith(".safetensors.index.json"):
                    shutil.copyfile(path, work / path.name)
        described = json.dumps(raw | {"dtype": "float32"}, indent=2, ensure_ascii=False)
        (work / "config.json").write_text(described + "\n", encoding="utf-8")
        save_file(tensors, work / SINGLE, metadata={"format": "pt"})
        (work / SINGLE).chmod(0o644)  # safetensors creates a private file
    return chosen
