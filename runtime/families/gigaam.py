"""GigaAM with a CTC head: log-mel → Conformer → a token or a blank for each frame.

Sources: ``modeling_gigaam.py`` and ``config.json`` of ai-sage/GigaAM-v3. The tests compare with a torch module that
computes their formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

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
from runtime.model.validation import contradiction, tensor_size, typed

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

ENCODER, LOG_PROBS = "encoder", "log_probs"
# Tensors of the size of the encoder's largest parts that it takes at the same time. Measured at the real size, two
# segments of 20 s: 168 MiB in float32 and 165 in int8, where 3 of these would be 114.
_ALIVE = 5


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The manifest's ``parameters`` for this family.

    ``subsampling`` feature frames make an encoder frame, of which a clip has ``positions`` at most. ``heads`` and
    ``hidden``, the channels of a feed-forward part, say how much memory a clip takes.
    """

    subsampling: int
    positions: int
    vocab_size: int
    blank_id: int
    heads: int
    hidden: int
    segment_seconds: float


class GigaAMEngine(FrameEngine):
    """An opened GigaAM artifact."""

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        manifest = artifact.manifest
        self._front_end = typed(artifact, manifest.front_end, HtkLogMelConfig)
        self.parameters = typed(artifact, manifest.parameters, Parameters)
        encoder, self._tokenizer, _ = load_together(
            lambda: open_graph(artifact, ENCODER, options),
            lambda: open_tokenizer(artifact),
            lambda: None,
        )
        self._check(artifact)
        front, said = self._front_end, self.parameters
        frame_seconds = said.subsampling * front.hop_length / front.sample_rate
        # Scores of all heads, every frame with every other, and a feed-forward part's channels.
        widest = max(said.hidden, said.heads * said.segment_seconds / frame_seconds)
        model = FrameModel(
            sample_rate=front.sample_rate,
            segment_seconds=said.segment_seconds,
            frame_seconds=frame_seconds,
            frame_bytes=4 * (said.vocab_size + said.subsampling * front.n_mels),
            work_bytes=int(4 * _ALIVE * widest / frame_seconds),
        )
        super().__init__(artifact, options, model, {ENCODER: encoder})

    def _check(self, artifact: Artifact) -> None:
        """A manifest that contradicts itself, its graph or its tokenizer is found at load, not in the text."""
        front, said = self._front_end, self.parameters
        if min(said.subsampling, said.heads, said.hidden) < 1 or said.segment_seconds <= 0:
            raise contradiction(artifact, "parameters have a number that is not positive")
        graph = artifact.manifest.graphs[ENCODER]
        for key, value, found in (
            ("front_end.n_mels", front.n_mels, tensor_size(graph, "features", 1)),
            ("parameters.vocab_size", said.vocab_size, tensor_size(graph, LOG_PROBS, -1)),
            ("parameters.vocab_size", said.vocab_size, self._tokenizer.get_vocab_size() + 1),
            ("parameters.blank_id", said.blank_id, said.vocab_size - 1),
        ):
            if found != value:
                raise contradiction(artifact, f"{key} is {value}, but graph or tokenizer have {found}")
        longest = said.positions * said.subsampling * front.hop_length / front.sample_rate
        if said.segment_seconds > longest:
            raise contradiction(
                artifact,
                f"parameters.segment_seconds is {said.segment_seconds:g}, but positions are for {longest:g} s",
            )

    def features(self, samples: Floats) -> Floats:
        """See :class:`runtime.engines.frame.FrameEngine`."""
        return htk_log_mel(samples, self._front_end).T

    def encode(self, features: Floats, lengths: Ints) -> tuple[Floats, Ints]:
        """See :class:`runtime.engines.frame.FrameEngine`: log-probabilities of the classes are what is encoded."""
        found = self._sessions[ENCODER].run([LOG_PROBS, "encoded_lengths"], self._feeds(features, lengths))
        return found[0], found[1]

    @staticmethod
    def _feeds(features: Floats, lengths: Ints) -> dict[str, npt.NDArray[Any]]:
        """The graph's inputs; it takes features with their channels first."""
        return {"features": np.ascontiguousarray(features.transpose(0, 2, 1)), "lengths": lengths}

    def decode(
        self, encoded: Sequence[Floats], budgets: Sequence[int | None], is_cancelled: Callable[[int], bool]
    ) -> Iterator[tuple[int, FrameHypothesis]]:
        """See :class:`runtime.engines.frame.FrameEngine`."""
        for index, (rows, budget) in enumerate(zip(encoded, budgets, strict=True)):
            if not is_cancelled(index):
                yield index, greedy_ctc(rows, self.parameters.blank_id).cut(budget)

    def spelled(self, tokens: Sequence[int]) -> str:
        """See :class:`runtime.engines.frame.FrameEngine`."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def probes(
        self,
        samples: Floats,
        tokens: list[int],  # noqa: ARG002  (of the interface; the graph is told no text)
        options: SegmentOptions,  # noqa: ARG002
    ) -> list[Probe]:
        """See :class:`runtime.engines.base.Engine`: the encoder is all there is, whatever the text."""
        batch, lengths = padded([self.features(samples)])
        rows = int(self.encode(batch, lengths)[1][0])
        return [Probe(ENCODER, self._feeds(batch, lengths), [LOG_PROBS], choice=LOG_PROBS, rows=rows)]
