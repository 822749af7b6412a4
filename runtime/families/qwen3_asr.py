"""Qwen3-ASR: log-mel → encoder windows → prompt with audio rows → greedy text → language and transcript.

Prompt, output format and encoder geometry are those of the published model; transformers ``models/qwen3_asr`` is the
reference that the tests compare with.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from runtime.artifact import MANIFEST, Artifact
from runtime.decoder import CausalDecoder
from runtime.decoding.autoregressive import Hypothesis, Job, greedy_rows
from runtime.engine import Capabilities, EngineOptions, Probe, SegmentOptions, SegmentResult, Timings
from runtime.errors import ArtifactInvalidError, OptionError
from runtime.features.log_mel import LogMelConfig, frame_count, log_mel
from runtime.session import make_session, placement

Floats = npt.NDArray[np.float32]

# Most text tokens a second of audio may give: more than any language spoken fast (the audio itself gives 13), so that
# a text is cut only when the model runs away. The constant covers the tag and very short clips.
_TOKENS_PER_SECOND = 15
_TOKENS_AT_LEAST = 32
# Bound on one call of the encoder (8 s each): more windows at once are no faster on a CPU, and each takes 200 MB of
# activations in float32 at 0.6B.
_WINDOWS_PER_CALL = 2

_HEADER = re.compile(r"^\s*language\s+(?P<name>[^<\n]*?)\s*<asr_text>", re.IGNORECASE)
# A header whose tag never came. Only exactly as the model writes it, for a transcript may begin with this word too.
_BARE_HEADER = re.compile(r"^language (?P<name>[A-Z][a-z]+)$")
_TAG = "<asr_text>"


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


def audio_token_count(frames: int, chunk_frames: int, chunk_tokens: int) -> int:
    """Audio tokens of ``frames`` mel frames: 13 a chunk of 100, and three halvings (rounded up) for the rest."""
    full, rest = divmod(frames, chunk_frames)
    for _ in range(3):
        rest = -(-rest // 2)
    return full * chunk_tokens + rest


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


class Qwen3AsrEngine:
    """An opened Qwen3-ASR artifact."""

    capabilities = Capabilities(context=True, language=True, language_detection=True)

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        manifest = artifact.manifest
        where = artifact.path / MANIFEST
        try:
            self._front_end = msgspec.convert(manifest.front_end, LogMelConfig)
            self.parameters = msgspec.convert(manifest.parameters, Parameters)
        except msgspec.ValidationError as error:
            raise ArtifactInvalidError(f"{where}: {error}; export the model again") from None
        self.sample_rate = self._front_end.sample_rate
        self.segment_seconds = self.parameters.segment_seconds
        self._tokenizer = Tokenizer.from_file(str(artifact.path / manifest.tokenizer))
        encoder_path, decoder_path = artifact.graph_path("encoder"), artifact.graph_path("decoder")
        providers = options.providers_for("encoder")
        self._fixed_windows = any(spec.fixed_windows for spec in providers)
        sizes = {"windows": 1, "frames": self.parameters.window_frames} if self._fixed_windows else None
        self._encoder = make_session(encoder_path, providers, threads=options.threads, dimensions=sizes)
        self._decoder_session = make_session(decoder_path, options.providers_for("decoder"), threads=options.threads)
        self._decoder = CausalDecoder(
            self._decoder_session,
            manifest.graphs["decoder"],
            audio_id=self.parameters.audio_pad_id,
            context_length=self.parameters.context_length,
        )
        self._check(where)

    def _check(self, where: object) -> None:
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

    def transcribe(self, samples: Floats, options: SegmentOptions, timings: Timings) -> SegmentResult:
        """See :class:`runtime.engine.Engine`."""
        ((_, result),) = self.transcribe_many([samples], options, timings, 1)
        return result

    def transcribe_many(
        self, segments: Sequence[Floats], options: SegmentOptions, timings: Timings, rows: int
    ) -> Iterator[tuple[int, SegmentResult]]:
        """See :class:`runtime.engine.Engine`. A segment is encoded when a row is free for it, and not before."""
        jobs: dict[int, Job] = {}

        def encoded() -> Iterator[Job]:
            for place, samples in enumerate(segments):
                jobs[place] = self._job(samples, options, timings)
                yield jobs[place]

        # Room for the longest: its audio may take all of a prompt but the text that does not depend on it.
        longest = max(map(len, segments))
        most_audio = self.audio_tokens(longest)
        prompt = len(self.prompt_ids(0, options.context, options.language)) + most_audio
        room = self.parameters.context_length - prompt
        self._check_room(prompt, room, options)
        positions = prompt + min(room, self._budget(longest, options))
        ended = greedy_rows(
            self._decoder,
            encoded(),
            min(rows, len(segments)),
            positions,
            self.parameters.stop_ids,
            never=[self.parameters.audio_pad_id],
            ignore_stop=options.ignore_stop,
            measure=timings.measure,
        )
        for place, hypothesis in ended:
            yield place, self._result(jobs.pop(place), hypothesis, options)

    def _budget(self, samples: int, options: SegmentOptions) -> int:
        """Most text tokens of a segment of so many samples."""
        seconds = samples / self.sample_rate
        return options.max_new_tokens or _TOKENS_AT_LEAST + math.ceil(seconds * _TOKENS_PER_SECOND)

    def _check_room(self, prompt: int, room: int, options: SegmentOptions) -> None:
        if room < 1 or (options.max_new_tokens and room < options.max_new_tokens):
            raise OptionError(
                f"the prompt takes {prompt} of the {self.parameters.context_length} positions this model was "
                "exported with; give a shorter context"
            )

    def _job(self, samples: Floats, options: SegmentOptions, timings: Timings) -> Job:
        with timings.measure("features"):
            features = log_mel(samples, self._front_end)
        with timings.measure("encode"):
            audio = self.encode(features)
        prompt = self.prompt_ids(len(audio), options.context, options.language)
        if prompt.count(self.parameters.audio_pad_id) != len(audio):
            raise OptionError("the context contains <|audio_pad|>, which marks where the audio goes; leave it out")
        room = self.parameters.context_length - len(prompt)
        return Job(prompt, audio, min(room, self._budget(len(samples), options)))

    def _result(self, job: Job, hypothesis: Hypothesis, options: SegmentOptions) -> SegmentResult:
        decoded = self._tokenizer.decode(hypothesis.tokens, skip_special_tokens=True)
        if hypothesis.finish_reason != "stop":
            decoded = decoded.rstrip("\ufffd")  # a character that was cut between its bytes
            if options.language is None and self.parameters.text_tag_id not in hypothesis.tokens:
                decoded = ""  # cut inside the header: nothing of the text is there yet
        language, text = parse_output(decoded, options.language)
        return SegmentResult(
            text=text,
            language=language,
            tokens=hypothesis.tokens,
            confidence=hypothesis.confidence,
            finish_reason=hypothesis.finish_reason,
            audio_tokens=len(job.audio),
            prompt_tokens=len(job.prompt),
        )

    def audio_tokens(self, samples: int) -> int:
        """Rows that the encoder gives for so many samples."""
        frames = frame_count(samples, self._front_end)
        return audio_token_count(frames, self.parameters.chunk_frames, self.parameters.chunk_tokens)

    def encode(self, features: Floats) -> Floats:
        """Features [mels, frames] → audio rows [tokens, hidden].

        Whole windows go through the encoder as a batch. The last, shorter one goes alone and only as wide as its chunks
        need, since a padded window costs as much as a full one.
        """
        rows: list[Floats] = []
        for windows, lengths in self._windows(features):
            output = self._run_encoder(windows, lengths)
            count = audio_token_count(lengths[-1], self.parameters.chunk_frames, self.parameters.chunk_tokens)
            rows += [*output[:-1], output[-1, :count]]
        return np.concatenate(rows)

    def _windows(self, features: Floats) -> Iterator[tuple[Floats, list[int]]]:
        """Features [mels, frames] → batches of windows [W, mels, width] with their valid frames."""
        width, chunk = self.parameters.window_frames, self.parameters.chunk_frames
        mels, frames = features.shape
        full, rest = divmod(frames, width)
        for start in range(0, full, _WINDOWS_PER_CALL):
            end = min(full, start + _WINDOWS_PER_CALL)
            windows = features[:, start * width : end * width].reshape(mels, end - start, width).transpose(1, 0, 2)
            yield np.ascontiguousarray(windows), [width] * (end - start)
        if rest:
            padded = -(-rest // chunk) * chunk
            yield np.pad(features[:, full * width :], ((0, 0), (0, padded - rest)))[None], [rest]

    def _run_encoder(self, windows: Floats, lengths: Sequence[int]) -> Floats:
        """Windows [W, mels, width] → rows [W, tokens, hidden]; of fixed size, they go one by one and of full width."""
        valid = np.array(lengths, np.int64)
        if not self._fixed_windows:
            output: Floats = self._encoder.run(["audio_embeds"], {"features": windows, "lengths": valid})[0]
            return output
        width, chunk = windows.shape[2], self.parameters.chunk_frames
        padded = np.pad(windows, ((0, 0), (0, 0), (0, self.parameters.window_frames - width)))
        rows: list[Floats] = [
            self._encoder.run(["audio_embeds"], {"features": padded[[at]], "lengths": valid[[at]]})[0]
            for at in range(len(windows))
        ]
        return np.concatenate(rows)[:, : width // chunk * self.parameters.chunk_tokens]

    def prompt_ids(self, audio_tokens: int, context: str, language: str | None) -> list[int]:
        """Token ids of the chat prompt, with ``audio_tokens`` placeholders."""
        pieces = self.parameters.prompt
        before = self._encode_text(pieces.before_context + context + pieces.before_audio)
        after = pieces.after_audio + (pieces.language.format(name=language) if language else "")
        return [*before, *[self.parameters.audio_pad_id] * audio_tokens, *self._encode_text(after)]

    def _encode_text(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def probes(self, samples: Floats, tokens: list[int], options: SegmentOptions) -> list[Probe]:
        """See :class:`runtime.engine.Engine`: the encoder's batches, then the decoder over prompt and text at once."""
        features = log_mel(samples, self._front_end)
        made = [
            Probe("encoder", {"features": windows, "lengths": np.array(lengths, np.int64)}, ["audio_embeds"])
            for windows, lengths in self._windows(features)
        ]
        audio = self.encode(features)
        ids = np.array([[*self.prompt_ids(len(audio), options.context, options.language), *tokens]], np.int64)
        feeds: dict[str, npt.NDArray[Any]] = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "audio_embeds": audio,
            "num_logits_to_keep": np.array([len(tokens) + 1], np.int64),
        }
        return [*made, Probe("decoder", feeds | self._decoder.empty_past(), ["logits"], choice="logits")]

    def run(self, probe: Probe) -> list[npt.NDArray[Any]]:
        """See :class:`runtime.engine.Engine`."""
        if probe.role == "encoder":
            return [self._run_encoder(probe.feeds["features"], probe.feeds["lengths"].tolist())]
        outputs: list[npt.NDArray[Any]] = self._decoder_session.run(probe.outputs, probe.feeds)
        return outputs

    def placement(self) -> dict[str, dict[str, dict[str, int]]]:
        """See :class:`runtime.engine.Engine`."""
        return {"encoder": placement(self._encoder), "decoder": placement(self._decoder_session)}
