"""Qwen3-ASR: log-mel → encoder windows → prompt with audio rows → greedy text → language and transcript.

Prompt, output format and encoder geometry are those of the published model; transformers ``models/qwen3_asr`` is the
reference that the tests compare with.
"""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.decoding.greedy import Draft, Hypothesis, Job, greedy_rows
from runtime.decoding.kv_rows import CausalDecoder, Kept, PassComparison
from runtime.engines.base import (
    DEFAULT_SEGMENT_SECONDS,
    EngineOptions,
    LiveWork,
    Probe,
    SegmentJob,
    SegmentOptions,
    SegmentResult,
)
from runtime.engines.batch_plan import BatchPlan, plan_rows
from runtime.engines.capabilities import Capabilities
from runtime.engines.loading import load_together, open_graph
from runtime.errors import ArtifactInvalidError, OptionError
from runtime.families.qwen3_asr.windows import Geometry, GrowingClip, WindowEncoder
from runtime.features.log_mel import LogMelConfig, frame_count, log_mel
from runtime.model.artifact import Artifact
from runtime.model.manifest import MANIFEST
from runtime.model.tokenizer import open_tokenizer
from runtime.model.validation import typed
from runtime.ort.session import placement
from runtime.results import Timings

Floats = npt.NDArray[np.float32]

# Most text tokens a second of audio may give: more than any language spoken fast (the audio itself gives 13), so that
# a text is cut only when the model runs away. The constant covers the tag and very short clips.
_TOKENS_PER_SECOND = 15
_TOKENS_AT_LEAST = 32
# Activations of the largest call, per byte of the encoder's weights: measured at 0.6B, float32 and int8.
_WORK_PER_WEIGHT = 0.55
# Rows for long contexts grow in steps of this many positions, so that texts of like length share them.
_GRANULE = 256

_HEADER = re.compile(r"^\s*language\s+(?P<name>[^<\n]*?)\s*<asr_text>", re.IGNORECASE)
# A header whose tag never came. Only exactly as the model writes it, for a transcript may begin with this word too.
_BARE_HEADER = re.compile(r"^language (?P<name>[A-Z][a-z]+)$")
_TAG = "<asr_text>"

# Where passes over many tokens and single steps differ in their last digits (int4: up to 0.13 at the logits), a choice
# that leads by less than this is made again by steps.
_NEAR_TIE = 0.5


class Prompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The prompt's fixed pieces; ``language`` is a format string with ``{name}``."""

    before_context: str
    before_audio: str
    after_audio: str
    language: str


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The manifest's ``parameters`` for this family."""

    chunk_frames: int
    chunk_tokens: int
    window_frames: int
    hidden_size: int
    vocab_size: int
    layers: int
    kv_heads: int
    head_dim: int
    context_length: int
    segment_seconds: float
    stop_ids: list[int]
    audio_pad_id: int
    text_tag_id: int
    prompt: Prompt

    @property
    def geometry(self) -> Geometry:
        """How frames become rows."""
        return Geometry(self.chunk_frames, self.chunk_tokens, self.window_frames)


def parse_output(text: str, forced: str | None) -> tuple[str | None, str]:
    """Decoded text → (language, transcript): no tag, no header and no literal ``None`` is left in the transcript.

    With ``forced`` the header was part of the prompt and the model writes the transcript alone; should it write a
    header all the same, that is removed too. ``language None`` means that nobody spoke.
    """
    language, text = forced, text.strip()
    while match := _HEADER.match(text) or (None if forced else _BARE_HEADER.match(text)):
        name = match["name"].strip()
        language = forced or (None if name.lower() in ("", "none") else name)
        text = text[match.end() :].strip()
    text = text.replace(_TAG, " ").strip()
    if language is None and text.lower() in ("none", "none."):
        text = ""  # the header's word once more, where nobody spoke
    return language, text


@dataclass(slots=True, eq=False)
class LiveText:
    """What is kept of a segment that grows: encoder rows, keys and values of the prompt up to so many ``windows``."""

    clip: GrowingClip
    kept: Kept | None = None
    windows: int = 0
    coming: int = 0

    @property
    def settled(self) -> int:
        """See :class:`runtime.engines.base.LiveState`."""
        return self.clip.settled

    def keep(self, kept: Kept) -> None:
        """Take what the pass that is over was asked to keep."""
        self.kept, self.windows = kept, self.coming


