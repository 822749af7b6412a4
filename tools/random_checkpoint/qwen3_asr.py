"""Qwen3-ASR in the original layout, sharded, with a tokenizer of the real size whose added tokens have the real ids."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from export.families.qwen3_asr.exporter import REAL_IDS, REAL_VOCABULARY
from tools.random_checkpoint.writing import write_config, write_tensors
from tools.tiny.qwen3_asr.tokenizer import PATTERN

SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "0.6b": {
        "audio": {"encoder_layers": 18, "d_model": 896, "encoder_attention_heads": 14, "encoder_ffn_dim": 3584},
        "text": {"hidden_size": 1024, "intermediate_size": 3072},
    },
    "1.7b": {
        "audio": {"encoder_layers": 24, "d_model": 1024, "encoder_attention_heads": 16, "encoder_ffn_dim": 4096},
        "text": {"hidden_size": 2048, "intermediate_size": 6144},
    },
}


def configuration(size: str) -> dict[str, Any]:
    """Return ``config.json`` in the original layout, with the sizes of the published models."""
    audio, text = SIZES[size]["audio"], SIZES[size]["text"]
    return {
        "architectures": ["Qwen3ASRForConditionalGeneration"],
        "model_type": "qwen3_asr",
        "thinker_config": {
            "audio_config": {
                **audio,
                "num_mel_bins": 128,
                "downsample_hidden_size": 480,
                "output_dim": text["hidden_size"],
                "n_window": 50,
                "n_window_infer": 800,
                "activation_function": "gelu",
                "scale_embedding": False,
                "max_source_positions": 1500,
            },
            "text_config": {
                **text,
                "num_hidden_layers": 28,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "hidden_act": "silu",
                "vocab_size": REAL_VOCABULARY,
                "max_position_embeddings": 65_536,
                "rms_norm_eps": 1e-6,
                "rope_theta": 1e6,
                "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
                "tie_word_embeddings": True,
            },
            "audio_token_id": REAL_IDS["<|audio_pad|>"],
        },
    }


def tensor_shapes(config: dict[str, Any]) -> Iterator[tuple[str, list[int]]]:
    """Yield name and shape of every tensor of the original layout."""
    audio, text = config["thinker_config"]["audio_config"], config["thinker_config"]["text_config"]
    channels, width, ffn = audio["downsample_hidden_size"], audio["d_model"], audio["encoder_ffn_dim"]

    def linear(name: str, out: int, into: int, bias: bool = True) -> Iterator[tuple[str, list[int]]]:
        yield f"{name}.weight", [out, into]
        if bias:
            yield f"{name}.bias", [out]

    tower = "thinker.audio_tower"
    for index, into in enumerate((1, channels, channels), start=1):
        yield f"{tower}.conv2d{index}.weight", [channels, into, 3, 3]
        yield f"{tower}.conv2d{index}.bias", [channels]
    yield from linear(f"{tower}.conv_out", width, channels * math.ceil(audio["num_mel_bins"] / 8), bias=False)
    for layer in range(audio["encoder_layers"]):
        prefix = f"{tower}.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from linear(f"{prefix}.self_attn.{name}", width, width)
        yield from linear(f"{prefix}.fc1", ffn, width)
        yield from linear(f"{prefix}.fc2", width, ffn)
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            yield from ((f"{prefix}.{name}.{part}", [width]) for part in ("weight", "bias"))
    yield from ((f"{tower}.ln_post.{part}", [width]) for part in ("weight", "bias"))
    yield from linear(f"{tower}.proj1", width, width)
    yield from linear(f"{tower}.proj2", audio["output_dim"], width)

    hidden, heads, kv, size = (
        text[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    )
    yield "thinker.model.embed_tokens.weight", [text["vocab_size"], hidden]
    for layer in range(text["num_hidden_layers"]):
        prefix = f"thinker.model.layers.{layer}"
        yield f"{prefix}.self_attn.q_proj.weight", [heads * size, hidden]
        yield f"{prefix}.self_attn.k_proj.weight", [kv * size, hidden]
        yield f"{prefix}.self_attn.v_proj.weight", [kv * size, hidden]
        yield f"{prefix}.self_attn.o_proj.weight", [hidden, heads * size]
        yield from ((f"{prefix}.self_attn.{name}.weight", [size]) for name in ("q_norm", "k_norm"))
        yield from (
            (f"{prefix}.mlp.{name}.weight", [text["intermediate_size"], hidden]) for name in ("gate_proj", "up_proj")
        )
        yield f"{prefix}.mlp.down_proj.weight", [hidden, text["intermediate_size"]]
        yield from ((f"{prefix}.{name}.weight", [hidden]) for name in ("input_layernorm", "post_attention_layernorm"))
    yield "thinker.model.norm.weight", [hidden]


def tokenizer() -> Tokenizer:
    """Return a tokenizer of the real size: byte-level tokens, filler tokens, added tokens at the real ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    first_added = min(REAL_IDS.values())
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    vocabulary |= {f"<filler {index}>": index for index in range(len(alphabet), first_added)}
    result = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    result.normalizer = normalizers.NFC()
    result.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    result.decoder = decoders.ByteLevel()
    at = {index: token for token, index in REAL_IDS.items()}
    for index in range(first_added, max(at) + 1):
        token = at.get(index, f"<|added {index}|>")
        result.add_tokens([AddedToken(token, special=token != "<asr_text>", normalized=False)])
    return result


def write(name: str, out: Path) -> None:
    """Write ``qwen3-asr-0.6b`` or ``qwen3-asr-1.7b``."""
    config = configuration(name.removeprefix("qwen3-asr-"))
    write_config(out, config)
    tokenizer().save(str(out / "tokenizer.json"))
    write_tensors(out, tensor_shapes(config))
