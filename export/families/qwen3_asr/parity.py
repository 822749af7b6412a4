"""Comparison of Qwen3-ASR's written graphs with transformers' model, on sample speech."""

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

from export.compare import RATE, Comparison, DecoderRow, check_rows, clip_batches, longest, open_graph, speech
from export.families.qwen3_asr.encoder import window_token_count
from quantize.graph import read_interface
from runtime.decoding.kv_rows import CausalDecoder
from runtime.model.manifest import Parity

Floats = npt.NDArray[np.float32]

STEPS = 4
# Lengths of the clips: less than a chunk, a partial chunk, one whole window, several windows and a partial one.
ENCODER_SECONDS = (0.6, 2.3, 8.0, 26.7)
DECODER_SECONDS = (0.6, 2.3, 8.0)


def features(clips: Sequence[Floats], mels: int) -> tuple[Tensor, Tensor]:
    """The reference's features [B, mels, T] and mask [B, T] of clips.

    Features are computed for each clip alone and then padded with zeros. The reference pads the samples of a batch
    instead. Its convolutions then read the features of digital silence, not zeros, in a clip's last chunk, so that its
    batches differ from its single runs.
    """
    extractor = Qwen3ASRFeatureExtractor(feature_size=mels)
    inputs = [extractor([clip], sampling_rate=RATE, padding="longest", return_attention_mask=True) for clip in clips]
    width = max(each["input_features"].shape[-1] for each in inputs)

    def stack(key: str) -> Tensor:
        return torch.cat([nn.functional.pad(each[key], (0, width - each[key].shape[-1])) for each in inputs])

    return stack("input_features"), stack("attention_mask")


def to_windows(mel: Tensor, mask: Tensor, window_frames: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Cut the reference's features into windows.

    Args:
        mel: [B, mels, T].
        mask: [B, T], 1 for valid frames.
        window_frames: frames of a window.

    Returns:
        Windows with valid frames [W, mels, ≤ window_frames], in order of clips, and their valid frames int64 [W].
    """
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
    """Inputs of the encoder's graph, and the reference's output.

    Attributes:
        name: names the case in messages and in the manifest.
        windows: float32 [W, mels, frames].
        lengths: int64 [W], valid frames.
        expected: valid rows of all clips in order, float32 [tokens, hidden].
    """

    name: str
    windows: Floats
    lengths: npt.NDArray[np.int64]
    expected: Floats


@torch.no_grad()
def encoder_cases(model: Qwen3ASRForConditionalGeneration) -> list[EncoderCase]:
    """Reference outputs of ``get_audio_features`` for clips alone, and for three as a batch."""
    config = model.config.audio_config
    cases = []
    for name, clips in clip_batches(ENCODER_SECONDS):
        mel, mask = features(clips, config.num_mel_bins)
        expected = model.get_audio_features(mel, mask).pooler_output.numpy()
        cases.append(EncoderCase(name, *to_windows(mel, mask, config.n_window_infer), expected))
    return cases


@torch.no_grad()
def decoder_rows(model: Qwen3ASRForConditionalGeneration, tokenizer: Tokenizer) -> list[DecoderRow]:
    """Reference logits of prompts with clips of several lengths: every position of the prompt, then greedy steps."""
    rows = []
    for seconds in DECODER_SECONDS:
        mel, mask = features([speech(seconds)], model.config.audio_config.num_mel_bins)
        embeds = model.get_audio_features(mel, mask).pooler_output
        prompt = reference_prompt(tokenizer, len(embeds))
        logits, tokens = _reference_logits(model, prompt, embeds)
        rows.append(DecoderRow(prompt, embeds.numpy(), tokens, logits))
    return rows


def check_encoder(cases: Sequence[EncoderCase], graph: Path) -> Parity:
    """Compare ``encoder.onnx`` with the reference's outputs on valid rows.

    Raises:
        ParityError: they differ by more than :data:`export.compare.TOLERANCE`, or the numbers of rows differ.
    """
    session = open_graph(graph)
    comparison = Comparison()
    for case in cases:
        (output,) = session.run(["audio_embeds"], {"features": case.windows, "lengths": case.lengths})
        counts = window_token_count(torch.from_numpy(case.lengths)).tolist()
        rows = np.concatenate([window[:count] for window, count in zip(output, counts, strict=True)])
        comparison.add(rows, case.expected, f"encoder, {case.name}")
    return comparison.result([case.name for case in cases])


def check_decoder(rows: Sequence[DecoderRow], audio_id: int, graph: Path) -> Parity:
    """Compare ``decoder.onnx`` with the reference's logits, with :func:`export.compare.check_rows`.

    Args:
        rows: prompts, tokens and expected logits.
        audio_id: id of the audio placeholder.
        graph: the graph's file.

    Raises:
        ParityError: they differ by more than :data:`export.compare.TOLERANCE`.
    """
    decoder = CausalDecoder(open_graph(graph), read_interface(graph), audio_id=audio_id, context_length=longest(rows))
    return check_rows(decoder, rows, np.concatenate)


def reference_prompt(tokenizer: Tokenizer, audio_tokens: int) -> list[int]:
    """Token ids of the reference's prompt without context, with ``audio_tokens`` placeholders."""
    text = (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n<|audio_start|>"
        f"{'<|audio_pad|>' * audio_tokens}<|audio_end|><|im_end|>\n<|im_start|>assistant\n"
    )
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def _reference_logits(model: Any, prompt: list[int], embeds: Tensor) -> tuple[Floats, list[int]]:
    """Logits [len(prompt) + STEPS, vocab] of the reference, and its greedy tokens."""
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
