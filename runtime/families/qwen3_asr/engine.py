"""Qwen3-ASR engine: log-mel → encoder windows → prompt with audio rows → greedy text → language and transcript.

Prompt, output format and encoder geometry are those of the published model; transformers ``models/qwen3_asr`` is the
reference of the tests.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.decoding.greedy import Draft, Hypothesis, TextJob
from runtime.decoding.kv_rows import CausalDecoder, PassComparison, RowSnapshot
from runtime.engines.autoregressive import AutoregressiveEngine, PendingText, last_tokens, text_budget
from runtime.engines.base import EngineOptions, LiveSegment, Probe, SegmentJob, SegmentOptions, SegmentResult
from runtime.engines.batch_plan import BatchPlan, plan_rows
from runtime.engines.capabilities import Capabilities
from runtime.engines.loading import load_together, open_graph
from runtime.errors import OptionError
from runtime.families.qwen3_asr.prompt import TEXT_TAG, Prompt, parse_output
from runtime.families.qwen3_asr.windows import Geometry, GrowingClip, WindowEncoder
from runtime.features.log_mel import LogMelConfig, frame_count, log_mel
from runtime.model.artifact import Artifact
from runtime.model.tokenizer import open_tokenizer
from runtime.model.validation import typed

Floats = npt.NDArray[np.float32]

# Activations of the largest encoder call, per byte of the encoder's weights: measured at 0.6B, float32 and int8.
_WORK_PER_WEIGHT = 0.55
# Rows for long contexts grow in steps of this many positions, so that texts of similar length share a layout.
_POSITION_STEP = 256

# Where passes over many tokens and single steps differ in their last digits (int4: up to 0.13 at the logits), a choice
# with a smaller margin than this is decided again by single steps.
_NEAR_TIE = 0.5


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
        """How mel frames become encoder rows."""
        return Geometry(self.chunk_frames, self.chunk_tokens, self.window_frames)


@dataclass(slots=True, eq=False)
class LiveText:
    """State of a growing segment: encoder rows, keys and values of the prompt up to ``windows`` finished windows."""

    clip: GrowingClip
    snapshot: RowSnapshot | None = None
    windows: int = 0
    next_windows: int = 0

    @property
    def settled(self) -> int:
        """Samples whose encoder rows no longer change: those of the finished windows."""
        return self.clip.settled

    def store(self, snapshot: RowSnapshot) -> None:
        """Store the snapshot that the last pass made."""
        self.snapshot, self.windows = snapshot, self.next_windows


class Qwen3AsrEngine(AutoregressiveEngine[PendingText]):
    """An opened Qwen3-ASR artifact."""

    capabilities = Capabilities(context=True, language=True, language_detection=True, forcing=True)
    audio_in_prompt = True
    _decoder: CausalDecoder

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        """Open the artifact.

        Raises:
            ArtifactInvalidError: the manifest does not fit its graphs or its tokenizer.
            OptionError: segments longer than the model is made for, or too little memory for one row.
            ProviderError: a provider is missing, inactive, or refuses a graph.
        """
        manifest = artifact.manifest
        self._front_end = typed(artifact, manifest.front_end, LogMelConfig)
        self.parameters = parameters = typed(artifact, manifest.parameters, Parameters)
        super().__init__(
            artifact,
            options,
            sample_rate=self._front_end.sample_rate,
            max_segment_seconds=parameters.segment_seconds,
        )
        fixed = any(spec.fixed_windows for spec in options.providers_for("encoder"))
        sizes = {"windows": 1, "frames": parameters.window_frames} if fixed else None
        encoder, decoder, self._tokenizer = load_together(
            lambda: open_graph(artifact, "encoder", options, sizes),
            lambda: open_graph(artifact, "decoder", options),
            lambda: open_tokenizer(artifact),
        )
        self._sessions = {"encoder": encoder, "decoder": decoder}
        self._encoder = WindowEncoder(encoder, parameters.geometry, fixed=fixed)
        self._decoder = CausalDecoder(
            decoder,
            manifest.graphs["decoder"],
            audio_id=parameters.audio_pad_id,
            context_length=parameters.context_length,
        )
        self._stop_ids, self._forbidden_ids = parameters.stop_ids, [parameters.audio_pad_id]
        self._context_length = parameters.context_length
        self._passes: PassComparison | None = None
        self._check_parameters(
            [
                ("parameters.hidden_size", parameters.hidden_size, self._decoder.hidden_size),
                ("parameters.vocab_size", parameters.vocab_size, self._decoder.vocab_size),
                ("parameters.layers", parameters.layers, self._decoder.layers),
                ("parameters.kv_heads", parameters.kv_heads, self._decoder.kv_heads),
                ("parameters.head_dim", parameters.head_dim, self._decoder.head_dim),
                ("parameters.audio_pad_id", parameters.audio_pad_id, self._tokenizer.token_to_id("<|audio_pad|>")),
                ("parameters.text_tag_id", parameters.text_tag_id, self._tokenizer.token_to_id(TEXT_TAG)),
            ]
        )
        self.plan = self._plan(options)

    def _plan(self, options: EngineOptions) -> BatchPlan:
        """Plan rows for segments of full length without a context; :meth:`_layout` handles those that need more."""
        longest = self._longest_segment
        prompt = max(len(self.prompt_ids(0, "", language.name)) for language in self._manifest.languages)
        room = self.parameters.context_length - prompt - self.audio_tokens(longest)
        positions = self.parameters.context_length - room + min(room, text_budget(longest / self.sample_rate))
        return plan_rows(
            options.max_batch,
            options.memory,
            positions=positions,
            position_bytes=self._decoder.position_bytes,
            work_bytes=int(_WORK_PER_WEIGHT * self._artifact.role_size("encoder")),
        )

    @property
    def _longest_segment(self) -> int:
        """Samples of the longest segment."""
        return math.ceil(self.segment_seconds * self.sample_rate)

    def _layout(self, positions: int) -> tuple[int, int]:
        """Return (rows, positions per row) for a text of ``positions``: the plan's, or fewer and longer rows."""
        if positions <= self.plan.positions:
            return self.plan.rows, self.plan.positions
        longer = min(-(-positions // _POSITION_STEP) * _POSITION_STEP, self.parameters.context_length)
        return max(1, self.plan.rows * self.plan.positions // longer), longer

    @property
    def _segments_per_encode(self) -> int:
        """Segments that are requested and encoded together: their windows fill the encoder's batches."""
        return self.plan.rows

    def check(self, options: SegmentOptions) -> None:
        """Check that the context fits beside a segment of full length.

        Raises:
            OptionError: the context contains the audio placeholder, or is too long.
        """
        ids = self.prompt_ids(0, options.context, options.language)
        if self.parameters.audio_pad_id in ids:
            raise OptionError(
                "the context contains <|audio_pad|>, which marks the audio's position; remove it", "context"
            )
        prompt = len(ids) + self.audio_tokens(self._longest_segment)
        room = self.parameters.context_length - prompt
        if room < (options.max_new_tokens or 1):
            raise OptionError(
                f"the prompt takes {prompt} of the {self.parameters.context_length} positions this model was "
                "exported with; give a shorter context",
                "context",
            )

    def shorten_context(self, options: SegmentOptions) -> tuple[SegmentOptions, int]:
        """Return the options with the last tokens of a context that is too long, and how many tokens were dropped.

        A shortened context leaves room for a text of full length.
        """
        rest = len(self.prompt_ids(0, "", options.language)) + self.audio_tokens(self._longest_segment)
        room = self.parameters.context_length - rest
        if len(self._encode_text(options.context)) < room:
            return options, 0
        limit = max(0, room - (options.max_new_tokens or text_budget(self.segment_seconds)))
        context, dropped = last_tokens(options.context, limit, self._encode_text, self._tokenizer.decode)
        return msgspec.structs.replace(options, context=context), dropped

    def _prepare(self, segments: list[SegmentJob]) -> Iterator[tuple[PendingText, TextJob]]:
        """Encode the windows of all segments together and build their prompts."""
        clips: list[list[Floats]] = []
        for segment in segments:
            with segment.timings.measure("features"):
                if segment.live:
                    clips.append(segment.live.state.clip.pending(segment.samples, final=segment.live.final))
                else:
                    clips.append([log_mel(segment.samples, self._front_end)])
        frames = max(1, sum(each.shape[1] for features in clips for each in features))
        start = time.perf_counter()
        encoded = iter(self._encoder.encode_many([each for features in clips for each in features]))
        seconds = time.perf_counter() - start
        for segment, features in zip(segments, clips, strict=True):
            rows = list(islice(encoded, len(features)))
            segment.timings.add("encode", seconds * sum(each.shape[1] for each in features) / frames)
            audio = segment.live.state.clip.encoded(rows) if segment.live else rows[0]
            options = segment.options
            prompt = self.prompt_ids(len(audio), options.context, options.language)
            budget = self._budget(len(segment.samples), options, len(prompt))
            draft = self._draft(segment.live, prompt) if segment.live else None
            job = TextJob(prompt, audio, budget, options.ignore_stop, options.repetition_penalty, draft)
            yield PendingText(segment, len(audio), len(prompt)), job

    def live(self) -> LiveText:
        """Return the state of a new growing segment; the first call measures how exact passes are."""
        if self._passes is None:
            self._passes = self._decoder.compare_passes()
        return LiveText(GrowingClip(self._front_end, self.parameters.window_frames))

    def _draft(self, live: LiveSegment, prompt: list[int]) -> Draft:
        """Build the draft of a live text: the previous hypothesis, keys and values of the finished windows.

        The end of a segment is decoded as offline: prompt and draft in separate passes, and earlier keys and values
        only where passes of any length give the same results. They do not with an 8-bit cache: the pass that starts a
        row attends to floats.
        """
        state: LiveText = live.state
        assert self._passes is not None
        prefix = prompt.index(self.parameters.audio_pad_id)
        window_tokens = self.parameters.geometry.tokens(self.parameters.window_frames)
        state.windows = min(state.windows, state.clip.unchanged)
        usable = state.snapshot is not None and (not live.final or self._passes.splits)
        grown = (
            not live.final and self._decoder.movable and (state.snapshot is None or state.clip.finished > state.windows)
        )
        state.next_windows = state.clip.finished if grown else state.windows
        return Draft(
            tokens=live.draft,
            forced=live.forced,
            snapshot=state.snapshot,
            reuse=prefix + window_tokens * state.windows if usable else 0,
            reuse_audio=window_tokens * state.windows if usable else 0,
            snapshot_length=prefix + window_tokens * state.clip.finished if grown else 0,
            exact=live.final,
            min_margin=0.0 if self._passes.steps else _NEAR_TIE,
        )

    def _finish(self, pending: PendingText, hypothesis: Hypothesis) -> SegmentResult:
        """Store the snapshot of a live text and parse the transcript."""
        segment = pending.segment
        if segment.live and hypothesis.snapshot:
            segment.live.state.store(hypothesis.snapshot)
        ended = hypothesis.finish_reason == "stop"
        language, text = self.read(hypothesis.tokens, segment.options.language, ended=ended)
        tokens, tag = hypothesis.tokens, self.parameters.text_tag_id
        header = tokens.index(tag) + 1 if tag in tokens else 0
        return SegmentResult(
            text=text,
            language=language,
            tokens=hypothesis.tokens,
            confidence=hypothesis.confidence,
            finish_reason=hypothesis.finish_reason,
            audio_tokens=pending.audio_tokens,
            prompt_tokens=pending.prompt_tokens,
            text_tokens=len(tokens) - header,
            stop_log_probability=hypothesis.stop_log_probability,
        )

    def read(self, tokens: Sequence[int], language: str | None, *, ended: bool) -> tuple[str | None, str]:
        """Return language and text of decoded ``tokens``; ``ended``: a stop token followed them."""
        decoded = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        if not ended:
            decoded = decoded.rstrip("\ufffd")  # a character that was cut between its bytes
            if language is None and self.parameters.text_tag_id not in tokens:
                decoded = ""  # cut inside the header, before any text
        return parse_output(decoded, language)

    def audio_tokens(self, samples: int) -> int:
        """Return the number of encoder rows for ``samples``."""
        return self.parameters.geometry.tokens(frame_count(samples, self._front_end))

    def encode(self, features: Floats) -> Floats:
        """Encode features [mels, frames] to audio rows [tokens, hidden]."""
        (rows,) = self._encoder.encode_many([features])
        return rows

    def prompt_ids(self, audio_tokens: int, context: str, language: str | None) -> list[int]:
        """Return the token ids of the chat prompt with ``audio_tokens`` placeholders."""
        pieces = self.parameters.prompt
        before = self._encode_text(pieces.before_context + context + pieces.before_audio)
        after = pieces.after_audio + (pieces.language.format(name=language) if language else "")
        return [*before, *[self.parameters.audio_pad_id] * audio_tokens, *self._encode_text(after)]

    def _encode_text(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def probes(self, samples: Floats, tokens: list[int], options: SegmentOptions) -> list[Probe]:
        """Return the encoder's batches, and the decoder over prompt and text in one pass."""
        features = log_mel(samples, self._front_end)
        probes = [
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
        return [*probes, Probe("decoder", feeds, ["logits"], choice="logits", rows=ids.shape[1])]

    def run_probe(self, probe: Probe) -> list[npt.NDArray[Any]]:
        """Run a probe; the encoder's through :class:`WindowEncoder`, which handles windows of fixed size."""
        if probe.role == "encoder":
            return [self._encoder.run(probe.feeds["features"], probe.feeds["lengths"].tolist())]
        return super().run_probe(probe)
