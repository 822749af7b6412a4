"""GigaAM checkpoints with random weights in the published layout, which transcribe noise.

``python -m tests.helpers.gigaam_checkpoint ctc DIR`` writes one with the published sizes, to measure time and memory.
Tests use :data:`TINY`.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from transformers.audio_utils import mel_filter_bank

from tests.conftest import REPOSITORY

LETTERS = [" ", *(chr(ord("а") + index) for index in range(32))]
PIECES = REPOSITORY / "tests" / "references" / "sentencepiece" / "bpe.model"
PIECE_COUNT = 120
TINY = {"n_layers": 2, "d_model": 32, "n_heads": 4}


def configuration(kind: str, **encoder: Any) -> dict[str, Any]:
    """Contents of ``config.json``; ``kind`` is ``ctc`` (characters) or ``e2e_ctc`` (a small SentencePiece model)."""
    characters = kind == "ctc"
    width = encoder.get("d_model", 768)
    inner = {
        "model_class": "ctc",
        "sample_rate": 16_000,
        "preprocessor": {
            "_target_": "modeling_gigaam.FeatureExtractor",
            "sample_rate": 16_000,
            "features": 64,
            "win_length": 320,
            "hop_length": 160,
            "mel_scale": "htk",
            "n_fft": 320,
            "mel_norm": None,
            "center": False,
        },
        "encoder": {
            "_target_": "modeling_gigaam.ConformerEncoder",
            "feat_in": 64,
            "n_layers": 16,
            "d_model": 768,
            "subsampling_factor": 4,
            "ff_expansion_factor": 4,
            "self_attention_model": "rotary",
            "pos_emb_max_len": 5000,
            "n_heads": 16,
            "conv_kernel_size": 5,
            "flash_attn": False,
            "subs_kernel_size": 5,
            "subsampling": "conv1d",
            "conv_norm_type": "layer_norm",
        }
        | encoder,
        "head": {
            "_target_": "modeling_gigaam.CTCHead",
            "feat_in": width,
            "num_classes": (len(LETTERS) if characters else PIECE_COUNT) + 1,
        },
        "decoding": {
            "_target_": "modeling_gigaam.CTCGreedyDecoding",
            "vocabulary": LETTERS if characters else None,
        }
        | ({} if characters else {"model_path": "tokenizer.model"}),
        "model_name": f"v3_{kind}",
    }
    return {"model_type": "gigaam", "cfg": {"model": {"_target_": "modeling_gigaam.GigaAMASR", "cfg": inner}}}


def tensor_shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    """Shape of every weight of the published checkpoints by name, without the front end's tables."""
    inner = config["cfg"]["model"]["cfg"]
    encoder, width = inner["encoder"], inner["encoder"]["d_model"]
    shapes: dict[str, list[int]] = {}

    def add(name: str, *shape: int) -> None:
        shapes[f"model.{name}.weight"] = list(shape)
        shapes[f"model.{name}.bias"] = [shape[0]]

    add("encoder.pre_encode.conv.0", width, encoder["feat_in"], encoder["subs_kernel_size"])
    add("encoder.pre_encode.conv.2", width, width, encoder["subs_kernel_size"])
    hidden = width * encoder["ff_expansion_factor"]
    for layer in range(encoder["n_layers"]):
        prefix = f"encoder.layers.{layer}"
        for norm in ("norm_feed_forward1", "norm_conv", "norm_self_att", "norm_feed_forward2", "norm_out"):
            add(f"{prefix}.{norm}", width)
        for part in ("feed_forward1", "feed_forward2"):
            add(f"{prefix}.{part}.linear1", hidden, width)
            add(f"{prefix}.{part}.linear2", width, hidden)
        add(f"{prefix}.conv.pointwise_conv1", 2 * width, width, 1)
        add(f"{prefix}.conv.depthwise_conv", width, 1, encoder["conv_kernel_size"])
        add(f"{prefix}.conv.batch_norm", width)
        add(f"{prefix}.conv.pointwise_conv2", width, width, 1)
        for part in ("linear_q", "linear_k", "linear_v", "linear_out"):
            add(f"{prefix}.self_attn.{part}", width, width)
    add("head.decoder_layers.0", inner["head"]["num_classes"], width, 1)
    return shapes


def tensors(config: dict[str, Any], seed: int = 1) -> dict[str, torch.Tensor]:
    """Random weights in half precision: norms near 1, small biases, the rest with variance 1 over fan-in."""
    generator = torch.Generator().manual_seed(seed)
    values: dict[str, torch.Tensor] = {}
    for name, shape in tensor_shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            value = noise * math.prod(shape[1:]) ** -0.5
        else:
            value = 0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        values[name] = value.half()
    filters = torch.from_numpy(mel_filter_bank(161, 64, 0.0, 8000.0, 16_000, norm=None, mel_scale="htk"))
    values["model.preprocessor.featurizer.0.spectrogram.window"] = torch.hann_window(320)
    values["model.preprocessor.featurizer.0.mel_scale.fb"] = filters.float()
    return values


def write(kind: str, out: Path, seed: int = 1, **encoder: Any) -> Path:
    """Write the checkpoint's folder."""
    out.mkdir(parents=True)
    config = configuration(kind, **encoder)
    (out / "config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1), encoding="utf-8")
    torch.save(tensors(config, seed), out / "pytorch_model.bin")
    if kind == "e2e_ctc":
        shutil.copy(PIECES, out / "tokenizer.model")
    return out


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
