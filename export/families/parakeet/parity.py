"""Comparison of Parakeet's written graphs with transformers' models, on sample speech."""

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

from export.compare import RATE, Comparison, FrameCase, check_frames, clip_batches, open_graph
from runtime.model.manifest import Parity

Floats = npt.NDArray[np.float32]

STEPS = 6
ROWS = 3
# Lengths of the clips: a few encoder frames, some, and about the longest segment.
SECONDS = (0.3, 2.3, 8.0, 26.7)


@dataclass(frozen=True, slots=True)
class StepCase:
    """Inputs of consecutive decoder steps, and the reference's logits.

    Attributes:
        name: names the case in messages and in the manifest.
        tokens: int64 [steps, rows].
        frames: encoder frames, float32 [steps, rows, width].
        expected: logits, float32 [steps, rows, vocab + durations].
    """

    name: str
    tokens: npt.NDArray[np.int64]
    frames: Floats
    expected: Floats


@torch.no_grad()
def encoder_cases(model: Any, extractor: ParakeetFeatureExtractor, *, ctc: bool) -> list[FrameCase]:
    """Reference outputs of clips alone, and of three as a padded batch.

    Args:
        model: ``ParakeetForCTC`` or ``ParakeetForTDT``.
        extractor: the reference's feature extractor.
        ctc: whether the model has a CTC head; the outputs are its logits then, else the projected encoder frames.
    """
    cases = []
    for name, clips in clip_batches(SECONDS):
        inputs = extractor(clips, sampling_rate=RATE, return_tensors="pt")
        features, mask = inputs["input_features"], inputs["attention_mask"]
        if ctc:
            output = model(features, mask).logits
            valid = model.encoder._get_output_attention_mask(mask, target_length=output.shape[1]).sum(-1)
        else:
            encoded = model.get_audio_features(features, mask)
            output, valid = encoded.pooler_output, encoded.attention_mask.sum(-1)
        expected = [row[:count].numpy() for row, count in zip(output, valid.tolist(), strict=True)]
        cases.append(FrameCase(name, features.numpy(), mask.sum(-1).numpy(), expected))
    return cases


@torch.no_grad()
def step_cases(model: Any, cases: Sequence[FrameCase]) -> list[StepCase]:
    """Reference logits of steps over the encoder frames of ``cases``: one row, and three rows with other tokens."""
    frames = np.concatenate(cases[-1].expected)
    indices = np.linspace(0, len(frames) - 1, STEPS * ROWS).astype(int).reshape(STEPS, ROWS)
    # The blank first, as in every transcript, then tokens spread over the vocabulary.
    tokens = np.linspace(0, model.config.vocab_size - 1, STEPS * ROWS).astype(np.int64).reshape(STEPS, ROWS)
    tokens[0] = model.config.blank_token_id
    batch = StepCase("batch of 3", tokens, frames[indices], _reference_steps(model, tokens, frames[indices]))
    single = StepCase("one row", tokens[:, :1], frames[indices][:, :1], batch.expected[:, :1])
    return [single, batch]


def _reference_steps(model: Any, tokens: npt.NDArray[np.int64], frames: Floats) -> Floats:
    """Logits [steps, rows, vocab + durations] of the reference: its LSTM over all tokens, and its joint network."""
    predicted = model.decoder(torch.from_numpy(tokens.T.copy()))  # [rows, steps, width]
    encoded: Tensor = torch.from_numpy(frames).transpose(0, 1)
    logits: Floats = model.joint(decoder_hidden_states=predicted, encoder_hidden_states=encoded).transpose(0, 1).numpy()
    return logits


def check_encoder(cases: Sequence[FrameCase], output: str, graph: Path) -> Parity:
    """Compare output ``output`` of ``encoder.onnx`` with the reference on valid frames.

    Raises:
        ParityError: they differ by more than :data:`export.compare.TOLERANCE`, or the numbers of frames differ.
    """
    return check_frames(cases, graph, output)


def check_decoder_joint(cases: Sequence[StepCase], layers: int, width: int, graph: Path) -> Parity:
    """Compare ``decoder_joint.onnx`` with the reference, step by step from the zero state.

    Args:
        cases: inputs and expected logits.
        layers: LSTM layers.
        width: width of the LSTM state.
        graph: the graph's file.

    Raises:
        ParityError: logits differ by more than :data:`export.compare.TOLERANCE`.
    """
    session = open_graph(graph)
    comparison = Comparison()
    for case in cases:
        state = [np.zeros((layers, case.tokens.shape[1], width), np.float32)] * 2
        for step, (token, frame) in enumerate(zip(case.tokens, case.frames, strict=True)):
            feeds = {"token": token, "hidden": state[0], "cell": state[1], "frame": frame}
            tokens, durations, *state = session.run(None, feeds)
            logits = np.concatenate([tokens, durations], axis=-1)
            label = f"decoder_joint, {case.name}, step {step + 1}"
            comparison.add(logits, case.expected[step], label)
    return comparison.result([f"{case.name}, {STEPS} steps" for case in cases])
