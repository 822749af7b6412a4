"""Whisper's written graphs against transformers, on features of real speech. Out of tolerance is an error."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from export.compare import RATE, DecoderRow, check_rows, difference, longest, speech
from export.families.whisper.graphs import cross_names
from quantize.graph import read_interface
from runtime.families.whisper.cross_decoder import CrossDecoder
from runtime.model.manifest import Parity
from runtime.ort.providers import ProviderSpec
from runtime.ort.session import make_session

Floats = npt.NDArray[np.float32]

ENCODER_TOLERANCE = 1e-4
DECODER_TOLERANCE = 1e-3
STEPS = 6
# Of a window: shares that are speech, the rest is padding.
SHARES = (0.1, 0.4, 1.0)
# Tokens before the start of each row, as a context has them: rows differ in length.
CONTEXTS = (0, 11, 4)


@dataclass(frozen=True, slots=True)
class EncoderCase:
    """Features [B, mels, frames], and what the reference's cross-attention makes of its encoder's output."""

    name: str
    features: Floats
    expected: list[Floats]


def features(seconds: list[float], mels: int, window_samples: int) -> Tensor:
    """The reference's features [B, mels, frames] of speech, padded to a window."""
    extract = WhisperFeatureExtractor(feature_size=mels)
    clips = [speech(each) for each in seconds]
    made = extract(clips, sampling_rate=RATE, max_length=window_samples, return_tensors="pt")
    found: Tensor = made["input_features"]
    return found


def cross_keys_and_values(model: WhisperForConditionalGeneration, hidden: Tensor) -> list[Tensor]:
    """Keys and values [B, heads, positions, head_dim] of each decoder layer's cross-attention, in order."""
    return [
        projection(hidden).unflatten(-1, (layer.encoder_attn.num_heads, -1)).transpose(1, 2)
        for layer in model.model.decoder.layers
        for projection in (layer.encoder_attn.k_proj, layer.encoder_attn.v_proj)
    ]


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip's name, features [1, mels, frames], and what the reference's encoder makes of them [1, rows, width]."""

    name: str
    features: Tensor
    hidden: Tensor


@torch.no_grad()
def encoded_clips(model: WhisperForConditionalGeneration, window_samples: int) -> list[Clip]:
    """The reference's encoder on a clip of each length: of the largest sizes minutes of work, so done once for all."""
    clips = []
    for seconds in (share * window_samples / RATE for share in SHARES):
        mel = features([seconds], model.config.num_mel_bins, window_samples)
        clips.append(Clip(f"{seconds:.1f} s", mel, model.model.encoder(mel).last_hidden_state))
    return clips


@torch.no_grad()
def encoder_cases(model: WhisperForConditionalGeneration, clips: list[Clip]) -> list[EncoderCase]:
    """Reference outputs for clips alone, and all of them as a batch: they are the same, as nothing crosses its rows."""
    cases = []
    for clip in clips:
        expected = [each.numpy() for each in cross_keys_and_values(model, clip.hidden)]
        cases.append(EncoderCase(clip.name, clip.features.numpy(), expected))
    together = [np.concatenate(each) for each in zip(*(case.expected for case in cases), strict=True)]
    mels = np.concatenate([case.features for case in cases])
    return [*cases, EncoderCase(f"batch of {len(cases)}", mels, together)]


@torch.no_grad()
def decoder_rows(model: WhisperForConditionalGeneration, clips: list[Clip], start: list[int]) -> list[DecoderRow]:
    """Reference logits after prompts of several lengths, each with audio of its own, and greedy steps after them."""
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
    """Logits [ids, vocab] in one pass without a cache."""
    output = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
        decoder_input_ids=torch.tensor([ids]),
        use_cache=False,
    )
    logits: Floats = output.logits[0].numpy()
    return logits


def check_encoder(cases: list[EncoderCase], graph: Path) -> Parity:
    """``encoder.onnx``, opened as the runtime opens it, against the reference outputs."""
    session = make_session(graph, ProviderSpec())
    names = cross_names(len(cases[0].expected) // 2)
    worst = 0.0
    for case in cases:
        outputs = session.run(names, {"features": case.features})
        for name, ours, expected in zip(names, outputs, case.expected, strict=True):
            what = f"encoder, {case.name}, {name}"
            worst = max(worst, difference(ours, expected, what, ENCODER_TOLERANCE))
    return Parity(worst, ENCODER_TOLERANCE, [case.name for case in cases])


def check_decoder(rows: list[DecoderRow], graph: Path) -> Parity:
    """``decoder.onnx`` against the reference logits: see :func:`export.compare.check_rows`."""
    decoder = CrossDecoder(make_session(graph, ProviderSpec()), read_interface(graph), context_length=longest(rows))

    def together(audio: list[list[Floats]]) -> list[Floats]:
        return [np.concatenate(each) for each in zip(*audio, strict=True)]

    return check_rows(decoder, rows, together, DECODER_TOLERANCE)
