"""Exporter of the toy family: a checkpoint is a config.json and the weights of one linear layer."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch.export import Dim

from export.checkpoints import CheckpointFolder
from export.compare import Comparison, open_graph, speech
from export.families.base import FamilyExporter, ParityCheck
from export.families.gigaam.exporter import character_tokenizer
from export.trace import MAX_BATCH, save_traced, trace
from runtime.features.htk_log_mel import HtkLogMelConfig, htk_log_mel
from runtime.model.manifest import GraphSpec, Language, Parity

FRONT_END = HtkLogMelConfig("htk-log-mel", 16_000, 320, 160, 16, 320)


class ToyModel(torch.nn.Module):
    """Log-probabilities [clips, frames, classes] of features [clips, frames, mels]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = torch.nn.Linear(FRONT_END.n_mels, classes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(features)
        return logits.log_softmax(-1)


def check_encoder(features: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], path: Path) -> Parity:
    actual = open_graph(path).run(["log_probs"], {"features": features})[0]
    comparison = Comparison()
    comparison.add(actual, expected, "encoder")
    return comparison.result(["2.0 s"])


class Toy(FamilyExporter):
    """Exporter of a toy checkpoint."""

    roles = ("encoder",)
    layout = "native"

    def __init__(self, folder: CheckpointFolder) -> None:
        self.characters: list[str] = folder.config()["characters"]
        self.tokenizer = character_tokenizer(self.characters)
        self.model = ToyModel(len(self.characters) + 1)
        self.model.load_state_dict(dict(folder.tensors()))

    @property
    def languages(self) -> list[Language]:
        """English."""
        return [Language("English", "en")]

    @property
    def front_end(self) -> dict[str, Any]:
        """Log-mel settings, as ``runtime.features.htk_log_mel`` reads them."""
        return msgspec.to_builtins(FRONT_END)  # type: ignore[no-any-return]

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters that the engine reads."""
        classes = len(self.characters) + 1
        return {"vocab_size": classes, "blank_id": classes - 1, "segment_seconds": 20.0}

    def write_graph(self, role: str, out: Path) -> GraphSpec:
        """Write ``encoder.onnx``."""
        clips, frames = Dim("clips", min=1, max=MAX_BATCH), Dim("frames", min=1, max=4000)
        example = torch.zeros(3, 50, FRONT_END.n_mels)
        graph = trace(self.model, {"features": example}, ["log_probs"], {"features": {0: clips, 1: frames}})
        return save_traced(graph, role, out)

    def parity_checks(self) -> dict[str, ParityCheck]:
        """Compute the model's output on sample speech."""
        features = htk_log_mel(speech(2.0), FRONT_END).T[None]
        with torch.no_grad():
            expected = self.model(torch.from_numpy(np.ascontiguousarray(features))).numpy()
        return {"encoder": partial(check_encoder, features, expected)}
