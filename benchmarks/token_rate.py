"""Random transducers that write as many tokens as speech has.

With random weights a joint network emits a token at every frame or at none. This module changes the weights so that
frames differ from one another, durations are about equally frequent, and the probability of the blank gives the
requested number of tokens a second.

``python -m benchmarks.token_rate NAME CHECKPOINT OUT`` exports such a checkpoint.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
import typer
from safetensors.torch import load_file, save_file
from transformers import ParakeetForTDT

from export import compare
from export.checkpoints import CHECKPOINTS, locate
from export.compare import RATE, speech
from export.families.parakeet.exporter import FRONT_END
from export.families.parakeet.modules import DecoderJoint
from export.package import export_artifact
from quantize.progress import Report
from runtime.audio.segmentation import speech_pieces
from runtime.decoding.tdt import States, TdtRules, greedy_tdt
from runtime.engines.base import DEFAULT_SEGMENT_SECONDS
from runtime.features.nemo_mel import NemoMelConfig, nemo_mel

log = logging.getLogger("benchmarks")

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

SECONDS = 60
# Standard deviation of the frames that the joint network gets, and how much rarer tokens of duration 0 are.
SPREAD, RARE = 1.5, 3.0
HALVINGS = 14
_RECORD = "token_rate.json"
_PROJECTOR, _HEAD = "encoder_projector", "joint.head"


class TorchJoint:
    """Prediction and joint network in torch, with the interface of :class:`runtime.decoding.tdt.Joint`."""

    def __init__(self, model: Any) -> None:
        config = model.config
        self._shape = (int(config.num_decoder_layers), int(config.decoder_hidden_size))
        self._module = DecoderJoint(model.decoder, model.joint.head, int(config.vocab_size)).eval()

    def start(self, rows: int) -> States:
        """Return the states of ``rows`` empty texts."""
        layers, width = self._shape
        nothing = np.zeros((layers, rows, width), np.float32)
        return States(nothing, nothing)

    @torch.no_grad()
    def step(self, tokens: Ints, states: States, frames: Floats) -> tuple[Floats, Floats, States]:
        """Return token logits, duration logits and new states of one step."""
        inputs = (torch.from_numpy(np.ascontiguousarray(each)) for each in (tokens, *states, frames))
        logits, durations, hidden, cell = (each.numpy() for each in self._module(*inputs))
        return logits, durations, States(hidden, cell)


def set_rate(checkpoint: Path, tokens_a_second: float) -> int:
    """Change a random Parakeet TDT checkpoint in place, once; return the tokens of a minute of speech."""
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
    """Change the projection of the encoder so that every channel has mean 0 and the standard deviation ``SPREAD``.

    Returns:
        The projected frames [frames, width] of each segment of the speech.
    """
    mels = int(model.config.encoder_config.num_mel_bins)
    keys = ("n_fft", "win_length", "hop_length", "preemphasis")
    settings = {"kind": "nemo-log-mel", "sample_rate": RATE, "n_mels": mels} | {key: FRONT_END[key] for key in keys}
    front_end = msgspec.convert(settings, NemoMelConfig)
    segments = []
    for piece in speech_pieces([speech(SECONDS)], RATE, DEFAULT_SEGMENT_SECONDS):
        features = torch.from_numpy(nemo_mel(piece.samples, front_end))[None]
        segments.append(model.encoder(features).last_hidden_state[0])
    projector = model.encoder_projector
    together = projector(torch.cat(segments))
    spread = together.std(0).clamp(min=1e-6) / SPREAD
    projector.bias.copy_((projector.bias - together.mean(0)) / spread)
    projector.weight /= spread[:, None]
    return [projector(frames).numpy() for frames in segments]


@torch.no_grad()
def balance(model: Any, frames: list[Floats], target: int) -> int:
    """Set the biases of durations and blank so that ``frames`` give about ``target`` tokens; return their number."""
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
        limits = [4 * target] * len(frames)
        return sum(len(text.tokens) for _, text in greedy_tdt(joint, frames, rules, budgets=limits))

    low, high = -40.0, 40.0  # too many tokens, too few
    best = (abs(count(0.0) - target), 0.0)
    for _ in range(HALVINGS):
        offset = (low + high) / 2
        tokens = count(offset)
        best = min(best, (abs(tokens - target), offset))
        low, high = (offset, high) if tokens > target else (low, offset)
    return count(best[1])


def _store(checkpoint: Path, changed: dict[str, torch.Tensor]) -> None:
    """Replace tensors by name in the files of a checkpoint, in the dtypes of the old ones."""
    left = dict(changed)
    for path in sorted(checkpoint.glob("*.safetensors")):
        tensors = load_file(path)
        present = [name for name in left if name in tensors]
        for name in present:
            tensors[name] = left.pop(name).to(tensors[name].dtype).contiguous()
        if present:
            save_file(tensors, path, metadata={"format": "pt"})
    if left:
        raise ValueError(f"{checkpoint}: lacks the tensors {', '.join(left)}")


# An encoder of random weights gives nearly equal frames. Scaling their differences scales rounding errors too, by a few
# hundred; the plain random weights are within the usual tolerance.
_TOLERANCE = 5e-3


def export_changed(name: str, checkpoint: Path, out: Path) -> None:
    """Export a random Parakeet TDT checkpoint after set_rate(), with a larger tolerance of the parity check."""
    compare.TOLERANCE = _TOLERANCE
    with Report() as report:
        export_artifact(CHECKPOINTS[name], locate(CHECKPOINTS[name], checkpoint), out, report)


if __name__ == "__main__":
    typer.run(export_changed)
