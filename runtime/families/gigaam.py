"""GigaAM engine with a CTC head: log-mel → Conformer → one class a frame.

Sources: ``modeling_gigaam.py`` and ``config.json`` of ai-sage/GigaAM-v3. The tests compare with our torch module of the
same formulas.
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
# Tensors of the encoder's largest size that exist at the same time. Measured at the real size, two segments of 20 s:
# 168 MiB in float32 and 165 in int8, where 3 of these would be 114.
_LARGE_TENSORS = 5


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The manifest's ``parameters`` for this family.

    ``subsampling`` feature frames give one encoder frame; a clip has at most ``positions`` of them. ``heads`` and
    ``hidden`` (channels of the feed-forward part) determine the memory of a clip.
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
        encoder, self._tokenizer = load_together(
            lambda: open_graph(artifact, ENCODER, options), lambda: open_tokenizer(artifact)
        )
        self._check_manifest(artifact)
        front, parameters = self._front_end, self.parameters
        frame_seconds = parameters.subsampling * front.hop_length / front.sample_rate
        # The larger of attention scores (all heads, every frame with every other) and feed-forward channels.
        widest = max(parameters.hidden, parameters.heads * parameters.segment_seconds / frame_seconds)
        model = FrameModel(
            sample_rate=front.sample_rate,
            segment_seconds=parameters.segment_seconds,
            frame_seconds=frame_seconds,
            frame_bytes=4 * (parameters.vocab_size + parameters.subsampling * front.n_mels),
            work_bytes=int(4 * _LARGE_TENSORS * widest / frame_seconds),
        )
        super().__init__(artifact, options, model, {ENCODER: encoder})

    def _check_manifest(self, artifact: Artifact) -> None:
        """Compare the manifest with the graph and the tokenizer.

        Raises:
            ArtifactInvalidError: they differ, or a number is out of range.
        """
        front, parameters = self._front_end, self.parameters
        if min(parameters.subsampling, parameters.heads, parameters.hidden) < 1 or parameters.segment_seconds <= 0:
            raise contradiction(artifact, "parameters: subsampling, heads, hidden and segment_seconds must be positive")
        graph = artifact.manifest.graphs[ENCODER]
        for key, declared, actual in (
            ("front_end.n_mels", front.n_mels, tensor_size(graph, "features", 1)),
            ("parameters.vocab_size", parameters.vocab_size, tensor_size(graph, LOG_PROBS, -1)),
            ("parameters.vocab_size", parameters.vocab_size, self._tokenizer.get_vocab_size() + 1),
            ("parameters.blank_id", parameters.blank_id, parameters.vocab_size - 1),
        ):
            if declared != actual:
                raise contradiction(artifact, f"{key} is {declared}, but graph or tokenizer have {actual}")
        longest = parameters.positions * parameters.subsampling * front.hop_length / front.sample_rate
        if parameters.segment_seconds > longest:
            raise contradiction(
                artifact,
                f"parameters.segment_seconds is {parameters.segment_seconds:g}, but positions cover {longest:g} s",
            )

    def features(self, samples: Floats) -> Floats:
        """Return HTK-scale log-mel features [frames, mels]."""
        return htk_log_mel(samples, self._front_end).T

    def encode(self, features: Floats, lengths: Ints) -> tuple[Floats, Ints]:
        """Encode a padded batch [clips, frames, mels] to log-probabilities [clips, longest, classes]."""
        outputs = self._sessions[ENCODER].run([LOG_PROBS, "encoded_lengths"], self._feeds(features, lengths))
        return outputs[0], outputs[1]

    @staticmethod
    def _feeds(features: Floats, lengths: Ints) -> dict[str, npt.NDArray[Any]]:
        """Return the graph's inputs; it takes features with channels first."""
        return {"features": np.ascontiguousarray(features.transpose(0, 2, 1)), "lengths": lengths}

    def decode(
        self, encoded: Sequence[Floats], budgets: Sequence[int | None], is_cancelled: Callable[[int], bool]
    ) -> Iterator[tuple[int, FrameHypothesis]]:
        """Decode clips one by one: the loop has no model in it."""
        for index, (rows, budget) in enumerate(zip(encoded, budgets, strict=True)):
            if not is_cancelled(index):
                yield index, greedy_ctc(rows, self.parameters.blank_id).limited_to(budget)

    def decode_tokens(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def probes(
        self,
        samples: Floats,
        tokens: list[int],  # noqa: ARG002  (part of the interface; the graph takes no text)
        options: SegmentOptions,  # noqa: ARG002
    ) -> list[Probe]:
        """Return the encoder's batch: there is no other graph."""
        batch, lengths = padded([self.features(samples)])
        rows = int(self.encode(batch, lengths)[1][0])
        return [Probe(ENCODER, self._feeds(batch, lengths), [LOG_PROBS], choice=LOG_PROBS, rows=rows)]
