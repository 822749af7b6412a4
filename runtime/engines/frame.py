"""Engines whose text comes from encoder frames alone: transducers and CTC models.

A segment's features go through the encoder once, then a loop over its frames gives tokens with times. There is no
prompt, no forced text, and no state of growing segments.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from onnxruntime import InferenceSession

from runtime.decoding.frames import FrameHypothesis
from runtime.engines.base import BaseEngine, EngineOptions, Probe, SegmentJob, SegmentOptions, SegmentResult
from runtime.engines.batch_plan import plan_rows
from runtime.engines.capabilities import Capabilities
from runtime.engines.words import TimedPiece, split_pieces, words_of
from runtime.model.artifact import Artifact
from runtime.results import Word

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# Largest encoder call, in segments of full length: its activations take most of a model's memory, and more rows at once
# are no faster on a CPU.
_SEGMENTS_PER_CALL = 2
# Clips share an encoder call when they have at least this share of the longest clip's frames: the rest is padding.
_SIMILAR_LENGTH = 0.8


class FrameModel(msgspec.Struct, frozen=True):
    """Facts about a family's model.

    ``segment_seconds`` is the longest segment that it is made for, ``frame_seconds`` the duration of an encoder frame,
    ``frame_bytes`` the bytes that decoding holds for one frame, ``work_bytes`` the encoder's activations for a second
    of audio.
    """

    sample_rate: int
    segment_seconds: float
    frame_seconds: float
    frame_bytes: int
    work_bytes: int


class FrameEngine(BaseEngine):
    """An opened model of such a family; a family implements the abstract methods."""

    capabilities = Capabilities(context=False, language=False, language_detection=False, words=True)

    def __init__(
        self, artifact: Artifact, options: EngineOptions, model: FrameModel, sessions: dict[str, InferenceSession]
    ) -> None:
        """Plan rows; call this when ``sessions``, by role, are loaded, because resident memory is counted.

        Raises:
            OptionError: segments longer than the model is made for, or a memory budget too small for one row.
        """
        super().__init__(artifact, options, sample_rate=model.sample_rate, max_segment_seconds=model.segment_seconds)
        self._frame_seconds, self._sessions = model.frame_seconds, sessions
        languages = artifact.manifest.languages
        # Such a model does not report a language, but one with a single language is known to have heard it.
        self._language = languages[0].name if len(languages) == 1 else None
        self.plan = plan_rows(
            options.max_batch,
            options.memory,
            positions=math.ceil(self.segment_seconds / model.frame_seconds),
            position_bytes=model.frame_bytes,
            work_bytes=math.ceil(_SEGMENTS_PER_CALL * self.segment_seconds * model.work_bytes),
        )

    @abstractmethod
    def features(self, samples: Floats) -> Floats:
        """Return features [frames, channels] of mono ``samples`` [n], at least one frame for any length."""

    @abstractmethod
    def encode(self, features: Floats, lengths: Ints) -> tuple[Floats, Ints]:
        """Encode a padded batch [clips, frames, channels] with its valid frames [clips].

        Returns:
            Encoder frames [clips, longest, width], and the valid frames [clips] of each clip.
        """

    @abstractmethod
    def decode(
        self, encoded: Sequence[Floats], budgets: Sequence[int | None], is_cancelled: Callable[[int], bool]
    ) -> Iterator[tuple[int, FrameHypothesis]]:
        """Decode clips.

        Args:
            encoded: encoder frames [frames, width] of each clip.
            budgets: largest number of tokens of each clip; None for no limit.
            is_cancelled: called with a clip's index between steps; True drops the clip.

        Yields:
            A clip's index and its hypothesis, in the order in which clips end.
        """

    @abstractmethod
    def decode_tokens(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids, including spaces at its ends."""

    @abstractmethod
    def probes(self, samples: Floats, tokens: list[int], options: SegmentOptions) -> list[Probe]:
        """Return the inputs of every graph when ``samples`` are transcribed as ``tokens``."""

    def run(self, next_job: Callable[[], SegmentJob | None]) -> Iterator[tuple[Any, SegmentResult]]:
        """Decode many segments; as many as there are rows are taken at once."""
        while batch := list(islice(iter(next_job, None), self.plan.rows)):
            jobs = [job for job in batch if not job.is_cancelled()]
            encoded = self._encode(jobs)
            # Segments may have been cancelled while they were encoded.
            active = [index for index, job in enumerate(jobs) if not job.is_cancelled()]
            if active:
                yield from self._decode([jobs[index] for index in active], [encoded[index] for index in active])

    def _encode(self, jobs: Sequence[SegmentJob]) -> list[Floats]:
        """Return the encoder frames [frames, width] of every job's audio."""
        features = []
        for job in jobs:
            with job.timings.measure("features"):
                features.append(self.features(job.samples))
        encoded: dict[int, Floats] = {}
        for indices in self._calls([len(each) for each in features], [len(job.samples) for job in jobs]):
            start = time.perf_counter()
            batch, lengths = padded([features[index] for index in indices])
            frames, valid = self.encode(batch, lengths)
            seconds = time.perf_counter() - start
            for row, index in enumerate(indices):
                encoded[index] = frames[row, : valid[row]]
                jobs[index].timings.add("encode", seconds * float(lengths[row] / lengths.sum()))
        return [encoded[index] for index in range(len(jobs))]

    def _calls(self, lengths: Sequence[int], samples: Sequence[int]) -> list[list[int]]:
        """Group clip indices into encoder calls: of similar length, and together no longer than the bound."""
        limit = _SEGMENTS_PER_CALL * self.segment_seconds * self.sample_rate
        calls: list[list[int]] = []
        for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
            longest = calls[-1][0] if calls else index
            fits = (len(calls[-1]) + 1) * samples[longest] <= limit if calls else False
            if fits and lengths[index] >= _SIMILAR_LENGTH * lengths[longest]:
                calls[-1].append(index)
            else:
                calls.append([index])
        return calls

    def _decode(self, jobs: Sequence[SegmentJob], encoded: Sequence[Floats]) -> Iterator[tuple[Any, SegmentResult]]:
        active = dict(enumerate(jobs))
        budgets = [job.options.max_new_tokens for job in jobs]
        start = time.perf_counter()
        for index, hypothesis in self.decode(encoded, budgets, lambda index: jobs[index].is_cancelled()):
            now = time.perf_counter()
            for job in active.values():
                job.timings.add("decode", (now - start) / len(active))
            job = active.pop(index)
            if not job.timings.first_token:
                job.timings.first_token = now - job.began
            yield job.key, self._result(job, hypothesis, len(encoded[index]))
            start = time.perf_counter()

    def _result(self, job: SegmentJob, hypothesis: FrameHypothesis, frames: int) -> SegmentResult:
        text = self.decode_tokens(hypothesis.tokens).strip()
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
        """Return words with times in a segment of ``duration`` seconds; the last frame may reach beyond its end."""
        seconds = self._frame_seconds
        pieces = [
            TimedPiece(text, min(start * seconds, duration), min(end * seconds, duration), log_probability)
            for text, start, end, log_probability in zip(
                split_pieces(self.decode_tokens, hypothesis.tokens),
                hypothesis.starts,
                hypothesis.ends,
                hypothesis.log_probabilities,
                strict=True,
            )
        ]
        return words_of(pieces)

    def read(self, tokens: Sequence[int], language: str | None, *, ended: bool) -> tuple[str | None, str]:
        """Return language and text of decoded ``tokens``; ``ended``: the text is complete."""
        text = self.decode_tokens(tokens)
        text = (text if ended else text.rstrip("\ufffd")).strip()
        return language or (self._language if text else None), text


def padded(features: Sequence[Floats]) -> tuple[Floats, Ints]:
    """Pad features [frames, channels] with zeros to a batch [clips, longest, channels]; return valid frames too."""
    lengths = np.array([len(each) for each in features], np.int64)
    batch = np.zeros((len(features), int(lengths.max()), features[0].shape[1]), np.float32)
    for row, each in zip(batch, features, strict=True):
        row[: len(each)] = each
    return batch, lengths
