"""A tiny Whisper with random weights, in the layout of the published checkpoints: ``write(folder)``.

Its text is noise that depends on the audio, the tokens before and the position, and that ends.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

TEXT_TOKENS = 256
LANGUAGES = ("en", "de", "ru", "zh", "yue")
RATE, HOP = 16_000, 160


def special_tokens(languages: tuple[str, ...], positions: int) -> list[str]:
    """Special tokens in the order of the published vocabularies, timestamps last."""
    return [
        "<|endoftext|>",
        "<|startoftranscript|>",
        *(f"<|{code}|>" for code in languages),
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
        *(f"<|{index * 0.02:.2f}|>" for index in range(positions + 1)),
    ]


def tokenizer(specials: list[str], text_tokens: int = TEXT_TOKENS) -> Tokenizer:
    """Tokenizer with one token per byte, fillers up to ``text_tokens``, and then special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters += [f"<filler {index}>" for index in range(len(letters), text_tokens)]
    bpe = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    # As in the published files: timestamps are added tokens, but not special ones.
    bpe.add_special_tokens([token for token in specials if "." not in token])
    bpe.add_tokens([AddedToken(token, normalized=False) for token in specials if "." in token])
    return bpe


def write(
    folder: Path,
    *,
    seed: int = 0,
    mels: int = 80,
    positions: int = 100,
    context: int = 96,
    multilingual: bool = True,
    layers: tuple[int, int] = (2, 2),
    width: int = 32,
    sharpness: float = 6.0,
    stop: float = 8.0,
    **changed: Any,
) -> WhisperForConditionalGeneration:
    """Write a checkpoint for windows of ``positions`` · 20 ms.

    Args:
        folder: the new folder.
        seed: seed of the random weights.
        mels: mel channels.
        positions: encoder positions of a window.
        context: decoder positions.
        multilingual: whether there are language and task tokens.
        layers: encoder and decoder layers.
        width: model width.
        sharpness: scale of the logits.
        stop: added to the stop token's logit: how soon texts end.
        changed: other values for ``generation_config.json``.

    Returns:
        The model as transformers reads it back.
    """
    specials = special_tokens(LANGUAGES if multilingual else (), positions)
    ids = {token: TEXT_TOKENS + index for index, token in enumerate(specials)}
    torch.manual_seed(seed)
    config = WhisperConfig(
        vocab_size=TEXT_TOKENS + len(specials),
        num_mel_bins=mels,
        encoder_layers=layers[0],
        decoder_layers=layers[1],
        encoder_attention_heads=2,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=64,
        d_model=width,
        max_source_positions=positions,
        max_target_positions=context,
        decoder_start_token_id=ids["<|startoftranscript|>"],
        eos_token_id=ids["<|endoftext|>"],
        bos_token_id=ids["<|endoftext|>"],
        pad_token_id=ids["<|endoftext|>"],
    )
    model = WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "embed_positions" not in name:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.05)
        decoder = model.model.decoder
        # The next token must depend on position and audio more than on the token before, whose embedding is also the
        # head's row for it.
        table = decoder.embed_tokens.weight
        table.copy_(0.5 * table / table.norm(dim=1, keepdim=True))
        decoder.embed_positions.weight.normal_(std=1.0)
        for layer in decoder.layers:
            layer.encoder_attn.q_proj.weight.mul_(6)
            layer.encoder_attn.k_proj.weight.mul_(2)
            for attention in (layer.self_attn, layer.encoder_attn):
                attention.v_proj.weight.mul_(2)
        decoder.layer_norm.weight.fill_(sharpness)  # otherwise all tokens would be about equally likely
        stop_row = table[config.eos_token_id]
        decoder.layer_norm.bias.copy_(stop * stop_row / stop_row.norm() ** 2)
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    suppressed = [1, 7, 90, *(ids[each] for each in ("<|startoftranscript|>", "<|startofprev|>"))]
    write_companions(folder, config, LANGUAGES if multilingual else (), suppress=suppressed, **changed)
    model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def write_companions(
    folder: Path, config: WhisperConfig, languages: tuple[str, ...], *, suppress: list[int], **changed: Any
) -> None:
    """Write tokenizer, generation settings and front end of a checkpoint with the special tokens of ``languages``.

    ``suppress`` are tokens that are never generated, ``changed`` other values for ``generation_config.json``.
    """
    positions = config.max_source_positions
    specials = special_tokens(languages, positions)
    text_tokens = config.vocab_size - len(specials)
    ids = {token: text_tokens + index for index, token in enumerate(specials)}
    generation = {
        "decoder_start_token_id": config.decoder_start_token_id,
        "eos_token_id": config.eos_token_id,
        "bos_token_id": config.bos_token_id,
        "pad_token_id": config.pad_token_id,
        "max_length": config.max_target_positions,
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "prev_sot_token_id": ids["<|startofprev|>"],
        "is_multilingual": bool(languages),
        "suppress_tokens": suppress,
        "begin_suppress_tokens": [220, config.eos_token_id],
        "max_initial_timestamp_index": 50,
        "return_timestamps": False,
    }
    if languages:
        generation |= {
            "lang_to_id": {f"<|{code}|>": ids[f"<|{code}|>"] for code in languages},
            "task_to_id": {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")},
        }
    (folder / "generation_config.json").write_text(json.dumps(generation | changed))
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "feature_extractor_type": "WhisperFeatureExtractor",
                "feature_size": config.num_mel_bins,
                "sampling_rate": RATE,
                "hop_length": HOP,
                "n_fft": 400,
                "chunk_length": positions * 2 * HOP // RATE,
            }
        )
    )
    tokenizer(specials, text_tokens).save(str(folder / "tokenizer.json"))
