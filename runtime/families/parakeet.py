"""Parakeet engines: NeMo's log-mel → FastConformer → tokens by a transducer (TDT) or one class a frame (CTC).

transformers ``models/parakeet`` is the reference of the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from onnxruntime import InferenceSession
from tokenizers import Tokenizer

from runtime.decoding.ctc import greedy_ctc
from runtime.decoding.frames import FrameHypothesis
from runtime.decoding.tdt import Ints, States, TdtRules, greedy_tdt
from runtime.engines.base import EngineOptions, Probe, SegmentOptions
from runtime.engines.frame import FrameEngine, FrameModel, padded
from runtime.engines.loading import load_together, open_graph
from runtime.features.nemo_mel import NemoMelConfig, nemo_mel
from runtime.model.artifact import Artifact
from runtime.model.tokenizer import open_tokenizer
from runtime.model.validation import contradiction, tensor_size, typed

Floats = npt.NDArray[np.float32]

ENCODER, DECODER_JOINT = "encoder", "decoder_joint"
# The encoder's largest activations by far belong to its first convolution, at half the frames and half the channels of
# the features: its input, its output, and one copy that a kernel makes. Measured with parakeet-tdt-0.6b-v3, two
# segments of 20 s: 273 MiB in float32 and 276 in int8, where this gives 375.
_STEM_COPIES = 3


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The manifest's ``parameters`` that both kinds have; ``subsampling`` feature frames give one encoder frame."""

    vocab_size: int
    blank_id: int
    subsampling: int
    stem_channels: int
    frame_seconds: float
    segment_seconds: float


