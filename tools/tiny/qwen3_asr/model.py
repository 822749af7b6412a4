"""The small Qwen3-ASR: configuration, prompts, features in torch, and greedy transcription with transformers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Qwen3ASRConfig, Qwen3ASRForConditionalGeneration
from transformers.audio_utils import mel_filter_bank

from export.families.qwen3_asr.encoder import CHUNK_FRAMES

RATE, HOP, MELS, N_FFT, MIN_SAMPLES = 16_000, 160, 128, 400, 8_000
VOCAB_ROWS = 928  # 900 entries and 8 added tokens, rounded up to a multiple of 32


def config(tokenizer: Tokenizer) -> Qwen3ASRConfig:
    """Return the configuration: widths are multiples of 32, a quantization block; windows as in the real model."""
    end_of_text, end_of_turn = tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|im_end|>")
    return Qwen3ASRConfig(
        audio_config={
            "num_mel_bins": MELS,
            "d_model": 192,
            "encoder_layers": 4,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 768,
            "downsample_hidden_size": 48,
            "output_dim": 256,
            "n_window": 50,
            "n_window_infer": 800,
        },
        text_config={
            "model_type": "qwen3",
            "vocab_size": VOCAB_ROWS,
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "tie_word_embeddings": True,
        },
        audio_token_id=tokenizer.token_to_id("<|audio_pad|>"),
        timestamp_token_id=tokenizer.token_to_id("<timestamp>"),
        eos_token_id=[end_of_text, end_of_turn],
        pad_token_id=end_of_text,
        tie_word_embeddings=True,
    )


_WINDOW = torch.hann_window(N_FFT)
_FILTERS = torch.from_numpy(
    mel_filter_bank(1 + N_FFT // 2, MELS, 0.0, 8000.0, RATE, norm="slaney", mel_scale="slaney").T
).float()


def log_mel(clips: Sequence[npt.NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
    """Return features [B, 128, T] of clips at 16 kHz, T a multiple of 100, 0 past each clip, and frames [B]."""
    longest = max(MIN_SAMPLES, *(len(clip) for clip in clips))
    waves = torch.zeros(len(clips), longest)
    for row, clip in enumerate(clips):
        waves[row, : len(clip)] = torch.from_numpy(clip)
    frames = torch.tensor([max(MIN_SAMPLES, len(clip)) // HOP for clip in clips])
    power = torch.stft(waves, N_FFT, HOP, window=_WINDOW, return_complex=True)[..., :-1].abs() ** 2
    mel = (_FILTERS @ power).clamp(min=1e-10).log10()
    mel = (torch.maximum(mel, mel.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0
    mel = torch.nn.functional.pad(mel, (0, -mel.shape[-1] % CHUNK_FRAMES))
    return mel * (torch.arange(mel.shape[-1]) < frames[:, None])[:, None], frames


def prompt_ids(tokenizer: Tokenizer, audio_tokens: int, context: str = "", language: str | None = None) -> list[int]:
    """Return the chat prompt of Qwen3-ASR; ``language`` (its English name) forces the language of the text."""
    text = (
        f"<|im_start|>system\n{context}<|im_end|>\n<|im_start|>user\n<|audio_start|>{'<|audio_pad|>' * audio_tokens}"
        "<|audio_end|><|im_end|>\n<|im_start|>assistant\n"
    )
    if language:
        text += f"language {language}<asr_text>"
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def token_counts(frames: Tensor) -> Tensor:
    """Return the number of audio tokens of clips with ``frames`` mel frames."""
    rest = frames % CHUNK_FRAMES
    for _ in range(3):
        rest = (rest + 1) // 2
    return frames // CHUNK_FRAMES * 13 + rest


@torch.inference_mode()
def transcribe(
    model: Qwen3ASRForConditionalGeneration,
    tokenizer: Tokenizer,
    clips: Sequence[npt.NDArray[np.float32]],
    contexts: Sequence[str] | None = None,
    languages: Sequence[str | None] | None = None,
    max_new_tokens: int = 160,
) -> list[list[int]]:
    """Return the greedy token ids of each clip without the stop token; all clips are one left-padded batch."""
    features, frames = log_mel(clips)
    counts = token_counts(frames).tolist()
    rows = [
        prompt_ids(tokenizer, n, contexts[i] if contexts else "", languages[i] if languages else None)
        for i, n in enumerate(counts)
    ]
    width = max(map(len, rows))
    pad = int(model.config.pad_token_id)
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        input_features=features,
        input_features_mask=(torch.arange(features.shape[-1]) < frames[:, None]).long(),
        max_new_tokens=max_new_tokens,
        do_sample=False,
    )
    stops = {pad, *model.config.eos_token_id}
    result = []
    for row in output[:, width:].tolist():
        end = next((i for i, token in enumerate(row) if token in stops), len(row))
        result.append(row[:end])
    return result


def parse(tokenizer: Tokenizer, ids: list[int]) -> tuple[str, str]:
    """Return (X, text) of ``language X<asr_text>text``."""
    head, marker, text = tokenizer.decode(ids, skip_special_tokens=False).partition("<asr_text>")
    return (head.removeprefix("language ").strip(), text.strip()) if marker else ("", head.strip())
