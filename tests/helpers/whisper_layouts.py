"""Write a Whisper checkpoint of transformers' layout in the layouts of CTranslate2 and OpenAI.

The names and the order of stacked projections are written here a second time, so that a mistake in the exporter's
tables shows.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import WhisperConfig

Precision = Literal["float32", "float16", "int8", "int8_float16"]
Array = npt.NDArray[Any]
# numpy has no bfloat16; its bits are written as uint16.
TYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4, "uint16": 5}


def string(text: str) -> bytes:
    """A string of CTranslate2's format."""
    data = text.encode() + b"\0"
    return struct.pack("<H", len(data)) + data


def encode_model(
    variables: Mapping[str, Array],
    aliases: Mapping[str, str],
    *,
    version: int = 6,
    specification: str = "WhisperSpec",
    revision: int = 3,
) -> bytes:
    """Bytes of a `model.bin`."""
    parts = [struct.pack("<I", version), string(specification), struct.pack("<II", revision, len(variables))]
    for name, array in variables.items():
        shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        parts += [string(name), shape, struct.pack("<BI", TYPES[array.dtype.name], array.nbytes), array.tobytes()]
    parts.append(struct.pack("<I", len(aliases)))
    parts += [string(alias) + string(name) for alias, name in aliases.items()]
    return b"".join(parts)


def find_aliases(variables: dict[str, Array]) -> dict[str, str]:
    """Remove weights that equal an earlier one from ``variables``, as CTranslate2's converter does."""
    first: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    aliases = {}
    for name, array in list(variables.items()):
        if array.ndim:
            earlier = first.setdefault((array.dtype.name, array.shape, array.tobytes()), name)
            if earlier != name:
                aliases[name] = earlier
                del variables[name]
    return aliases


def ctranslate2_variables(
    tensors: Mapping[str, Tensor], config: WhisperConfig, precision: Precision = "float32"
) -> dict[str, Array]:
    """Variables of a `model.bin` by name in alphabetical order, with the head as a variable of its own."""
    stored: dict[str, Tensor] = {}

    def norm(name: str, module: str) -> None:
        stored[f"{name}/gamma"], stored[f"{name}/beta"] = tensors[f"{module}.weight"], tensors[f"{module}.bias"]

    def linear(name: str, modules: Iterable[str]) -> None:
        weights = [tensors[f"{module}.weight"] for module in modules]
        biases = [tensors.get(f"{module}.bias", torch.zeros(len(weights[0]))) for module in modules]
        stored[f"{name}/weight"] = torch.cat(weights)
        stored[f"{name}/bias"] = torch.cat([bias.to(weights[0].dtype) for bias in biases])

    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        stored[f"{side}/position_encodings/encodings"] = tensors[f"model.{side}.embed_positions.weight"]
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        for index in range(layers):
            ours, theirs = f"{side}/layer_{index}", f"model.{side}.layers.{index}"
            self_attention = f"{theirs}.self_attn"
            norm(f"{ours}/self_attention/layer_norm", f"{self_attention}_layer_norm")
            linear(f"{ours}/self_attention/linear_0", [f"{self_attention}.{each}_proj" for each in "qkv"])
            linear(f"{ours}/self_attention/linear_1", [f"{self_attention}.out_proj"])
            norm(f"{ours}/ffn/layer_norm", f"{theirs}.final_layer_norm")
            linear(f"{ours}/ffn/linear_0", [f"{theirs}.fc1"])
            linear(f"{ours}/ffn/linear_1", [f"{theirs}.fc2"])
            if side == "decoder":
                cross = f"{theirs}.encoder_attn"
                norm(f"{ours}/attention/layer_norm", f"{cross}_layer_norm")
                linear(f"{ours}/attention/linear_0", [f"{cross}.q_proj"])
                linear(f"{ours}/attention/linear_1", [f"{cross}.k_proj", f"{cross}.v_proj"])
                linear(f"{ours}/attention/linear_2", [f"{cross}.out_proj"])
    for conv in ("conv1", "conv2"):
        linear(f"encoder/{conv}", [f"model.encoder.{conv}"])
    stored["decoder/embeddings/weight"] = tensors["model.decoder.embed_tokens.weight"]
    stored["decoder/projection/weight"] = stored["decoder/embeddings/weight"]
    floats = np.float16 if "float16" in precision else np.float32
    variables: dict[str, Array] = {
        "encoder/num_heads": np.array(config.encoder_attention_heads, np.int16),
        "decoder/num_heads": np.array(config.decoder_attention_heads, np.int16),
        "decoder/activation": np.array(3, np.int8),
        "decoder/pre_norm": np.array(1, np.int8),
        "decoder/alibi": np.array(0, np.int8),
        "decoder/scale_embeddings": np.array(0, np.int8),
        "decoder/alignment_layer": np.array(-1, np.int16),
    }
    for name, tensor in stored.items():
        array = tensor.to(torch.float32).numpy()
        if "int8" in precision and name.endswith("/weight"):
            largest = np.abs(array.reshape(len(array), -1)).max(1)
            scales = (127 / np.where(largest == 0, 127, largest)).astype(np.float32)
            rows = scales.reshape(-1, *[1] * (array.ndim - 1))
            variables[name] = np.rint(array * rows).astype(np.int8)
            variables[f"{name}_scale"] = scales
        else:
            variables[name] = array.astype(floats)
    return dict(sorted(variables.items()))


