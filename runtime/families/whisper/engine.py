"""Whisper engine: log-mel of a whole window → encoder → keys and values of cross-attention → prompt → greedy text.

Prompt, decoding rules and guards are those of arXiv 2212.04356; transformers ``models/whisper`` is the reference of the
tests.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.decoding.greedy import Draft, Hypothesis, TextJob
from runtime.engines.autoregressive import AutoregressiveEngine, PendingText, last_tokens
from runtime.engines.base import EngineOptions, Head, LiveSegment, Probe, SegmentJob, SegmentOptions, SegmentResult
from runtime.engines.batch_plan import BatchPlan, plan_rows
from runtime.engines.capabilities import Capabilities
from runtime.engines.loading import load_together, open_graph
from runtime.errors import OptionError
from runtime.families.whisper.cross_decoder import CrossDecoder
from runtime.families.whisper.fallback import (
    is_silence,
    language_probability,
    likeliest_language,
    probability,
    repeats,
)
from runtime.families.whisper.long_form import WhisperLongForm
from runtime.families.whisper.timestamps import NextTokenRules, TimestampRules, advance, phrases
from runtime.features.log_mel import LogMelConfig, log_mel
from runtime.model.artifact import Artifact
from runtime.model.tokenizer import open_tokenizer
from runtime.model.validation import contradiction, typed
from runtime.results import FinishReason, TimedText, Timings

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

# Seconds that a window of joined pieces leaves free at its end: the padding that languages are compared with.
_PADDING_SECONDS = 1.0
# Encoder positions between the audio and the padding: 0.2 s, more than its convolutions and a fade need.
_PADDING_MARGIN = 10
# A piece is in another language if the window's language has a smaller probability there. Of 159 pieces in the window's
# language five have less (they are decoded apart without need), of 70 in another language one has more (windows of five
# recordings from 306 in five languages, Whisper base).
_SAME_LANGUAGE = 0.5

# Floats that the encoder uses at a time for each channel of each row: four times the width, before and after an
# activation, scores, and what the arena does not give back. Measured with whisper-large-v3-turbo: two windows took 228
# MiB in addition to their rows in float32 and 252 in int8, keys and values of cross-attention included; this gives 264.
_WORK_PER_CHANNEL = 28


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The manifest's ``parameters`` for this family.

    ``language_ids`` (by ISO code) and ``task_ids`` are empty for English-only models.
    """

    vocab_size: int
    layers: int
    heads: int
    head_dim: int
    audio_positions: int
    context_length: int
    segment_seconds: float
    timestamp_seconds: float
    start_id: int
    stop_id: int
    previous_id: int | None
    no_timestamps_id: int
    no_speech_id: int
    language_ids: dict[str, int]
    task_ids: dict[str, int]
    suppress_ids: list[int]
    begin_suppress_ids: list[int]
    max_initial_timestamp: int | None


@dataclass(frozen=True, slots=True)
class WhisperPending(PendingText):
    """A segment whose text is being decoded, with its language and no-speech probability."""

    language: str | None
    no_speech: float


