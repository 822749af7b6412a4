"""Each written graph against the reference implementation, on features of real speech. Out of tolerance is an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Qwen3ASRFeatureExtractor, Qwen3ASRForConditionalGeneration

from export.compare import RATE, DecoderRow, check_rows, difference, longest, speech
from export.families.qwen3_asr.encoder import window_token_count
from quantize.graph import read_interface
from runtime.decoding.kv_rows import CausalDecoder
from runtime.model.manifest import Parity
from runtime.ort.providers import ProviderSpec
from runtime.ort.session import make_session

Floats = npt.NDArray[np.float32]

ENCODER_TOLERANCE = 1e-4
DECODER_TOLERANCE = 1e-3
STEPS = 4
# Seconds of audio: under one chunk, a partial chunk, one whole window, several windows and a partial one.
ENCODER_SECONDS = (0.6, 2.3, 8.0, 26.7)
DECODER_SECONDS = (0.6, 2.3, 8.0)


def features(clips: Sequence[Floats], mels: int) -> tuple[Tensor, Tensor]:
    """The reference's features [B, mels, T] and mask [B, T] of clips.

    Each clip alone, then padded with zeros: the reference pads a batch's samples before its features, and the
    convolutions then see digital silence instead of zeros in a clip's last chunk, so that its batches differ from its
    single runs.
    """
    extract = Qwen3ASRFeatureExtractor(feature_size=mels)
    made = [extract([clip], sampling_rate=RATE, padding="longest", return_attention_mask=True) for clip in clips]
    longest = max(m["input_features"].shape[-1] for m in made)

    def stack(key: str) -> Tensor:
        return torch.cat([nn.functional.pad(m[key], (0, longest - m[key].shape[-1])) for m in made])

    return stack("input_features"), stack("attention_mask")


def to_windows(mel: Tensor, mask: Tensor, window_frames: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """The reference's batch → windows [W, mels, ≤ window_frames] in order of clips, and their valid frames."""
    frames = mask.sum(-1)
    width = min(window_frames, mel.shape[-1])
    mel = nn.functional.pad(mel, (0, -mel.shape[-1] % width))
    count = mel.shape[-1] // width
    windows = mel.reshape(len(mel), mel.shape[1], count, width).transpose(1, 2).reshape(-1, mel.shape[1], width)
    lengths = (frames[:, None] - torch.arange(count) * width).clamp(0, width).reshape(-1)
    keep = lengths > 0
    return windows[keep].contiguous().numpy(), lengths[keep].long().numpy()


@dataclass(frozen=True, slots=True)
class EncoderCase:
    """Windows as the graph takes them, and the reference's valid rows [tokens, hidden] of all clips in order."""

    name: str
    windows: Floats
    lengths: npt.NDArray[np.int64]
    expected: Floats


@torch.no_grad()
def encoder_cases(model: Qwen3ASRForConditionalGeneration) -> list[EncoderCase]:
    """Reference outputs of ``get_audio_features``: clips alone, and three as a batch."""
    config = model.config.audio_config
    clips = [speech(seconds) for seconds in ENCODER_SECONDS]
    cases = []
    for name, batch in [(f"{len(clip) / RATE:.1f} s", [clip]) for clip in clips] + [("batch of 3", clips[:3])]:
        mel, mask = features(batch, config.num_mel_bins)
        expected = model.get_audio_features(mel, mask).pooler_output.numpy()
        cases.append(EncoderCase(name, *to_windows(mel, mask, config.n_window_infer), expected))
    return cases


@torch.no_grad()
def decoder_rows(model: Qwen3ASRForConditionalGeneration, tokenizer: Tokenizer) -> list[DecoderRow]:
    """Reference logits of prompts with clips of several lengths: every row of the prefill, then greedy steps."""
    rows = []
    for seconds in DECODER_SECONDS:
        mel, mask = features([speech(seconds)], model.config.audio_config.num_mel_bins)
        embeds = model.get_audio_features(mel, mask).pooler_output
        prompt = reference_prompt(tokenizer, len(embeds))
        logits, tokens = _reference_logits(model, prompt, embeds)
        rows.append(DecoderRow(prompt, embeds.numpy(), tokens, logits))
    return rows


def check_encoder(cases: list[EncoderCase], graph: Path) -> Parity:
    """``encoder.onnx``, opened as the runtime opens it, against the reference outputs."""
    session = make_session(graph, ProviderSpec())
    worst = 0.0
    for case in cases:
        (output,) = session.run(["audio_embeds"], {"features": case.windows, "lengths": case.lengths})
        counts = window_token_count(torch.from_numpy(case.lengths)).tolist()
        ours = np.concatenate([rows[:count] for rows, count in zip(output, counts, strict=True)])
        worst = max(worst, difference(ours, case.expected, f"encoder, {case.name}", ENCODER_TOLERANCE))
    return Parity(worst, ENCODER_TOLERANCE, [case.name for case in cases])


def check_decoder(rows: list[DecoderRow], graph: Path, audio_id: int) -> Parity:
    """``decoder.onnx`` against the reference logits: see :func:`export.compare.check_rows`."""
    session = make_session(graph, ProviderSpec())
    decoder = CausalDecoder(session, read_interface(graph), audio_id=audio_id, context_length=longest(rows))
    return check_rows(decoder, rows, np.concatenate, DECODER_TOLERANCE)


def reference_prompt(tokenizer: Tokenizer, audio_tokens: int) -> list[int]:
    text = (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n<|audio_start|>"
        f"{'<|audio_pad|>' * audio_tokens}<|audio_end|><|im_end|>\n<|im_start|>assistant\n"
    )
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def _reference_logits(model: Any, prompt: list[int], embeds: Tensor) -> tuple[Floats, list[int]]:
    """Logits [prompt + STEPS, vocab] of the reference, and its greedy tokens."""
    ids = torch.tensor([prompt])
    inputs = model.get_input_embeddings()(ids)
    inputs = inputs.masked_scatter((ids == model.config.audio_token_id)[..., None], embeds)
    output = model.model.language_model(inputs_embeds=inputs, use_cache=True)
    logits = [model.lm_head(output.last_hidden_state)[0]]
    tokens = []
    for _ in range(STEPS):
        tokens.append(int(logits[-1][-1].argmax()))
        output = model.model.language_model(
            input_ids=torch.tensor([[tokens[-1]]]), past_key_values=output.past_key_values, use_cache=True
        )
        logits.append(model.lm_head(output.last_hidden_state)[0])
    return torch.cat(logits).numpy(), tokens
