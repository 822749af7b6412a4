"""Comparison of GigaAM's written graph with the torch module, on sample speech."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from export.compare import FrameCase, check_frames, speech
from export.families.gigaam.model import GigaAMCtc
from runtime.features.htk_log_mel import HtkLogMelConfig, htk_log_mel
from runtime.model.manifest import Parity

# Lengths of the clips: one feature window, fractions of a second, the longest segment.
SECONDS = (0.02, 0.6, 2.3, 25.0)


@torch.no_grad()
def encoder_cases(model: GigaAMCtc, front_end: HtkLogMelConfig) -> list[FrameCase]:
    """Log-probabilities of the module, which processes each clip alone and without padding.

    The last case is a batch of all clips, padded with repeated features, which are not silence.
    """
    clips = [htk_log_mel(speech(seconds), front_end) for seconds in SECONDS]
    expected = []
    for clip in clips:
        log_probs, _ = model(torch.from_numpy(clip)[None], torch.tensor([clip.shape[1]]))
        expected.append(log_probs[0].numpy())
    cases = [
        FrameCase(f"{seconds:g} s", clip[None], np.array([clip.shape[1]]), [log_probs])
        for seconds, clip, log_probs in zip(SECONDS, clips, expected, strict=True)
    ]
    width = max(clip.shape[1] for clip in clips)
    padded = np.stack([np.pad(clip, ((0, 0), (0, width - clip.shape[1])), "wrap") for clip in clips])
    lengths = np.array([clip.shape[1] for clip in clips])
    return [*cases, FrameCase(f"batch of {len(clips)}", padded, lengths, expected)]


def check_encoder(cases: Sequence[FrameCase], graph: Path) -> Parity:
    """Compare ``encoder.onnx`` with the module's log-probabilities.

    Raises:
        ParityError: they differ by more than :data:`export.compare.TOLERANCE`, or the numbers of frames differ.
    """
    return check_frames(cases, graph, "log_probs")