class CtcParameters(Parameters, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The manifest's ``parameters`` of a CTC model."""


class TdtParameters(Parameters, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The manifest's ``parameters`` of a transducer."""

    hidden_size: int
    predictor_layers: int
    predictor_size: int
    durations: list[int]
    max_symbols: int

    @property
    def rules(self) -> TdtRules:
        """Constants of the decoding loop."""
        return TdtRules(self.blank_id, tuple(self.durations), self.max_symbols)


class DecoderJoint:
    """The graph ``decoder_joint``: implements :class:`runtime.decoding.tdt.Joint`."""

    outputs = ("token_logits", "duration_logits", "next_hidden", "next_cell")

    def __init__(self, session: InferenceSession, layers: int, width: int) -> None:
        """``layers`` and ``width`` are those of the prediction network's LSTM."""
        self.session, self._layers, self._width = session, layers, width

    def start(self, rows: int) -> States:
        """Return zero states for ``rows`` rows."""
        zeros = np.zeros((self._layers, rows, self._width), np.float32)
        return States(zeros, zeros)

    def step(self, tokens: Ints, states: States, frames: Floats) -> tuple[Floats, Floats, States]:
        """Run the graph once for all rows."""
        outputs = self.session.run(self.outputs, self.feeds(tokens, states, frames))
        return outputs[0], outputs[1], States(outputs[2], outputs[3])

    @staticmethod
    def feeds(tokens: Ints, states: States, frames: Floats) -> dict[str, npt.NDArray[Any]]:
        """Return the graph's inputs."""
        return {"token": tokens, "hidden": states.hidden, "cell": states.cell, "frame": frames}


class _ForcedJoint:
    """Force a given text through the networks and record their inputs.

    Where the model would emit a token, the next token of the text replaces it, or a blank when none is left.
    """

    def __init__(self, joint: DecoderJoint, tokens: Sequence[int], blank: int) -> None:
        self._joint, self._remaining, self._blank = joint, list(tokens), blank
        self.steps: list[dict[str, npt.NDArray[Any]]] = []

    def start(self, rows: int) -> States:
        return self._joint.start(rows)

    def step(self, tokens: Ints, states: States, frames: Floats) -> tuple[Floats, Floats, States]:
        self.steps.append(self._joint.feeds(tokens, states, frames))
        logits, durations, next_states = self._joint.step(tokens, states, frames)
        emits_blank = int(logits.argmax()) == self._blank or not self._remaining
        forced = np.full_like(logits, -np.inf)
        forced[0, self._blank if emits_blank else self._remaining.pop(0)] = 0.0
        return forced, durations, next_states

    def feeds(self) -> dict[str, npt.NDArray[Any]]:
        """Return the inputs of all steps as the rows of one call."""
        axes = {"token": 0, "hidden": 1, "cell": 1, "frame": 0}
        return {name: np.concatenate([step[name] for step in self.steps], axis) for name, axis in axes.items()}


class ParakeetEngine(FrameEngine):
    """What both kinds of Parakeet share."""

    _encoded: str  # name of the encoder's first output

    def __init__(
        self,
        artifact: Artifact,
        options: EngineOptions,
        parameters: Parameters,
        parts: tuple[dict[str, InferenceSession], Tokenizer],
        width: int,
    ) -> None:
        """Open the model from its loaded ``parts``; ``width`` is the size of an encoder frame."""
        sessions, self._tokenizer = parts
        self._front_end = typed(artifact, artifact.manifest.front_end, NemoMelConfig)
        self._shared = parameters
        self._check_shared(artifact, width)
        mels = self._front_end.n_mels
        frames = 1 / parameters.frame_seconds
        stem = parameters.stem_channels * (parameters.subsampling / 2) * (mels / 2) * _STEM_COPIES
        model = FrameModel(
            sample_rate=self._front_end.sample_rate,
            segment_seconds=parameters.segment_seconds,
            frame_seconds=parameters.frame_seconds,
            frame_bytes=4 * (width + parameters.subsampling * mels),
            work_bytes=int(4 * stem * frames),
        )
        super().__init__(artifact, options, model, sessions)

    def _check_shared(self, artifact: Artifact, width: int) -> None:
        """Compare the manifest with the encoder graph and the tokenizer.

        Raises:
            ArtifactInvalidError: they differ.
        """
        front, parameters = self._front_end, self._shared
        encoder = artifact.manifest.graphs[ENCODER]
        frame = front.hop_length * parameters.subsampling / front.sample_rate
        for key, declared, actual in (
            ("front_end.n_mels", front.n_mels, tensor_size(encoder, "features")),
            ("the encoder's width", width, tensor_size(encoder, self._encoded)),
            ("parameters.frame_seconds", parameters.frame_seconds, frame),
        ):
            if declared != actual:
                raise contradiction(artifact, f"{key} is {declared}, but the graph has {actual}")
        ids = self._tokenizer.get_vocab_size()
        if not 0 <= parameters.blank_id < parameters.vocab_size or ids > parameters.vocab_size:
            raise contradiction(
                artifact,
                f"parameters.vocab_size is {parameters.vocab_size}, but there are {ids} tokens, "
                f"and the blank is {parameters.blank_id}",
            )

    def features(self, samples: Floats) -> Floats:
        """Return NeMo's log-mel features [frames, mels]."""
        return nemo_mel(samples, self._front_end)

    def encode(self, features: Floats, lengths: Ints) -> tuple[Floats, Ints]:
        """Encode a padded batch [clips, frames, mels]; return encoder frames and valid frames."""
        names = [self._encoded, "encoded_lengths"]
        frames, valid = self._sessions[ENCODER].run(names, {"features": features, "lengths": lengths})
        return frames, valid

    def decode_tokens(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text


class ParakeetTdtEngine(ParakeetEngine):
    """An opened Parakeet with a token-and-duration transducer."""

    _encoded = "encoded"

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        self.parameters = typed(artifact, artifact.manifest.parameters, TdtParameters)
        encoder, joint, tokenizer = load_together(
            lambda: open_graph(artifact, ENCODER, options),
            lambda: open_graph(artifact, DECODER_JOINT, options),
            lambda: open_tokenizer(artifact),
        )
        self._joint = DecoderJoint(joint, self.parameters.predictor_layers, self.parameters.predictor_size)
        self._check_joint(artifact)
        parts = ({ENCODER: encoder, DECODER_JOINT: joint}, tokenizer)
        super().__init__(artifact, options, self.parameters, parts, self.parameters.hidden_size)

    def _check_joint(self, artifact: Artifact) -> None:
        """Compare the manifest with the graph ``decoder_joint``.

        Raises:
            ArtifactInvalidError: they differ, or a duration or ``max_symbols`` is out of range.
        """
        graph, parameters = artifact.manifest.graphs[DECODER_JOINT], self.parameters
        for key, declared, actual in (
            ("hidden_size", parameters.hidden_size, tensor_size(graph, "frame")),
            ("vocab_size", parameters.vocab_size, tensor_size(graph, "token_logits")),
            ("durations", len(parameters.durations), tensor_size(graph, "duration_logits")),
            ("predictor_layers", parameters.predictor_layers, tensor_size(graph, "hidden", 0)),
            ("predictor_size", parameters.predictor_size, tensor_size(graph, "hidden")),
        ):
            if declared != actual:
                raise contradiction(artifact, f"parameters.{key} says {declared}, but the graph has {actual}")
        if min(parameters.durations) < 0 or parameters.max_symbols < 1:
            raise contradiction(artifact, "parameters.durations must not be negative, and max_symbols at least 1")

    def decode(
        self, encoded: Sequence[Floats], budgets: Sequence[int | None], is_cancelled: Callable[[int], bool]
    ) -> Iterator[tuple[int, FrameHypothesis]]:
        """Decode clips side by side."""
        return greedy_tdt(self._joint, encoded, self.parameters.rules, budgets=budgets, is_cancelled=is_cancelled)

    def probes(self, samples: Floats, tokens: list[int], options: SegmentOptions) -> list[Probe]:  # noqa: ARG002
        """Return the encoder's batch, and every step of the forced text as the rows of one decoder_joint call."""
        batch, lengths = padded([self.features(samples)])
        frames, valid = self.encode(batch, lengths)
        forced = _ForcedJoint(self._joint, tokens, self.parameters.blank_id)
        for _ in greedy_tdt(forced, [frames[0, : valid[0]]], self.parameters.rules):
            continue
        return [
            Probe(ENCODER, {"features": batch, "lengths": lengths}, [self._encoded], rows=int(valid[0])),
            Probe(DECODER_JOINT, forced.feeds(), list(self._joint.outputs), choice="token_logits"),
        ]


class ParakeetCtcEngine(ParakeetEngine):
    """An opened Parakeet with a CTC head."""

    _encoded = "logits"

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        self.parameters = typed(artifact, artifact.manifest.parameters, CtcParameters)
        encoder, tokenizer = load_together(
            lambda: open_graph(artifact, ENCODER, options), lambda: open_tokenizer(artifact)
        )
        super().__init__(
            artifact, options, self.parameters, ({ENCODER: encoder}, tokenizer), self.parameters.vocab_size
        )

    def decode(
        self, encoded: Sequence[Floats], budgets: Sequence[int | None], is_cancelled: Callable[[int], bool]
    ) -> Iterator[tuple[int, FrameHypothesis]]:
        """Decode clips one by one: the loop has no model in it."""
        for index, (logits, budget) in enumerate(zip(encoded, budgets, strict=True)):
            if not is_cancelled(index):
                yield index, greedy_ctc(logits, self.parameters.blank_id).limited_to(budget)

    def probes(self, samples: Floats, tokens: list[int], options: SegmentOptions) -> list[Probe]:  # noqa: ARG002
        """Return the encoder's batch: there is no other graph."""
        batch, lengths = padded([self.features(samples)])
        rows = int(self.encode(batch, lengths)[1][0])
        feeds: dict[str, npt.NDArray[Any]] = {"features": batch, "lengths": lengths}
        return [Probe(ENCODER, feeds, [self._encoded], choice=self._encoded, rows=rows)]