def write_ctranslate2(checkpoint: Path, out: Path, precision: Precision = "float32") -> Path:
    """Write the checkpoint in the layout of CTranslate2 to the new folder ``out``, and return it."""
    config = WhisperConfig.from_pretrained(checkpoint)
    generation = json.loads((checkpoint / "generation_config.json").read_text())
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    variables = ctranslate2_variables(load_file(checkpoint / "model.safetensors"), config, precision)
    aliases = find_aliases(variables)
    out.mkdir(parents=True)
    (out / "model.bin").write_bytes(encode_model(variables, aliases))
    settings = {
        "alignment_heads": [[0, 0]],
        "lang_ids": sorted(generation.get("lang_to_id", {}).values()),
        "suppress_ids": generation["suppress_tokens"],
        "suppress_ids_begin": generation["begin_suppress_tokens"],
    }
    (out / "config.json").write_text(json.dumps(settings))
    tokens = [tokenizer.id_to_token(index) or f"madeupword{index}" for index in range(config.vocab_size)]
    (out / "vocabulary.json").write_text(json.dumps(tokens))
    shutil.copyfile(checkpoint / "tokenizer.json", out / "tokenizer.json")
    return out


def openai_name(name: str) -> str:
    """OpenAI's name of a tensor of transformers' model."""
    for theirs, ours in (
        ("model.", ""),
        ("encoder_attn", "cross_attn"),
        ("self_attn", "attn"),
        ("attn_layer_norm", "attn_ln"),
        ("final_layer_norm", "mlp_ln"),
        ("encoder.layer_norm", "encoder.ln_post"),
        ("decoder.layer_norm", "decoder.ln"),
        (".layers.", ".blocks."),
        (".fc1.", ".mlp.0."),
        (".fc2.", ".mlp.2."),
        ("q_proj", "query"),
        ("k_proj", "key"),
        ("v_proj", "value"),
        ("out_proj", "out"),
        ("embed_positions.weight", "positional_embedding"),
        ("embed_tokens", "token_embedding"),
    ):
        name = name.replace(theirs, ours)
    return name


def openai_file(tensors: Mapping[str, Tensor], config: WhisperConfig) -> dict[str, Any]:
    """Contents of OpenAI's file."""
    stored = {openai_name(name): tensor for name, tensor in tensors.items() if name != "proj_out.weight"}
    return {
        "dims": {
            "n_mels": config.num_mel_bins,
            "n_vocab": config.vocab_size,
            "n_audio_ctx": config.max_source_positions,
            "n_audio_state": config.d_model,
            "n_audio_head": config.encoder_attention_heads,
            "n_audio_layer": config.encoder_layers,
            "n_text_ctx": config.max_target_positions,
            "n_text_state": config.d_model,
            "n_text_head": config.decoder_attention_heads,
            "n_text_layer": config.decoder_layers,
        },
        "model_state_dict": stored,
    }


def write_openai(checkpoint: Path, out: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write the checkpoint in OpenAI's layout, with its tokenizer, to the new folder ``out``, and return it."""
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    out.mkdir(parents=True)
    torch.save(openai_file(tensors, WhisperConfig.from_pretrained(checkpoint)), out / "model.pt")
    shutil.copyfile(checkpoint / "tokenizer.json", out / "tokenizer.json")
    return out


def write_transformers(
    tensors: Mapping[str, Tensor], config: WhisperConfig, generation: Mapping[str, Any], tokenizer: Path, out: Path
) -> Path:
    """Write a checkpoint of transformers' layout to the new folder ``out``, and return it."""
    out.mkdir(parents=True)
    config.save_pretrained(out)
    (out / "generation_config.json").write_text(json.dumps(generation))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out / "model.safetensors")
    shutil.copyfile(tokenizer, out / "tokenizer.json")
    return out
