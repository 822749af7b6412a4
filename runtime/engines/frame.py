"""What engines have in common whose text comes from an encoder's frames, without a decoder that looks back at it.

Transducers and CTC models: a segment's features go through the encoder once, then a loop over its frames gives tokens
that know their times. There is no prompt, nothing to force and nothing to keep of a text.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from onnxruntime import InferenceSession

from runtime.decoding.frames import FrameHypothesis
from runtime.engines.base import (
    DEFAULT_SEGMENT_SECONDS,
    EngineOptions,
    Probe,
    SegmentJob,
    SegmentOptions,
    SegmentResult,
)
from runtime.engines.batch_plan import BatchPlan, plan_rows
from runtime.engines.capabilities import Capabilities
from runtime.engines.words import Timed, spell, words_of
from runtime.errors import OptionError
from runtime.model.artifact import Artifact
from runtime.ort.prepacked import prepacked_graph
from runtime.ort.session import make_session, placement
from runtime.results import Timings, Word

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# Bound on one call of the encoder, in segments of full length: its activations are the most memory that a model takes,
# and more rows at once are no faster on a CPU.
_SEGMENTS_PER_CALL = 2
# Clips that go through the encoder together have at least this share of the longest one's frames: the rest is padding.
_SIMILAR = 0.8


class FrameModel(msgspec.Struct, frozen=True):
    """What the shared part needs to know of a family's model.

    ``segment_seconds`` is the longest segment that it is made for, ``frame_seconds`` the time of an encoder frame,
    ``frame_bytes`` what decoding holds of one, ``work_bytes`` the encoder's activations for a second of audio.
    """

    sample_rate: int
    segment_seconds: float
    frame_seconds: float
    frame_bytes: int
    work_bytes: int


class Still:
    """What is kept of a segment that grows: nothing. Every frame sees all others, so none is done before the end."""

    @property
    def settled(self) -> int:
        """See :class:`runtime.engines.base.LiveState`."""
        return 0


def open_graph(artifact: Artifact, role: str, options: EngineOptions) -> InferenceSession:
    """A session for the graph with ``role``, prepared for this machine if it was."""
    providers = options.providers_for(role)
    prepacked = prepacked_graph(artifact, role, providers)
    return make_session(artifact.graph_path(role), providers, threads=options.threads, prepacked=prepacked)


class FrameEngine(ABC):
    """An opened model of such a family (see :class:`runtime.engines.base.Engine`); what a family does is abstract here."""

    capabilities = Capabilities(context=False, language=False, language_detection=False, words=True)

    def __init__(
        self, artifact: Artifact, options: EngineOptions, model: FrameModel, sessions: dict[str, InferenceSession]
    ) -> None:
        """Call it when ``sessions``, by role, are loaded: the plan counts what is resident then.

        Raises:
            OptionError: segments longer than the model is made for, or a memory budget too small for one row.
        """
        self.sample_rate = model.sample_rate
        self.segment_seconds = options.segment_seconds or min(DEFAULT_SEGMENT_SECONDS, model.segment_seconds)
        if self.segment_seconds > model.segment_seconds:
            raise OptionError(
                f"segments of {self.segment_seconds:g} s are too long: this model is made for "
                f"{model.segment_seconds:g} s at most"
            )
        self._manifest, self._frame_seconds, self._sessions = artifact.manifest, model.frame_seconds, sessions
        languages = artifact.manifest.languages
        # Such a model does not say which language it heard; one that knows a single one need not.
        self._language = languages[0].name if len(languages) == 1 else None
        self.plan: BatchPlan = plan_rows(
            options.max_batch,
            options.memory,
            positions=math.ceil(self.segment_seconds / model.frame_seconds),
            position_bytes=model.frame_bytes,
            work_bytes=math.ceil(_SEGMENTS_PER_CALL * self.segment_seconds * model.work_bytes),
        )

    @classmethod
    def capabilities_of(cls, artifact: Artifact) -> Capabilities:  # noqa: ARG003  (all can do the same)
        """See :class:`runtime.families.Family`."""
        return cls.capabilities

    @abstractmethod
    def features(self, samples: Floats) -> Floats:
        """Features [frames, channels] of mono ``samples``, at least one frame whatever their length."""

    @abstractmethod
    def encode(self, features: Floats, lengths: Ints) -> tuple[Floats, Ints]:
        """A padded batch [clips, frames, channels] and its valid frames → encoder frames [clips, most, width], and
        how many of each clip are valid.
        """

    @abstractmethod
    def decode(
        self, encoded: Sequence[Floats], budgets: Sequence[int | None], is_cancelled: Callable[[int], bool]
    ) -> Iterator[tuple[int, FrameHypothesis]]:
        """Decode clips given their encoder frames [frames, width].

        Args:
            encoded: of each clip.
            budgets: most tokens of each; None for as many as there come.
            alive: asked of a clip's place between steps; when it says no, the clip is dropped.

        Yields:
            A clip's place and what was decoded of it, in the order in which clips end.
        """

    @abstractmethod
    def spelled(self, tokens: Sequence[int]) -> str:
        """The text of token ids, spaces at its ends included."""

    @abstractmethod
    def probes(self, samples: Floats, tokens: list[int], options: SegmentOptions) -> list[Probe]:
        """See :class:`runtime.engines.base.Engine`."""

    def check(self, options: SegmentOptions) -> None:
        """See :class:`runtime.engines.base.Engine`."""
        del options

    def transcribe(self, samples: Floats, options: SegmentOptions, timings: Timings) -> SegmentResult:
        """See :class:`runtime.engines.base.Engine`.

        Raises:
            OptionError: see :meth:`check`.
        """
        only = iter([SegmentJob(None, samples, options, timings, time.perf_counter())])
        ((_, result),) = self.run(lambda: next(only, None))
        return result

    def run(self, next_job: Callable[[], SegmentJob | None]) -> Iterator[tuple[Any, SegmentResult]]:
        """See :class:`runtime.engines.base.Engine`. As many segments as there are rows are taken at once."""
        while taken := list(islice(iter(next_job, None), self.plan.rows)):
            jobs = [job for job in taken if not job.is_cancelled()]
            encoded = self._encode(jobs)
            # Segments that nobody waits for any more by now need no decoding.
            going = [index for index, job in enumerate(jobs) if not job.is_cancelled()]
            if going:
                yield from self._decode([jobs[index] for index in going], [encoded[index] for index in going])

    def _encode(self, jobs: Sequence[SegmentJob]) -> list[Floats]:
        """Encoder frames [frames, width] of every job's audio."""
        features = []
        for job in jobs:
            with job.timings.measure("features"):
                features.append(self.features(job.samples))
        encoded: dict[int, Floats] = {}
        for indices in self._calls([len(each) for each in features], [len(job.samples) for job in jobs]):
            began = time.perf_counter()
            batch, lengths = padded([features[index] for index in indices])
            frames, valid = self.encode(batch, lengths)
            spent = time.perf_counter() - began
            for row, index in enumerate(indices):
                encoded[index] = frames[row, : valid[row]]
                jobs[index].timings.add("encode", spent * float(lengths[row] / lengths.sum()))
        return [encoded[index] for index in range(len(jobs))]

    def _calls(self, lengths: Sequence[int], samples: Sequence[int]) -> list[list[int]]:
        """Places of clips in calls of the encoder: of similar length, and together no longer than the bound."""
        most = _SEGMENTS_PER_CALL * self.segment_seconds * self.sample_rate
        calls: list[list[int]] = []
        for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
            longest = calls[-1][0] if calls else index
            fits = (len(calls[-1]) + 1) * samples[longest] <= most if calls else False
            if fits and lengths[index] >= _SIMILAR * lengths[longest]:
                calls[-1].append(index)
            else:
                calls.append([index])
        return calls

    def _decode(self, jobs: Sequence[SegmentJob], encoded: Sequence[Floats]) -> Iterator[tuple[Any, SegmentResult]]:
        going = dict(enumerate(jobs))
        budgets = [job.options.max_new_tokens for job in jobs]
        began = time.perf_counter()
        for index, hypothesis in self.decode(encoded, budgets, lambda index: jobs[index].is_cancelled()):
            now = time.perf_counter()
            for job in going.values():
                job.timings.add("decode", (now - began) / len(going))
            job = going.pop(index)
            if not job.timings.first_token:
                job.timings.first_token = now - job.began
            yield job.key, self._result(job, hypothesis, len(encoded[index]))
            began = time.perf_counter()

    def _result(self, job: SegmentJob, hypothesis: FrameHypothesis, frames: int) -> SegmentResult:
        text = self.spelled(hypothesis.tokens).strip()
        return SegmentResult(
            text=text,
            language=self._language if text else None,
            tokens=hypothesis.tokens,
            confidence=hypothesis.confidence,
            finish_reason=hypothesis.finish_reason,
            audio_tokens=frames,
            prompt_tokens=0,
            words=self._words(hypothesis, len(job.samples) / self.sample_rate),
        )

    def _words(self, hypothesis: FrameHypothesis, duration: float) -> list[Word]:
        """Words with times in a segment of ``duration`` seconds; its last frame may reach beyond its end."""
        seconds = self._frame_seconds
        pieces = [
            Timed(text, min(start * seconds, duration), min(end * seconds, duration), log_probability)
            for text, start, end, log_probability in zip(
                spell(self.spelled, hypothesis.tokens),
                hypothesis.starts,
                hypothesis.ends,
                hypothesis.log_probabilities,
                strict=True,
            )
        ]
        return words_of(pieces)

    def live(self) -> Still:
        """See :class:`runtime.engines.base.Engine`: a growing segment is decoded from its beginning each time."""
        return Still()

    def read(self, tokens: Sequence[int], language: str | None, *, ended: bool) -> tuple[str | None, str]:
        """See :class:`runtime.engines.base.Engine`."""
        text = self.spelled(tokens)
        text = (text if ended else text.rstrip("\ufffd")).strip()
        return language or (self._language if text else None), text

    def run_probe(self, probe: Probe) -> list[npt.NDArray[Any]]:
        """See :class:`runtime.engines.base.Engine`."""
        outputs: list[npt.NDArray[Any]] = self._sessions[probe.role].run(probe.outputs, probe.feeds)
        return outputs

    def placement(self) -> dict[str, dict[str, dict[str, int]]]:
        """See :class:`runtime.engines.base.Engine`."""
        return {role: placement(session) for role, session in self._sessions.items()}


def padded(features: Sequence[Floats]) -> tuple[Floats, Ints]:
    """Features [frames, channels] of clips → a batch [clips, longest, channels] padded with zeros, and their frames."""
    lengths = np.array([len(each) for each in features], np.int64)
    batch = np.zeros((len(features), int(lengths.max()), features[0].shape[1]), np.float32)
    for row, each in zip(batch, features, strict=True):
        row[: len(each)] = each
    return batch, lengths
