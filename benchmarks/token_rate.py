"""A random transducer that says as much as people do.

With random weights a joint network says a token at every frame or at none. Here its frames are made to differ from one
another, its durations to be about equally frequent, and the blank as likely as it takes for so many tokens a second.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from transformers import ParakeetForTDT

from export.checkpoints import CHECKPOINTS, locate
from export.compare import RATE, speech
from export.families.parakeet import parity as parakeet_parity
from export.families.parakeet.exporter import FRONT_END
from export.families.parakeet.modules import DecoderJoint
from export.package import export_artifact
from quantize.report import Report
from runtime.audio.segmentation import speech_pieces
from runtime.decoding.tdt import States, TdtRules, greedy_tdt
from runtime.engines.base import DEFAULT_SEGMENT_SECONDS
from runtime.features.nemo_mel import NemoMelConfig, nemo_mel

log = logging.getLogger("benchmarks")

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

SECONDS = 60
# Spread of what the joint network is given of the audio, and how much rarer tokens that take no time are than others.
SPREAD, RARE = 1.5, 3.0
HALVINGS = 14
_RECORD = "lively.json"
_PROJECTOR, _HEAD = "encoder_projector", "joint.head"


class TorchJoint:
    """Prediction and joint network in torch: see :class:`runtime.decoding.tdt.Joint`."""

    def __init__(self, model: Any) -> None:
        config = model.config
        self._shape = (int(config.num_decoder_layers), int(config.decoder_hidden_size))
        self._module = DecoderJoint(model.decoder, model.joint.head, int(config.vocab_size)).eval()

    def start(self, rows: int) -> States:
        """Nothing was said yet."""
        layers, width = self._shape
        nothing = np.zeros((layers, rows, width), np.float32)
        return States(nothing, nothing)

    @torch.no_grad()
    def step(self, tokens: Ints, states: States, frames: Floats) -> tuple[Floats, Floats, States]:
        """See :meth:`runtime.decoding.tdt.Joint.step`."""
        given = (torch.from_numpy(np.ascontiguousarray(each)) for each in (tokens, *states, frames))
        logits, durations, hidden, cell = (each.numpy() for each in self._module(*given))
        return logits, durations, States(hidden, cell)


def set_rate(checkpoint: Path, tokens_a_second: float) -> int:
    """Change a random Parakeet TDT checkpoint in place, once; returns how many tokens a minute of speech then has."""
    record = checkpoint / _RECORD
    if record.exists():
        return int(json.loads(record.read_text())["tokens"])
    model = ParakeetForTDT.from_pretrained(checkpoint, dtype=torch.float32).eval()
    frames = standardized(model)
    tokens = balance(model, frames, round(tokens_a_second * SECONDS))
    changed = {
        f"{name}.{part}": getattr(model.get_submodule(name), part).detach()
        for name in (_PROJECTOR, _HEAD)
        for part in ("weight", "bias")
    }
    _store(checkpoint, changed)
    record.write_text(json.dumps({"tokens": tokens, "seconds": SECONDS}))
    log.info("%s: %d tokens in %d s", checkpoint, tokens, SECONDS)
    return tokens


@torch.no_grad()
def standardized(model: Any) -> list[Floats]:
    """What the joint network is given of each segment of the speech [frames, width], after the projection was changed
    so that every channel is around 0 and differs from frame to frame.
    """
    mels = int(model.config.encoder_config.num_mel_bins)
    keys = ("n_fft", "win_length", "hop_length", "preemphasis")
    settings = {"kind": "nemo-log-mel", "sample_rate": RATE, "n_mels": mels} | {key: FRONT_END[key] for key in keys}
    front_end = msgspec.convert(settings, NemoMelConfig)
    found = []
    for piece in speech_pieces([speech(SECONDS)], RATE, DEFAULT_SEGMENT_SECONDS):
        features = torch.from_numpy(nemo_mel(piece.samples, front_end))[None]
        found.append(model.encoder(features).last_hidden_state[0])
    projector = model.encoder_projector
    together = projector(torch.cat(found))
    spread = together.std(0).clamp(min=1e-6) / SPREAD
    projector.bias.copy_((projector.bias - together.mean(0)) / spread)
    projector.weight /= spread[:, None]
    return [projector(frames).numpy() for frames in found]


@torch.no_grad()
def balance(model: Any, frames: list[Floats], wanted: int) -> int:
    """Set the biases of durations and blank so that ``wanted`` tokens come of ``frames``; returns how many do."""
    config, joint, bias = model.config, TorchJoint(model), model.joint.head.bias
    blank, vocabulary = int(config.blank_token_id), int(config.vocab_size)
    together = np.concatenate(frames)
    rows = len(together)
    _, durations, _ = joint.step(np.full(rows, blank, np.int64), joint.start(rows), together)
    bias[vocabulary:] -= torch.from_numpy(durations.mean(0))
    bias[vocabulary] -= RARE * float(durations.std())
    rules = TdtRules(blank, tuple(int(each) for each in config.durations), int(config.max_symbols_per_step))
    middle = float(bias[blank])

    def count(offset: float) -> int:
        bias[blank] = middle + offset
        limits = [4 * wanted] * len(frames)
        return sum(len(text.tokens) for _, text in greedy_tdt(joint, frames, rules, budgets=limits))

    low, high = -40.0, 40.0  # too many tokens, too few
    best = (abs(count(0.0) - wanted), 0.0)
    for _ in range(HALVINGS):
        offset = (low + high) / 2
        found = count(offset)
        best = min(best, (abs(found - wanted), offset))
        low, high = (offset, high) if found > wanted else (low, offset)
    return count(best[1])


def _store(checkpoint: Path, changed: dict[str, torch.Tensor]) -> None:
    """Put tensors in place of those of their names, in the files and the types that those have."""
    left = dict(changed)
    for path in sorted(checkpoint.glob("*.safetensors")):
        tensors = load_file(path)
        here = [name for name in left if name in tensors]
        for name in here:
            tensors[name] = left.pop(name).to(tensors[name].dtype).contiguous()
        if here:
            save_file(tensors, path, metadata={"format": "pt"})
    if left:
        raise ValueError(f"{checkpoint}: has no tensors {', '.join(left)}")


# The encoder of random weights gives frames that are nearly alike. What makes them differ multiplies rounding errors
# too, by a few hundred, which is no fault of the graph's: the plain random weights are within the usual tolerance.
_TOLERANCE = 5e-3


def export_changed(name: str, checkpoint: Path, out: Path) -> None:
    """Export a checkpoint that :func:`set_rate` changed; its manifest says the tolerance."""
    parakeet_parity.TOLERANCE = _TOLERANCE
    with Report() as report:
        export_artifact(CHECKPOINTS[name], locate(CHECKPOINTS[name], checkpoint), out, report)


if __name__ == "__main__":
    export_changed(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
