"""Toy engine: log-mel → one linear layer → CTC over characters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.decoding.ctc import greedy_ctc
from runtime.decoding.frames import FrameHypothesis
from runtime.engines.base import EngineOptions, Probe, SegmentOptions
from runtime.engines.frame import FrameEngine, FrameModel, padded
from runtime.engines.loading import load_together, open_graph
from runtime.features.htk_log_mel import HtkLogMelConfig, htk_log_mel
from runtime.model.artifact import Artifact
from runtime.model.tokenizer import open_tokenizer
from runtime.model.validation import typed

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The manifest's ``parameters`` for this family."""

    vocab_size: int
    blank_id: int
    segment_seconds: float


class ToyEngine(FrameEngine):
    """An opened toy artifact."""

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        manifest = artifact.manifest
        self._front_end = typed(artifact, manifest.front_end, HtkLogMelConfig)
        self.parameters = typed(artifact, manifest.parameters, Parameters)
        encoder, self._tokenizer = load_together(
            lambda: open_graph(artifact, "encoder", options), lambda: open_tokenizer(artifact)
        )
        model = FrameModel(
            sample_rate=self._front_end.sample_rate,
            segment_seconds=self.parameters.segment_seconds,
            frame_seconds=self._front_end.hop_length / self._front_end.sample_rate,
            frame_bytes=4 * self.parameters.vocab_size,
            work_bytes=100_000,
        )
        super().__init__(artifact, options, model, {"encoder": encoder})

    def features(self, samples: Floats) -> Floats:
        """Return log-mel features [frames, mels]."""
        return htk_log_mel(samples, self._front_end).T

    def encode(self, features: Floats, lengths: Ints) -> tuple[Floats, Ints]:
        """Return log-probabilities [clips, frames, classes]; every frame is kept."""
        return self._sessions["encoder"].run(["log_probs"], {"features": features})[0], lengths

    def decode(
        self, encoded: Sequence[Floats], budgets: Sequence[int | None], is_cancelled: Callable[[int], bool]
    ) -> Iterator[tuple[int, FrameHypothesis]]:
        """Decode clips one by one."""
        for index, (frames, budget) in enumerate(zip(encoded, budgets, strict=True)):
            if not is_cancelled(index):
                yield index, greedy_ctc(frames, self.parameters.blank_id).limited_to(budget)

    def decode_tokens(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids."""
        text: str = self._tokenizer.decode(list(tokens))
        return text

    def probes(self, samples: Floats, tokens: list[int], options: SegmentOptions) -> list[Probe]:
        """Return the encoder's batch: there is no other graph."""
        batch, lengths = padded([self.features(samples)])
        return [Probe("encoder", {"features": batch}, ["log_probs"], choice="log_probs", rows=int(lengths[0]))]
