"""Parakeet's written graphs against transformers' model, on features of real speech."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import ParakeetFeatureExtractor

from export.compare import RATE, difference, speech
from runtime.model.manifest import Parity
from runtime.ort.providers import ProviderSpec
from runtime.ort.session import make_session

Floats = npt.NDArray[np.float32]

TOLERANCE = 1e-4
STEPS = 6
ROWS = 3
# Seconds of audio: a few encoder frames, some, and as long as a segment is allowed to be.
SECONDS = (0.3, 2.3, 8.0, 26.7)


@dataclass(frozen=True, slots=True)
class EncoderCase:
    """Inputs of the graph, and the reference's valid rows [frames, width] of each clip."""

    name: str
    features: Floats
    lengths: npt.NDArray[np.int64]
    expected: list[Floats]


@dataclass(frozen=True, slots=True)
class StepCase:
    """Tokens [steps, rows] and encoder frames [steps, rows, width], and the reference's logits [steps, rows, …]."""

    name: str
    tokens: npt.NDArray[np.int64]
    frames: Floats
    expected: Floats


@torch.no_grad()
def encoder_cases(model: Any, extract: ParakeetFeatureExtractor, *, ctc: bool) -> list[EncoderCase]:
    """Reference outputs: clips alone, and three as a padded batch."""
    clips = [speech(seconds) for seconds in SECONDS]
    cases = []
    for name, batch in [(f"{len(clip) / RATE:.1f} s", [clip]) for clip in clips] + [("batch of 3", clips[:3])]:
        made = extract(batch, sampling_rate=RATE, return_tensors="pt")
        features, mask = made["input_features"], made["attention_mask"]
        if ctc:
            output = model(features, mask).logits
            valid = model.encoder._get_output_attention_mask(mask, target_length=output.shape[1]).sum(-1)
        else:
            encoded = model.get_audio_features(features, mask)
            output, valid = encoded.pooler_output, encoded.attention_mask.sum(-1)
        expected = [row[:count].numpy() for row, count in zip(output, valid.tolist(), strict=True)]
        cases.append(EncoderCase(name, features.numpy(), mask.sum(-1).numpy(), expected))
    return cases


@torch.no_grad()
def step_cases(model: Any, cases: Sequence[EncoderCase]) -> list[StepCase]:
    """Reference logits of steps over real encoder frames: a row alone, and three side by side with other tokens."""
    frames = np.concatenate(cases[-1].expected)
    indices = np.linspace(0, len(frames) - 1, STEPS * ROWS).astype(int).reshape(STEPS, ROWS)
    # Blank first, as every text begins, then tokens from all over the vocabulary.
    tokens = np.linspace(0, model.config.vocab_size - 1, STEPS * ROWS).astype(np.int64).reshape(STEPS, ROWS)
    tokens[0] = model.config.blank_token_id
    together = StepCase("batch of 3", tokens, frames[indices], _reference_steps(model, tokens, frames[indices]))
    alone = StepCase("one row", tokens[:, :1], frames[indices][:, :1], together.expected[:, :1])
    return [alone, together]


def _reference_steps(model: Any, tokens: npt.NDArray[np.int64], frames: Floats) -> Floats:
    """Logits [steps, rows, vocab + durations] of the reference: its LSTM over all tokens, and its joint network."""
    predicted = model.decoder(torch.from_numpy(tokens.T.copy()))  # [rows, steps, width]
    encoded: Tensor = torch.from_numpy(frames).transpose(0, 1)
    logits: Floats = model.joint(decoder_hidden_states=predicted, encoder_hidden_states=encoded).transpose(0, 1).numpy()
    return logits


def check_encoder(cases: Sequence[EncoderCase], graph: Path, output: str) -> Parity:
    """``encoder.onnx``, opened as the runtime opens it, against the reference's valid rows."""
    session = make_session(graph, ProviderSpec())
    worst = 0.0
    for case in cases:
        found, valid = session.run([output, "encoded_lengths"], {"features": case.features, "lengths": case.lengths})
        for row, count, expected in zip(found, valid.tolist(), case.expected, strict=True):
            worst = max(worst, difference(row[:count], expected, f"encoder, {case.name}", TOLERANCE))
    return Parity(worst, TOLERANCE, [case.name for case in cases])


def check_decoder_joint(cases: Sequence[StepCase], graph: Path, layers: int, width: int) -> Parity:
    """``decoder_joint.onnx``, step by step from the empty state, against the reference's logits."""
    session = make_session(graph, ProviderSpec())
    worst = 0.0
    for case in cases:
        state = [np.zeros((layers, case.tokens.shape[1], width), np.float32)] * 2
        for step, (token, frame) in enumerate(zip(case.tokens, case.frames, strict=True)):
            feeds = {"token": token, "hidden": state[0], "cell": state[1], "frame": frame}
            tokens, durations, *state = session.run(None, feeds)
            ours = np.concatenate([tokens, durations], axis=-1)
            what = f"decoder_joint, {case.name}, step {step + 1}"
            worst = max(worst, difference(ours, case.expected[step], what, TOLERANCE))
    return Parity(worst, TOLERANCE, [f"{case.name}, {STEPS} steps" for case in cases])
