"""Parakeet: NeMo's log-mel → Fast Conformer → tokens and durations by a transducer (TDT), or a token a frame (CTC).

transformers ``models/parakeet`` is the reference that the tests compare with.
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
# Of the encoder's activations, the largest by far are those of its first convolution, at half the frames and half the
# channels of the features: what goes in, what comes out, and one copy that a kernel makes. Measured with
# parakeet-tdt-0.6b-v3, two segments of 20 s: 273 MiB in float32 and 276 in int8, where this gives 375.
_STEM_COPIES = 3


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the manifest's ``parameters`` of both kinds have: ``subsampling`` feature frames make an encoder frame."""

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
        """How its choices are read."""
        return TdtRules(self.blank_id, tuple(self.durations), self.max_symbols)


class DecoderJoint:
    """``decoder_joint.onnx``: see :class:`runtime.decoding.tdt.Joint`."""

    outputs = ("token_logits", "duration_logits", "next_hidden", "next_cell")

    def __init__(self, session: InferenceSession, layers: int, width: int) -> None:
        self.session, self._layers, self._width = session, layers, width

    def start(self, rows: int) -> States:
        """See :class:`runtime.decoding.tdt.Joint`."""
        nothing = np.zeros((self._layers, rows, self._width), np.float32)
        return States(nothing, nothing)

    def step(self, tokens: Ints, states: States, frames: Floats) -> tuple[Floats, Floats, States]:
        """See :class:`runtime.decoding.tdt.Joint`."""
        found = self.session.run(self.outputs, self.feeds(tokens, states, frames))
        return found[0], found[1], States(found[2], found[3])

    @staticmethod
    def feeds(tokens: Ints, states: States, frames: Floats) -> dict[str, npt.NDArray[Any]]:
        """The graph's inputs."""
        return {"token": tokens, "hidden": states.hidden, "cell": states.cell, "frame": frames}


class _Recorded:
    """Networks that a text is told to: what they are fed on the way is kept.

    Where they would say a token, the next one of the text is taken for it, and a blank when there is none left.
    """

    def __init__(self, joint: DecoderJoint, tokens: Sequence[int], blank: int) -> None:
        self._joint, self._left, self._blank = joint, list(tokens), blank
        self.steps: list[dict[str, npt.NDArray[Any]]] = []

    def start(self, rows: int) -> States:
        return self._joint.start(rows)

    def step(self, tokens: Ints, states: States, frames: Floats) -> tuple[Floats, Floats, States]:
        self.steps.append(self._joint.feeds(tokens, states, frames))
        logits, durations, after = self._joint.step(tokens, states, frames)
        said = int(logits.argmax())
        told = np.full_like(logits, -np.inf)
        told[0, self._blank if said == self._blank or not self._left else self._left.pop(0)] = 0.0
        return told, durations, after

    def feeds(self) -> dict[str, npt.NDArray[Any]]:
        """All steps as the rows of one call."""
        axes = {"token": 0, "hidden": 1, "cell": 1, "frame": 0}
        return {name: np.concatenate([step[name] for step in self.steps], axis) for name, axis in axes.items()}


