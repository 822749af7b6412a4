"""Comparison of Whisper's written graphs with transformers' model, on sample speech."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from export.compare import RATE, Comparison, DecoderRow, check_rows, longest, open_graph, speech
from export.families.whisper.graphs import cross_names
from quantize.graph import read_interface
from runtime.families.whisper.cross_decoder import CrossDecoder
from runtime.model.manifest import Parity

Floats = npt.NDArray[np.float32]

STEPS = 6
# Speech in each clip, as a fraction of the window; the rest is padding.
SHARES = (0.1, 0.4, 1.0)
# Context tokens before the start token of each row, so that rows differ in length.
CONTEXTS = (0, 11, 4)


@dataclass(frozen=True, slots=True)
class EncoderCase:
    """Inputs of the encoder's graph, and the reference's output.

    Attributes:
        name: names the case in messages and in the manifest.
        features: float32 [B, mels, frames].
        expected: cross-attention keys and values [B, heads, positions, head_dim], in order.
    """

    name: str
    features: Floats
    expected: list[Floats]


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip and the reference encoder's output for it.

    Attributes:
        name: names the clip in messages and in the manifest.
        features: float32 [1, mels, frames].
        hidden: float32 [1, positions, d_model].
    """

    name: str
    features: Tensor
    hidden: Tensor


def features(seconds: float, mels: int, window_samples: int) -> Tensor:
    """The reference's features [1, mels, frames] of speech, padded to a window."""
    extractor = WhisperFeatureExtractor(feature_size=mels)
    inputs = extractor([speech(seconds)], sampling_rate=RATE, max_length=window_samples, return_tensors="pt")
    mel: Tensor = inputs["input_features"]
    return mel


def cross_keys_and_values(model: WhisperForConditionalGeneration, hidden: Tensor) -> list[Tensor]:
    """Keys and values [B, heads, positions, head_dim] of each decoder layer's cross-attention, in order."""
    return [
        projection(hidden).unflatten(-1, (layer.encoder_attn.num_heads, -1)).transpose(1, 2)
        for layer in model.model.decoder.layers
        for projection in (layer.encoder_attn.k_proj, layer.encoder_attn.v_proj)
    ]


@torch.no_grad()
def encoded_clips(model: WhisperForConditionalGeneration, window_samples: int) -> list[Clip]:
    """Run the reference's encoder on a clip of each length of :data:`SHARES`.

    The largest models take minutes, so the result serves both the encoder's and the decoder's comparison.
    """
    clips = []
    for seconds in (share * window_samples / RATE for share in SHARES):
        mel = features(seconds, model.config.num_mel_bins, window_samples)
        clips.append(Clip(f"{seconds:.1f} s", mel, model.model.encoder(mel).last_hidden_state))
    return clips


@torch.no_grad()
def encoder_cases(model: WhisperForConditionalGeneration, clips: Sequence[Clip]) -> list[EncoderCase]:
    """Reference outputs of clips alone, and of all of them as a batch. Rows of a batch are independent."""
    cases = []
    for clip in clips:
        expected = [each.numpy() for each in cross_keys_and_values(model, clip.hidden)]
        cases.append(EncoderCase(clip.name, clip.features.numpy(), expected))
    batched = [np.concatenate(each) for each in zip(*(case.expected for case in cases), strict=True)]
    mels = np.concatenate([case.features for case in cases])
    return [*cases, EncoderCase(f"batch of {len(cases)}", mels, batched)]


@torch.no_grad()
def decoder_rows(model: WhisperForConditionalGeneration, clips: Sequence[Clip], start: list[int]) -> list[DecoderRow]:
    """Reference logits of prompts with and without context, one per clip, and of greedy steps after them.

    Args:
        model: the reference.
        clips: one for each of :data:`CONTEXTS`.
        start: prompt tokens after the context; the first is the start token.
    """
    rows = []
    for clip, context in zip(clips, CONTEXTS, strict=True):
        prompt = [*(7 * index % start[0] for index in range(1, context + 1)), *start]
        tokens: list[int] = []
        while True:
            logits = _reference_logits(model, clip.hidden, [*prompt, *tokens])
            if len(tokens) == STEPS:
                break
            tokens.append(int(logits[-1].argmax()))
        audio = [each.numpy() for each in cross_keys_and_values(model, clip.hidden)]
        rows.append(DecoderRow(prompt, audio, tokens, logits))
    return rows


def _reference_logits(model: Any, hidden: Tensor, ids: list[int]) -> Floats:
    """Logits [len(ids), vocab] of the reference, in one pass without a cache."""
    output = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
        decoder_input_ids=torch.tensor([ids]),
        use_cache=False,
    )
    logits: Floats = output.logits[0].numpy()
    return logits


def check_encoder(cases: Sequence[EncoderCase], graph: Path) -> Parity:
    """Compare ``encoder.onnx`` with the reference's outputs.

    Raises:
        ParityError: they differ by more than :data:`export.compare.TOLERANCE`.
    """
    session = open_graph(graph)
    names = cross_names(len(cases[0].expected) // 2)
    comparison = Comparison()
    for case in cases:
        outputs = session.run(names, {"features": case.features})
        for name, output, expected in zip(names, outputs, case.expected, strict=True):
            comparison.add(output, expected, f"encoder, {case.name}, {name}")
    return comparison.result([case.name for case in cases])


def check_decoder(rows: Sequence[DecoderRow], graph: Path) -> Parity:
    """Compare ``decoder.onnx`` with the reference's logits, with :func:`export.compare.check_rows`.

    Raises:
        ParityError: they differ by more than :data:`export.compare.TOLERANCE`.
    """
    decoder = CrossDecoder(open_graph(graph), read_interface(graph), context_length=longest(rows))

    def concatenate(audio: list[list[Floats]]) -> list[Floats]:
        return [np.concatenate(each) for each in zip(*audio, strict=True)]

    return check_rows(decoder, rows, concatenate)