class Qwen3AsrEngine:
    """An opened Qwen3-ASR artifact."""

    capabilities = Capabilities(context=True, language=True, language_detection=True, forcing=True)

    @classmethod
    def capabilities_of(cls, artifact: Artifact) -> Capabilities:  # noqa: ARG003  (all can do the same)
        """See :class:`runtime.families.Family`."""
        return cls.capabilities

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        manifest = self._manifest = artifact.manifest
        where = artifact.path / MANIFEST
        self._front_end = typed(artifact, manifest.front_end, LogMelConfig)
        self.parameters = typed(artifact, manifest.parameters, Parameters)
        self.sample_rate = self._front_end.sample_rate
        self.segment_seconds = options.segment_seconds or min(DEFAULT_SEGMENT_SECONDS, self.parameters.segment_seconds)
        if self.segment_seconds > self.parameters.segment_seconds:
            raise OptionError(
                f"segments of {self.segment_seconds:g} s are too long: this model is made for "
                f"{self.parameters.segment_seconds:g} s at most"
            )
        fixed = any(spec.fixed_windows for spec in options.providers_for("encoder"))
        sizes = {"windows": 1, "frames": self.parameters.window_frames} if fixed else None
        encoder, self._decoder_session, self._tokenizer = load_together(
            lambda: open_graph(artifact, "encoder", options, sizes),
            lambda: open_graph(artifact, "decoder", options),
            lambda: open_tokenizer(artifact),
        )
        self._encoder = WindowEncoder(encoder, self.parameters.geometry, fixed=fixed)
        self._decoder = CausalDecoder(
            self._decoder_session,
            manifest.graphs["decoder"],
            audio_id=self.parameters.audio_pad_id,
            context_length=self.parameters.context_length,
        )
        self._passes: PassComparison | None = None
        self._check_parameters(where)
        self.plan = self._plan(artifact, options)

    def _check_parameters(self, where: object) -> None:
        """A manifest that contradicts its graphs or its tokenizer is found at load, not in the text."""
        decoder, parameters = self._decoder, self.parameters
        for key, graph, said in (
            ("hidden_size", decoder.hidden_size, parameters.hidden_size),
            ("vocab_size", decoder.vocab_size, parameters.vocab_size),
            ("layers", decoder.layers, parameters.layers),
            ("kv_heads", decoder.kv_heads, parameters.kv_heads),
            ("head_dim", decoder.head_dim, parameters.head_dim),
            ("audio_pad_id", self._tokenizer.token_to_id("<|audio_pad|>"), parameters.audio_pad_id),
            ("text_tag_id", self._tokenizer.token_to_id(_TAG), parameters.text_tag_id),
        ):
            if graph != said:
                raise ArtifactInvalidError(f"{where}: parameters.{key} is {said}, but graph or tokenizer have {graph}")

    def _plan(self, artifact: Artifact, options: EngineOptions) -> BatchPlan:
        """Rows for segments of full length without a context; see :meth:`_layout` for those that need more."""
        longest = math.ceil(self.segment_seconds * self.sample_rate)
        prompt = max(len(self.prompt_ids(0, "", language.name)) for language in artifact.manifest.languages)
        room = self.parameters.context_length - prompt - self.audio_tokens(longest)
        positions = self.parameters.context_length - room + min(room, self._budget(longest, SegmentOptions()))
        return plan_rows(
            options.max_batch,
            options.memory,
            positions=positions,
            position_bytes=self._decoder.position_bytes,
            work_bytes=int(_WORK_PER_WEIGHT * artifact.role_size("encoder")),
        )

    def _layout(self, positions: int) -> tuple[int, int]:
        """Rows and their length for a text that needs so many positions: the plan's, or fewer and longer ones."""
        if positions <= self.plan.positions:
            return self.plan.rows, self.plan.positions
        longer = min(-(-positions // _GRANULE) * _GRANULE, self.parameters.context_length)
        return max(1, self.plan.rows * self.plan.positions // longer), longer

    def transcribe(self, samples: Floats, options: SegmentOptions, timings: Timings) -> SegmentResult:
        """See :class:`runtime.engines.base.Engine`."""
        only = iter([SegmentJob(None, samples, options, timings, time.perf_counter())])
        ((_, result),) = self.run(lambda: next(only, None))
        return result

    def check(self, options: SegmentOptions) -> None:
        """See :class:`runtime.engines.base.Engine`."""
        ids = self.prompt_ids(0, options.context, options.language)
        if self.parameters.audio_pad_id in ids:
            raise OptionError("the context contains <|audio_pad|>, which marks where the audio goes; leave it out")
        prompt = len(ids) + self.audio_tokens(math.ceil(self.segment_seconds * self.sample_rate))
        room = self.parameters.context_length - prompt
        if room < (options.max_new_tokens or 1):
            raise OptionError(
                f"the prompt takes {prompt} of the {self.parameters.context_length} positions this model was "
                "exported with; give a shorter context"
            )

    def run(self, next_job: Callable[[], SegmentJob | None]) -> Iterator[tuple[Any, SegmentResult]]:
        """See :class:`runtime.engines.base.Engine`. As many segments as there are rows are encoded together."""
        ready: deque[tuple[Any, Job]] = deque()

        def encoded() -> tuple[Any, Job] | None:
            if not ready:
                ready.extend(self._encode(list(islice(iter(next_job, None), self.plan.rows))))
            return ready.popleft() if ready else None

        def on_timing(stage: str, keys: Sequence[Any], seconds: float) -> None:
            for segment, _ in keys:
                segment.timings.add(stage, seconds / len(keys))
                if stage == "prefill" and not segment.timings.first_token:
                    segment.timings.first_token = time.perf_counter() - segment.began

        never = [self.parameters.audio_pad_id]
        for (segment, job), hypothesis in greedy_rows(
            self._decoder,
            encoded,
            self._layout,
            self.parameters.stop_ids,
            never=never,
            on_timing=on_timing,
            is_cancelled=lambda key: key[0].is_cancelled(),
        ):
            if segment.live and hypothesis.kept:
                segment.live.state.keep(hypothesis.kept)
            yield segment.key, self._result(job, hypothesis, segment.options)

    def _budget(self, samples: int, options: SegmentOptions) -> int:
        """Most text tokens of a segment of so many samples."""
        seconds = samples / self.sample_rate
        return options.max_new_tokens or _TOKENS_AT_LEAST + math.ceil(seconds * _TOKENS_PER_SECOND)

    def _encode(self, segments: list[SegmentJob]) -> Iterator[tuple[tuple[SegmentJob, Job], Job]]:
        """Jobs of many segments, whose windows go through the encoder together."""
        wanted: list[list[Floats]] = []
        for segment in segments:
            with segment.timings.measure("features"):
                if segment.live:
                    wanted.append(segment.live.state.clip.wanted(segment.samples, final=segment.live.final))
                else:
                    wanted.append([log_mel(segment.samples, self._front_end)])
        frames = max(1, sum(each.shape[1] for features in wanted for each in features))
        began = time.perf_counter()
        encoded = iter(self._encoder.encode_many([each for features in wanted for each in features]))
        seconds = time.perf_counter() - began
        for segment, features in zip(segments, wanted, strict=True):
            rows = list(islice(encoded, len(features)))
            segment.timings.add("encode", seconds * sum(each.shape[1] for each in features) / frames)
            audio = segment.live.state.clip.encoded(rows) if segment.live else rows[0]
            options = segment.options
            prompt = self.prompt_ids(len(audio), options.context, options.language)
            room = self.parameters.context_length - len(prompt)
            budget = min(room, self._budget(len(segment.samples), options))
            draft = self._draft(segment.live, prompt) if segment.live else None
            job = Job(prompt, audio, budget, options.ignore_stop, options.repetition_penalty, draft)
            yield (segment, job), job

    def live(self) -> LiveText:
        """See :class:`runtime.engines.base.Engine`."""
        if self._passes is None:
            self._passes = self._decoder.compare_passes()
        return LiveText(GrowingClip(self._front_end, self.parameters.window_frames))

    def _draft(self, work: LiveWork, prompt: list[int]) -> Draft:
        """What is known of a live text: the hypothesis before, keys and values of the windows that are finished.

        The end of a segment is decoded as it is offline: prompt and draft in passes of their own, and the keys and
        values before it only where passes of any length compute the same. That is not so where the cache has 8 bits: a
        pass that begins a row attends to floats.
        """
        state: LiveText = work.state
        assert self._passes is not None
        before = prompt.index(self.parameters.audio_pad_id)
        each = self.parameters.geometry.tokens(self.parameters.window_frames)
        state.windows = min(state.windows, state.clip.unchanged)
        usable = state.kept is not None and (not work.final or self._passes.splits)
        reuse = before + each * state.windows if usable else 0
        grown = not work.final and self._decoder.movable and (state.kept is None or state.clip.finished > state.windows)
        state.coming = state.clip.finished if grown else state.windows
        return Draft(
            tokens=work.draft,
            forced=work.forced,
            kept=state.kept,
            reuse=reuse,
            reuse_audio=each * state.windows if usable else 0,
            keep=before + each * state.clip.finished if grown else 0,
            exact=work.final,
            sure=0.0 if self._passes.steps else _NEAR_TIE,
        )

    def _result(self, job: Job, hypothesis: Hypothesis, options: SegmentOptions) -> SegmentResult:
        ended = hypothesis.finish_reason == "stop"
        language, text = self.read(hypothesis.tokens, options.language, ended=ended)
        return SegmentResult(
            text=text,
            language=language,
            tokens=hypothesis.tokens,
            confidence=hypothesis.confidence,
            finish_reason=hypothesis.finish_reason,
            audio_tokens=len(job.audio),
            prompt_tokens=len(job.prompt),
        )

    def read(self, tokens: Sequence[int], language: str | None, *, ended: bool) -> tuple[str | None, str]:
        """See :class:`runtime.engines.base.Engine`."""
        decoded = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        if not ended:
            decoded = decoded.rstrip("\ufffd")  # a character that was cut between its bytes
            if language is None and self.parameters.text_tag_id not in tokens:
                decoded = ""  # cut inside the header: nothing of the text is there yet
        return parse_output(decoded, language)

    def audio_tokens(self, samples: int) -> int:
        """Rows that the encoder gives for so many samples."""
        return self.parameters.geometry.tokens(frame_count(samples, self._front_end))

    def encode(self, features: Floats) -> Floats:
        """Features [mels, frames] → audio rows [tokens, hidden]."""
        (rows,) = self._encoder.encode_many([features])
        return rows

    def prompt_ids(self, audio_tokens: int, context: str, language: str | None) -> list[int]:
        """Token ids of the chat prompt, with ``audio_tokens`` placeholders."""
        pieces = self.parameters.prompt
        before = self._encode_text(pieces.before_context + context + pieces.before_audio)
        after = pieces.after_audio + (pieces.language.format(name=language) if language else "")
        return [*before, *[self.parameters.audio_pad_id] * audio_tokens, *self._encode_text(after)]

    def _encode_text(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def probes(self, samples: Floats, tokens: list[int], options: SegmentOptions) -> list[Probe]:
        """See :class:`runtime.engines.base.Engine`: the encoder's batches, then the decoder over prompt and text at once."""
        features = log_mel(samples, self._front_end)
        made = [
            Probe(
                "encoder",
                {"features": windows, "lengths": np.array(lengths, np.int64)},
                ["audio_embeds"],
                rows=sum(self.parameters.geometry.tokens(frames) for frames in lengths),
            )
            for _, windows, lengths in self._encoder.windows([features])
        ]
        audio = self.encode(features)
        ids = np.array([[*self.prompt_ids(len(audio), options.context, options.language), *tokens]], np.int64)
        feeds: dict[str, npt.NDArray[Any]] = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "audio_embeds": audio,
            "num_logits_to_keep": np.array([len(tokens) + 1], np.int64),
        }
        feeds |= self._decoder.empty_past()
        return [*made, Probe("decoder", feeds, ["logits"], choice="logits", rows=ids.shape[1])]

    def run_probe(self, probe: Probe) -> list[npt.NDArray[Any]]:
        """See :class:`runtime.engines.base.Engine`."""
        if probe.role == "encoder":
            return [self._encoder.run(probe.feeds["features"], probe.feeds["lengths"].tolist())]
        outputs: list[npt.NDArray[Any]] = self._decoder_session.run(probe.outputs, probe.feeds)
        return outputs

    def placement(self) -> dict[str, dict[str, dict[str, int]]]:
        """See :class:`runtime.engines.base.Engine`."""
        return {"encoder": placement(self._encoder.session), "decoder": placement(self._decoder_session)}
