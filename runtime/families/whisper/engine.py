"""Whisper: log-mel of a whole window → encoder → keys and values of cross-attention → prompt → greedy text.

Prompt, rules of decoding and guards are those of arXiv 2212.04356; transformers ``models/whisper`` is the reference
that the tests compare with.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.decoding.greedy import Draft, Hypothesis, Job, greedy_rows
from runtime.engines.base import EngineOptions, LiveWork, Probe, SegmentJob, SegmentOptions, SegmentResult
from runtime.engines.batch_plan import BatchPlan, plan_rows
from runtime.engines.capabilities import Capabilities
from runtime.engines.loading import load_together, open_graph
from runtime.errors import ArtifactInvalidError, OptionError
from runtime.families.whisper.cross_decoder import CrossDecoder
from runtime.families.whisper.fallback import is_silence, likeliest_language, probability, repeats
from runtime.families.whisper.long_form import LongForm, Reading
from runtime.families.whisper.timestamps import NextTokenRules, TimestampRules, phrases
from runtime.features.log_mel import LogMelConfig, log_mel
from runtime.model.artifact import Artifact
from runtime.model.manifest import MANIFEST
from runtime.model.tokenizer import open_tokenizer
from runtime.model.validation import typed
from runtime.ort.session import placement
from runtime.results import FinishReason, TimedText, Timings

Floats = npt.NDArray[np.float32]

# Most text tokens a second of audio may give, and a few more for very short clips and for timestamps: more than any
# language spoken fast, so that a text is cut only when the model runs away.
_TOKENS_PER_SECOND = 15
_TOKENS_AT_LEAST = 32
# Floats that the encoder takes at a time for each channel of each row: four times the width, before and after an
# activation, scores, and what the arena does not give back. Measured with whisper-large-v3-turbo: two windows took 228
# MiB beside their rows in float32 and 252 in int8, keys and values of cross-attention among them; this gives 264.
_WORK_PER_CHANNEL = 28


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The manifest's ``parameters`` for this family.

    ``language_ids`` (by ISO code) and ``task_ids`` are empty for models that know English alone.
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
class _Heard:
    """What belongs to a text on its way: whose it is, its language, and whether anybody spoke."""

    segment: SegmentJob
    language: str | None
    no_speech: float
    prompt_tokens: int


class WholeWindow:
    """The state of a segment that grows: none, for attention over the whole window changes every row."""

    settled = 0
    """See :class:`runtime.engines.base.LiveState`."""


class WhisperEngine:
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

    @classmethod
    def capabilities_of(cls, artifact: Artifact) -> Capabilities:
        """See :class:`runtime.families.Family`: models that know English alone have no tokens for other tasks."""
        parameters = _parameters(artifact)
        return msgspec.structs.replace(
            cls.capabilities,
            context=parameters.previous_id is not None,
            language_detection=bool(parameters.language_ids),
            translation="translate" in parameters.task_ids,
        )

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        manifest = self._manifest = artifact.manifest
        where = artifact.path / MANIFEST
        self._front_end = typed(artifact, manifest.front_end, LogMelConfig)
        self.parameters = parameters = _parameters(artifact)
        self.sample_rate = self._front_end.sample_rate
        # A window costs the encoder the same however much of it is audio, so it had better be full.
        self.segment_seconds = options.segment_seconds or parameters.segment_seconds
        if self.segment_seconds > parameters.segment_seconds:
            raise OptionError(
                f"segments of {self.segment_seconds:g} s are too long: this model is made for "
                f"{parameters.segment_seconds:g} s at most"
            )
        self.capabilities = self.capabilities_of(artifact)
        self._codes = {language.name: language.code for language in manifest.languages}
        self._names = {code: name for name, code in self._codes.items()}
        fixed = any(spec.fixed_windows for spec in options.providers_for("encoder"))
        self._encoder, self._decoder_session, self._tokenizer = load_together(
            lambda: open_graph(artifact, "encoder", options, {"clips": 1} if fixed else None),
            lambda: open_graph(artifact, "decoder", options),
            lambda: open_tokenizer(artifact),
        )
        self._decoder = CrossDecoder(
            self._decoder_session, manifest.graphs["decoder"], context_length=parameters.context_length
        )
        self._check_parameters(where)
        rules = TimestampRules(parameters.stop_id, parameters.no_timestamps_id, parameters.max_initial_timestamp)
        self._timestamps = rules
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

    def _check_parameters(self, where: object) -> None:
        """A manifest that contradicts its graphs or its tokenizer is found at load, not in the text."""
        decoder, parameters, tokenizer = self._decoder, self.parameters, self._tokenizer
        for key, found, said in (
            ("vocab_size", decoder.vocab_size, parameters.vocab_size),
            ("layers", decoder.layers, parameters.layers),
            ("heads", decoder.kv_heads, parameters.heads),
            ("head_dim", decoder.head_dim, parameters.head_dim),
            ("stop_id", tokenizer.token_to_id("<|endoftext|>"), parameters.stop_id),
            ("start_id", tokenizer.token_to_id("<|startoftranscript|>"), parameters.start_id),
            ("no_timestamps_id", tokenizer.token_to_id("<|notimestamps|>"), parameters.no_timestamps_id),
            *(
                (f"language_ids.{code}", tokenizer.token_to_id(f"<|{code}|>"), token)
                for code, token in parameters.language_ids.items()
            ),
        ):
            if found != said:
                raise ArtifactInvalidError(f"{where}: parameters.{key} is {said}, but graph or tokenizer have {found}")
        if missing := [code for code in self._names if parameters.language_ids and code not in parameters.language_ids]:
            raise ArtifactInvalidError(f"{where}: language {missing[0]!r} has no entry in parameters.language_ids")

    def transcribe(self, samples: Floats, options: SegmentOptions, timings: Timings) -> SegmentResult:
        """See :class:`runtime.engines.base.Engine`."""
        only = iter([SegmentJob(None, samples, options, timings, time.perf_counter())])
        ((_, result),) = self.run(lambda: next(only, None))
        return result

    def check(self, options: SegmentOptions) -> None:
        """See :class:`runtime.engines.base.Engine`."""
        parameters = self.parameters
        if not options.context:
            return
        context = self._context_ids(options.context)
        if special := [token for token in context if token >= parameters.stop_id]:
            token = self._tokenizer.id_to_token(special[0])
            raise OptionError(f"the context contains {token}, which means something else to the model; leave it out")
        # As in the model's training: the text before has at most half of the positions, its mark included.
        most = parameters.context_length // 2 - 1
        if len(context) > most:
            raise OptionError(f"the context has {len(context)} tokens; give a shorter one, of at most {most}")
        prompt = len(self.prompt_ids(next(iter(self._codes.values())), options))
        if parameters.context_length - prompt < (options.max_new_tokens or 1):
            raise OptionError(
                f"the prompt takes {prompt} of the {parameters.context_length} positions this model has; give a "
                "shorter context"
            )

    def run(self, next_job: Callable[[], SegmentJob | None]) -> Iterator[tuple[Any, SegmentResult]]:
        """See :class:`runtime.engines.base.Engine`. Segments are encoded one by one, when there is a row for each."""

        def encoded() -> tuple[_Heard, Job] | None:
            segment = next_job()
            return self._encode(segment) if segment else None

        def on_timing(stage: str, keys: Sequence[_Heard], seconds: float) -> None:
            for heard in keys:
                timings = heard.segment.timings
                timings.add(stage, seconds / len(keys))
                if stage == "prefill" and not timings.first_token:
                    timings.first_token = time.perf_counter() - heard.segment.began

        for heard, hypothesis in greedy_rows(
            self._decoder,
            encoded,
            lambda _: (self.plan.rows, self.plan.positions),
            [self.parameters.stop_id],
            on_timing=on_timing,
            is_cancelled=lambda heard: heard.segment.is_cancelled(),
        ):
            yield heard.segment.key, self._result(heard, hypothesis)

    def encode(self, samples: Floats, timings: Timings, features: Floats | None = None) -> list[Floats]:
        """Samples of at most a window, or features [mels, frames] of a whole one → keys and values of cross-attention,
        each [1, heads, positions, head_dim].
        """
        if features is None:
            with timings.measure("features"):
                features = log_mel(samples, self._front_end)
        with timings.measure("encode"):
            arrays: list[Floats] = self._encoder.run(self._decoder.cross_names, {"features": features[None]})
        return arrays

    def _encode(self, segment: SegmentJob) -> tuple[_Heard, Job]:
        options = segment.options
        audio = self.encode(segment.samples, segment.timings, segment.features)
        with segment.timings.measure("prefill"):
            first = self._decoder.look([self.parameters.start_id], audio)[0]
        no_speech = probability(first, self.parameters.no_speech_id)
        code = self._language(first, options.language)
        prompt = self.prompt_ids(code, options)
        seconds = len(segment.samples) / self.sample_rate
        budget = options.max_new_tokens or _TOKENS_AT_LEAST + math.ceil(seconds * _TOKENS_PER_SECOND)
        job = Job(
            prompt,
            audio,
            min(budget, self.parameters.context_length - len(prompt)),
            options.ignore_stop,
            options.repetition_penalty,
            _draft(segment.live) if segment.live else None,
            self._rules[options.timestamps],
        )
        return _Heard(segment, self._names[code], no_speech, len(prompt)), job

    def _language(self, first: Floats, asked: str | None) -> str:
        """Code of the language that was asked for, or of the likeliest by ``first``, the logits after the start."""
        if asked is not None:
            return self._codes[asked]
        if not self.parameters.language_ids:
            return next(iter(self._codes.values()))
        return likeliest_language(first, self.parameters.language_ids)[0]

    def prompt_ids(self, code: str, options: SegmentOptions) -> list[int]:
        """Token ids of the prompt: the context, the start, language and task, and whether there are timestamps."""
        parameters = self.parameters
        ids = [parameters.start_id]
        if options.context.strip() and parameters.previous_id is not None:
            ids = [parameters.previous_id, *self._context_ids(options.context), *ids]
        if parameters.language_ids:
            ids += [parameters.language_ids[code], parameters.task_ids[options.task]]
        return ids if options.timestamps else [*ids, parameters.no_timestamps_id]

    def _context_ids(self, context: str) -> list[int]:
        # Text goes on after a space, as it does in the middle of a transcript.
        return list(self._tokenizer.encode(" " + context.strip(), add_special_tokens=False).ids)

    def _result(self, heard: _Heard, hypothesis: Hypothesis) -> SegmentResult:
        segment = heard.segment
        ended = hypothesis.finish_reason == "stop"
        language, text = self.read(hypothesis.tokens, heard.language, ended=ended)
        reason: FinishReason = hypothesis.finish_reason
        logs = hypothesis.log_probabilities
        if not segment.options.ignore_stop:
            if logs and is_silence(heard.no_speech, float(np.mean(logs))):
                language, text, reason = None, "", "stop"
            elif repeats(text):
                reason = "repetition"
        timed = segment.options.timestamps and bool(text)
        return SegmentResult(
            text=text,
            language=language,
            tokens=hypothesis.tokens,
            confidence=hypothesis.confidence,
            finish_reason=reason,
            audio_tokens=self.parameters.audio_positions,
            prompt_tokens=heard.prompt_tokens,
            phrases=self._phrases(hypothesis.tokens, len(segment.samples)) if timed else [],
        )

    def _phrases(self, tokens: Sequence[int], samples: int) -> list[TimedText]:
        step, seconds = self.parameters.timestamp_seconds, samples / self.sample_rate
        found = phrases(tokens, self._timestamps, step, seconds)
        texts = [(phrase, self.read(phrase.tokens, None, ended=False)[1]) for phrase in found]
        return [TimedText(phrase.start, phrase.end, text, phrase.tokens) for phrase, text in texts if text]

    def long_form(self, samples: Floats, options: SegmentOptions, timings: Timings) -> LongForm:
        """See :class:`runtime.engines.base.LongFormEngine`."""
        frames_per_step = round(self.parameters.timestamp_seconds * self.sample_rate / self._front_end.hop_length)
        reading = Reading(
            self._timestamps,
            frames_per_step,
            lambda tokens: self.read(tokens, None, ended=False)[1],
            self._phrases,
        )
        return LongForm(samples, self._front_end, reading, options, timings)

    def live(self) -> WholeWindow:
        """See :class:`runtime.engines.base.Engine`."""
        return WholeWindow()

    def read(self, tokens: Sequence[int], language: str | None, *, ended: bool) -> tuple[str | None, str]:
        """See :class:`runtime.engines.base.Engine`."""
        text = [token for token in tokens if token < self.parameters.stop_id]
        decoded = self._tokenizer.decode(text, skip_special_tokens=False).strip()
        return language, decoded if ended else decoded.rstrip("\ufffd")  # a character that was cut between its bytes

    def probes(self, samples: Floats, tokens: list[int], options: SegmentOptions) -> list[Probe]:
        """See :class:`runtime.engines.base.Engine`: the encoder, then the decoder over prompt and text at once."""
        features = log_mel(samples, self._front_end)[None]
        names = self._decoder.cross_names
        audio = self._encoder.run(names, {"features": features})
        code = self._language(self._decoder.look([self.parameters.start_id], audio)[0], options.language)
        ids = np.array([[*self.prompt_ids(code, options), *tokens]], np.int64)
        feeds = self._decoder.feeds(ids, audio, keep=len(tokens) + 1)
        return [
            Probe("encoder", {"features": features}, names, rows=self.parameters.audio_positions),
            Probe("decoder", feeds, ["logits"], choice="logits", rows=ids.shape[1]),
        ]

    def run_probe(self, probe: Probe) -> list[npt.NDArray[Any]]:
        """See :class:`runtime.engines.base.Engine`."""
        session = self._encoder if probe.role == "encoder" else self._decoder_session
        outputs: list[npt.NDArray[Any]] = session.run(probe.outputs, probe.feeds)
        return outputs

    def placement(self) -> dict[str, dict[str, dict[str, int]]]:
        """See :class:`runtime.engines.base.Engine`."""
        return {"encoder": placement(self._encoder), "decoder": placement(self._decoder_session)}


def _parameters(artifact: Artifact) -> Parameters:
    return typed(artifact, artifact.manifest.parameters, Parameters)


def _draft(work: LiveWork) -> Draft | None:
    """The hypothesis before, verified in the prompt's pass. The end of a segment is decoded as it is offline, without
    one, unless some of its text is to stay.
    """
    if work.final and not work.forced:
        return None
    return Draft(tokens=work.draft, forced=work.forced)