class WhisperEngine(AutoregressiveEngine[WhisperPending]):
    """An opened Whisper artifact."""

    capabilities = Capabilities(
        context=True,
        language=True,
        language_detection=True,
        timestamps=True,
        translation=True,
        long_form=True,
        forcing=True,
    )
    _decoder: CrossDecoder

    @classmethod
    def capabilities_of(cls, artifact: Artifact) -> Capabilities:
        """Return what this model can do: English-only models have no tokens for languages and tasks.

        Raises:
            ArtifactInvalidError: the manifest's parameters do not fit the family.
        """
        parameters = typed(artifact, artifact.manifest.parameters, Parameters)
        return msgspec.structs.replace(
            cls.capabilities,
            context=parameters.previous_id is not None,
            language_detection=bool(parameters.language_ids),
            translation="translate" in parameters.task_ids,
        )

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
            # The encoder's cost does not depend on how much of a window is audio, so full windows are fastest.
            default_segment_seconds=parameters.segment_seconds,
        )
        self.capabilities = self.capabilities_of(artifact)
        self._codes = {language.name: language.code for language in manifest.languages}
        self._names = {code: name for name, code in self._codes.items()}
        # A window takes as long with a second of audio as with 30.
        self.window_seconds = min(self.segment_seconds, parameters.segment_seconds - _PADDING_SECONDS)
        fixed = any(spec.fixed_windows for spec in options.providers_for("encoder"))
        self._encoder, decoder, self._tokenizer = load_together(
            lambda: open_graph(artifact, "encoder", options, {"clips": 1} if fixed else None),
            lambda: open_graph(artifact, "decoder", options),
            lambda: open_tokenizer(artifact),
        )
        self._sessions = {"encoder": self._encoder, "decoder": decoder}
        self._decoder = CrossDecoder(decoder, manifest.graphs["decoder"], context_length=parameters.context_length)
        self._stop_ids, self._context_length = [parameters.stop_id], parameters.context_length
        self._check_manifest()
        rules = TimestampRules(parameters.stop_id, parameters.no_timestamps_id, parameters.max_initial_timestamp)
        self._timestamps = rules
        self._frames_per_timestamp = round(parameters.timestamp_seconds * self.sample_rate / self._front_end.hop_length)
        suppress, begin = (np.array(ids, np.int64) for ids in (parameters.suppress_ids, parameters.begin_suppress_ids))
        self._rules = {timed: NextTokenRules(suppress, begin, rules if timed else None) for timed in (False, True)}
        width = parameters.heads * parameters.head_dim
        work = _WORK_PER_CHANNEL * parameters.audio_positions * width * np.dtype(np.float32).itemsize
        self.plan: BatchPlan = plan_rows(
            options.max_batch,
            options.memory,
            positions=parameters.context_length,
            position_bytes=self._decoder.position_bytes,
            work_bytes=work + self._decoder.cross_bytes,
            audio_bytes=self._decoder.cross_bytes,
        )

    def _check_manifest(self) -> None:
        """Compare the manifest with graphs and tokenizer when the model is opened."""
        decoder, parameters, token_id = self._decoder, self.parameters, self._tokenizer.token_to_id
        self._check_parameters(
            [
                ("parameters.vocab_size", parameters.vocab_size, decoder.vocab_size),
                ("parameters.layers", parameters.layers, decoder.layers),
                ("parameters.heads", parameters.heads, decoder.kv_heads),
                ("parameters.head_dim", parameters.head_dim, decoder.head_dim),
                ("parameters.stop_id", parameters.stop_id, token_id("<|endoftext|>")),
                ("parameters.start_id", parameters.start_id, token_id("<|startoftranscript|>")),
                ("parameters.no_timestamps_id", parameters.no_timestamps_id, token_id("<|notimestamps|>")),
                *(
                    (f"parameters.language_ids.{code}", token, token_id(f"<|{code}|>"))
                    for code, token in parameters.language_ids.items()
                ),
            ]
        )
        if missing := [code for code in self._names if parameters.language_ids and code not in parameters.language_ids]:
            raise contradiction(self._artifact, f"language {missing[0]!r} has no entry in parameters.language_ids")

    def check(self, options: SegmentOptions) -> None:
        """Check that the context fits.

        Raises:
            OptionError: the context contains a special token, or is too long.
        """
        parameters = self.parameters
        if not options.context:
            return
        context = self._context_ids(options.context)
        if special := [token for token in context if token >= parameters.stop_id]:
            token = self._tokenizer.id_to_token(special[0])
            raise OptionError(
                f"the context contains {token}, which is a special token of the model; remove it", "context"
            )
        limit = self._longest_context
        if len(context) > limit:
            raise OptionError(
                f"the context has {len(context)} tokens; give a shorter one, of at most {limit}", "context"
            )
        prompt = len(self.prompt_ids(next(iter(self._codes.values())), options))
        if parameters.context_length - prompt < (options.max_new_tokens or 1):
            raise OptionError(
                f"the prompt takes {prompt} of the {parameters.context_length} positions this model has; give a "
                "shorter context",
                "context",
            )

    @property
    def _longest_context(self) -> int:
        """Tokens of the longest context: in the model's training, it has half of the positions, marker included."""
        return self.parameters.context_length // 2 - 1

    def shorten_context(self, options: SegmentOptions) -> tuple[SegmentOptions, int]:
        """Return the options with the last tokens of a context that is too long, and how many tokens were dropped."""
        context, dropped = last_tokens(
            options.context, self._longest_context, self._context_ids, self._tokenizer.decode
        )
        return msgspec.structs.replace(options, context=context), dropped

    def encode(self, samples: Floats, timings: Timings, features: Floats | None = None) -> list[Floats]:
        """Encode one window to the keys and values of cross-attention.

        Args:
            samples: mono float32 [n], at most one window.
            timings: collects stage times.
            features: [mels, frames] of a whole window, instead of those of ``samples``.

        Returns:
            Arrays [1, heads, positions, head_dim] in the graph's order.
        """
        if features is None:
            with timings.measure("features"):
                features = log_mel(samples, self._front_end)
        with timings.measure("encode"):
            arrays: list[Floats] = self._encoder.run(self._decoder.cross_names, {"features": features[None]})
        return arrays

    def _prepare(self, segments: list[SegmentJob]) -> Iterator[tuple[WhisperPending, TextJob | SegmentResult]]:
        """Encode segments one by one, detect their language, and build their prompts."""
        for segment in segments:
            options = segment.options
            audio = self.encode(segment.samples, segment.timings, segment.features)
            with segment.timings.measure("prefill"):
                first = self._decoder.next_logits([self.parameters.start_id], audio)[0]
            no_speech = probability(first, self.parameters.no_speech_id)
            code = self._language(first, options.language)
            prompt, rows = self.prompt_ids(code, options), self.parameters.audio_positions
            pending = WhisperPending(segment, rows, len(prompt), self._names[code], no_speech)
            if len(segment.parts) > 1 and options.language is None and self.parameters.language_ids:
                with segment.timings.measure("prefill"):
                    foreign = self._foreign_parts(segment, audio, code)
                if foreign:
                    yield pending, SegmentResult("", None, [], 0.0, "stop", rows, 1, foreign_parts=foreign)
                    continue
            job = TextJob(
                prompt,
                audio,
                self._budget(len(segment.samples), options, len(prompt)),
                options.ignore_stop,
                options.repetition_penalty,
                _draft(segment.live) if segment.live else None,
                self._rules[options.timestamps],
            )
            yield pending, job

    def _foreign_parts(self, segment: SegmentJob, audio: Sequence[Floats], code: str) -> list[int]:
        """Return the numbers of the parts whose language is not ``code``, that of the whole window.

        Each part is compared alone: its keys and values stay, those of everything else are replaced by the padding's.
        """
        parameters, positions = self.parameters, self.parameters.audio_positions
        position = parameters.segment_seconds * self.sample_rate / positions  # samples
        padding = min(math.ceil(len(segment.samples) / position) + _PADDING_MARGIN, positions - 1)
        filler = padding + np.arange(positions) % (positions - padding)
        masked = [array[:, :, filler] for array in audio]
        foreign = []
        for number, part in enumerate(segment.parts):
            first, end = int(part.offset / position), math.ceil((part.offset + part.length) / position)
            here = slice(first, min(end, padding))
            for target, array in zip(masked, audio, strict=True):
                target[:, :, here] = array[:, :, here]
            logits = self._decoder.next_logits([parameters.start_id], masked)[0]
            if language_probability(logits, parameters.language_ids, code) < _SAME_LANGUAGE:
                foreign.append(number)
            for target, array in zip(masked, audio, strict=True):
                target[:, :, here] = array[:, :, filler[here]]
        return foreign

    def _language(self, first: Floats, requested: str | None) -> str:
        """Return the code of the requested language, or of the likeliest by ``first``, the logits after the start."""
        if requested is not None:
            return self._codes[requested]
        if not self.parameters.language_ids:
            return next(iter(self._codes.values()))
        return likeliest_language(first, self.parameters.language_ids)[0]

    def prompt_ids(self, code: str, options: SegmentOptions) -> list[int]:
        """Return the prompt's token ids: context, start, language and task, and the no-timestamps token if needed."""
        parameters = self.parameters
        ids = [parameters.start_id]
        if options.context.strip() and parameters.previous_id is not None:
            ids = [parameters.previous_id, *self._context_ids(options.context), *ids]
        if parameters.language_ids:
            ids += [parameters.language_ids[code], parameters.task_ids[options.task]]
        return ids if options.timestamps else [*ids, parameters.no_timestamps_id]

    def _context_ids(self, context: str) -> list[int]:
        # A text continues after a space, as in the middle of a transcript.
        return list(self._tokenizer.encode(" " + context.strip(), add_special_tokens=False).ids)

    def _finish(self, pending: WhisperPending, hypothesis: Hypothesis) -> SegmentResult:
        """Apply the silence and repetition guards, and split the text at its timestamps."""
        segment = pending.segment
        ended = hypothesis.finish_reason == "stop"
        language, text = self.read(hypothesis.tokens, pending.language, ended=ended)
        reason: FinishReason = hypothesis.finish_reason
        log_probabilities = hypothesis.log_probabilities
        dropped = None
        if not segment.options.ignore_stop:
            certainty = float(np.mean(log_probabilities)) if log_probabilities else None
            if certainty is not None and is_silence(pending.no_speech, certainty, segment.speech):
                log.debug(
                    "no speech (%.2f, %s s by voice activity): dropped %r", pending.no_speech, segment.speech, text
                )
                language, text, reason, dropped = None, "", "stop", text or None
            elif repeats(text):
                reason = "repetition"
        timed = segment.options.timestamps and bool(text)
        result = SegmentResult(
            text=text,
            language=language,
            tokens=hypothesis.tokens,
            confidence=hypothesis.confidence,
            finish_reason=reason,
            audio_tokens=pending.audio_tokens,
            prompt_tokens=pending.prompt_tokens,
            phrases=self._phrases(hypothesis.tokens, len(segment.samples)) if timed else [],
            no_speech_prob=pending.no_speech,
            dropped_text=dropped,
            text_tokens=sum(token < self.parameters.stop_id for token in hypothesis.tokens),
            stop_log_probability=hypothesis.stop_log_probability,
        )
        return msgspec.structs.replace(result, head=self._head(result, len(segment.samples))) if timed else result

    def _head(self, result: SegmentResult, samples: int) -> Head | None:
        """Return the complete part of a text with timestamps, unless that is all of it."""
        hop = self._front_end.hop_length
        frames = -(-samples // hop)
        count, covered = advance(result.tokens, self._timestamps, frames, self._frames_per_timestamp)
        tokens = result.tokens[:count]
        if count == len(result.tokens) and covered >= frames:
            return None
        head = msgspec.structs.replace(
            result,
            text=self.read(tokens, None, ended=False)[1],
            tokens=tokens,
            phrases=self._phrases(tokens, samples),
            text_tokens=sum(token < self.parameters.stop_id for token in tokens),
        )
        return Head(head, covered * hop)

    def _phrases(self, tokens: Sequence[int], samples: int) -> list[TimedText]:
        """Return the timed parts of a text that are not empty; times in seconds from the window's start."""
        step, seconds = self.parameters.timestamp_seconds, samples / self.sample_rate
        parts = phrases(tokens, self._timestamps, step, seconds)
        texts = [(part, self.read(part.tokens, None, ended=False)[1]) for part in parts]
        return [TimedText(part.start, part.end, text, part.tokens) for part, text in texts if text]

    def long_form(self, samples: Floats, options: SegmentOptions, timings: Timings) -> WhisperLongForm:
        """Start long-form decoding of mono float32 ``samples`` [n] of any length."""
        return WhisperLongForm(samples, self._front_end, options, timings)

    def read(self, tokens: Sequence[int], language: str | None, *, ended: bool) -> tuple[str | None, str]:
        """Return ``language`` and the text of decoded ``tokens``; ``ended``: a stop token followed them."""
        text = [token for token in tokens if token < self.parameters.stop_id]
        decoded = self._tokenizer.decode(text, skip_special_tokens=False).strip()
        return language, decoded if ended else decoded.rstrip("\ufffd")  # a character that was cut between its bytes

    def probes(self, samples: Floats, tokens: list[int], options: SegmentOptions) -> list[Probe]:
        """Return the encoder's window, and the decoder over prompt and text in one pass."""
        features = log_mel(samples, self._front_end)[None]
        names = self._decoder.cross_names
        audio = self._encoder.run(names, {"features": features})
        first = self._decoder.next_logits([self.parameters.start_id], audio)[0]
        code = self._language(first, options.language)
        ids = np.array([[*self.prompt_ids(code, options), *tokens]], np.int64)
        feeds = self._decoder.feeds(ids, audio, logits_count=len(tokens) + 1)
        return [
            Probe("encoder", {"features": features}, names, rows=self.parameters.audio_positions),
            Probe("decoder", feeds, ["logits"], choice="logits", rows=ids.shape[1]),
        ]


def _draft(live: LiveSegment) -> Draft | None:
    """Return the previous hypothesis to verify in the prompt's pass.

    The end of a segment is decoded as offline, without a draft, unless part of its text has to stay.
    """
    if live.final and not live.forced:
        return None
    return Draft(tokens=live.draft, forced=live.forced)