class ParakeetEngine(FrameEngine):
    """What both kinds of Parakeet have in common; made by one of them from its loaded parts."""

    _encoded: str  # the encoder's first output

    def __init__(
        self,
        artifact: Artifact,
        options: EngineOptions,
        parameters: Parameters,
        parts: tuple[dict[str, InferenceSession], Tokenizer],
        width: int,
    ) -> None:
        """``width`` is that of the encoder's output."""
        sessions, self._tokenizer = parts
        self._front_end = typed(artifact, artifact.manifest.front_end, NemoMelConfig)
        self._shared = parameters
        self._check(artifact, width)
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

    def _check(self, artifact: Artifact, width: int) -> None:
        """A manifest that contradicts its graphs or its tokenizer is found at load, not in the text."""
        front, parameters = self._front_end, self._shared
        encoder = artifact.manifest.graphs[ENCODER]
        frame = front.hop_length * parameters.subsampling / front.sample_rate
        ids = self._tokenizer.get_vocab_size()
        for key, found, said in (
            ("front_end.n_mels", tensor_size(encoder, "features"), front.n_mels),
            ("the encoder's width", tensor_size(encoder, self._encoded), width),
            ("parameters.frame_seconds", frame, parameters.frame_seconds),
        ):
            if found != said:
                raise contradiction(artifact, f"{key} is {said}, but the graph has {found}")
        if not 0 <= parameters.blank_id < parameters.vocab_size or ids > parameters.vocab_size:
            raise contradiction(
                artifact,
                f"parameters.vocab_size is {parameters.vocab_size}, but there are {ids} tokens, "
                f"and the blank is {parameters.blank_id}",
            )

    def features(self, samples: Floats) -> Floats:
        """See :class:`runtime.engines.frame.FrameEngine`."""
        return nemo_mel(samples, self._front_end)

    def encode(self, features: Floats, lengths: Ints) -> tuple[Floats, Ints]:
        """See :class:`runtime.engines.frame.FrameEngine`."""
        names = [self._encoded, "encoded_lengths"]
        frames, valid = self._sessions[ENCODER].run(names, {"features": features, "lengths": lengths})
        return frames, valid

    def spelled(self, tokens: Sequence[int]) -> str:
        """See :class:`runtime.engines.frame.FrameEngine`."""
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
        graph, said = artifact.manifest.graphs[DECODER_JOINT], self.parameters
        for key, found, expected in (
            ("hidden_size", tensor_size(graph, "frame"), said.hidden_size),
            ("vocab_size", tensor_size(graph, "token_logits"), said.vocab_size),
            ("durations", tensor_size(graph, "duration_logits"), len(said.durations)),
            ("predictor_layers", tensor_size(graph, "hidden", 0), said.predictor_layers),
            ("predictor_size", tensor_size(graph, "hidden"), said.predictor_size),
        ):
            if found != expected:
                raise contradiction(artifact, f"parameters.{key} says {expected}, but the graph has {found}")
        if min(said.durations) < 0 or said.max_symbols < 1:
            raise contradiction(artifact, "parameters.durations and max_symbols must not be negative, nor 0 symbols")

    def decode(
        self, encoded: Sequence[Floats], budgets: Sequence[int | None], is_cancelled: Callable[[int], bool]
    ) -> Iterator[tuple[int, FrameHypothesis]]:
        """See :class:`runtime.engines.frame.FrameEngine`."""
        return greedy_tdt(self._joint, encoded, self.parameters.rules, budgets=budgets, is_cancelled=is_cancelled)

    def probes(self, samples: Floats, tokens: list[int], options: SegmentOptions) -> list[Probe]:  # noqa: ARG002
        """See :class:`runtime.engines.base.Engine`: the encoder, then every step of the text as the rows of one call."""
        batch, lengths = padded([self.features(samples)])
        frames, valid = self.encode(batch, lengths)
        told = _Recorded(self._joint, tokens, self.parameters.blank_id)
        for _ in greedy_tdt(told, [frames[0, : valid[0]]], self.parameters.rules):
            continue
        return [
            Probe(ENCODER, {"features": batch, "lengths": lengths}, [self._encoded], rows=int(valid[0])),
            Probe(DECODER_JOINT, told.feeds(), list(self._joint.outputs), choice="token_logits"),
        ]


class ParakeetCtcEngine(ParakeetEngine):
    """An opened Parakeet with a CTC head."""

    _encoded = "logits"

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        self.parameters = typed(artifact, artifact.manifest.parameters, CtcParameters)
        encoder, tokenizer, _ = load_together(
            lambda: open_graph(artifact, ENCODER, options), lambda: open_tokenizer(artifact), lambda: None
        )
        super().__init__(
            artifact, options, self.parameters, ({ENCODER: encoder}, tokenizer), self.parameters.vocab_size
        )

    def decode(
        self, encoded: Sequence[Floats], budgets: Sequence[int | None], is_cancelled: Callable[[int], bool]
    ) -> Iterator[tuple[int, FrameHypothesis]]:
        """See :class:`runtime.engines.frame.FrameEngine`."""
        for index, (logits, budget) in enumerate(zip(encoded, budgets, strict=True)):
            if not is_cancelled(index):
                yield index, greedy_ctc(logits, self.parameters.blank_id).cut(budget)

    def probes(self, samples: Floats, tokens: list[int], options: SegmentOptions) -> list[Probe]:  # noqa: ARG002
        """See :class:`runtime.engines.base.Engine`: the encoder is all there is, whatever the text."""
        batch, lengths = padded([self.features(samples)])
        rows = int(self.encode(batch, lengths)[1][0])
        feeds: dict[str, npt.NDArray[Any]] = {"features": batch, "lengths": lengths}
        return [Probe(ENCODER, feeds, [self._encoded], choice=self._encoded, rows=rows)]
