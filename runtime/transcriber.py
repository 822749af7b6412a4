"""Audio → segments → engine → transcript."""

from __future__ import annotations

import difflib
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime

from runtime import audio
from runtime.artifact import Artifact, open_artifact
from runtime.cpu import lacks_vnni
from runtime.decoding.autoregressive import FinishReason
from runtime.engine import Engine, EngineOptions, SegmentOptions, SegmentResult, Timings
from runtime.errors import OptionError
from runtime.families import make_engine
from runtime.providers import describe, parse_providers
from runtime.segmentation import cut_points, join_texts
from runtime.version import __version__

log = logging.getLogger(__name__)

AudioSource = str | os.PathLike[str] | BinaryIO | npt.NDArray[Any]


class Segment(msgspec.Struct, frozen=True):
    """A piece of the audio that was decoded at once: times in seconds, confidence 0..1.

    ``tokens`` are the generated ids in the order of decoding, special ones (a header with the language) included, the
    stop id not.
    """

    start: float
    end: float
    text: str
    language: str | None
    confidence: float
    finish_reason: FinishReason
    tokens: list[int]


class TokenCounts(msgspec.Struct, frozen=True):
    """Over all segments: rows of audio, prompt positions (these rows included), generated text tokens."""

    audio: int
    prompt: int
    generated: int


class Transcript(msgspec.Struct, frozen=True):
    """The complete result. ``language`` is that of most of the speech, or None when nobody spoke."""

    text: str
    language: str | None
    duration: float
    segments: list[Segment]
    timings: Timings
    tokens: TokenCounts
    model: str
    provider: str
    versions: dict[str, str]


def default_model() -> Path:
    """The folder of the model that comes with the package."""
    package = Path(__file__).resolve().parent
    installed = package / "default_model"
    return installed if installed.is_dir() else package.parent / "artifacts" / "qwen3-asr-tiny-int8"


class Transcriber:
    """An opened model. One call at a time; use one transcriber a thread."""

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        began = time.perf_counter()
        self.artifact = artifact
        quantization = artifact.manifest.quantization
        if quantization and quantization.needs_vnni and lacks_vnni():
            log.warning(
                "%s: this processor has no VNNI, and the model's 8-bit products can saturate on it; "
                "quantize with --reduce-range",
                artifact.path,
            )
        self._engine = make_engine(artifact, options)
        self._provider = describe_roles(options, artifact.manifest.graphs)
        self.capabilities = self._engine.capabilities
        self.load_seconds = time.perf_counter() - began

    @classmethod
    def from_artifact(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        provider: str | Sequence[str] = "cpu",
        encoder_provider: str | Sequence[str] | None = None,
        decoder_provider: str | Sequence[str] | None = None,
        threads: int | None = None,
    ) -> Transcriber:
        """Open the model in ``path``, or the one that comes with the package.

        Args:
            path: an artifact's folder.
            provider: execution provider of every graph, ``NAME`` or ``NAME:key=value,…``, or several in order of
                priority; the CPU takes the nodes that they leave, and a warning says which.
            encoder_provider: the same of the encoder alone, in place of ``provider``.
            decoder_provider: the same of the decoder alone.
            threads: threads of a session; by default the cores this process may use.

        Raises:
            ArtifactNotFoundError, ArtifactInvalidError, ProviderError: see :mod:`runtime.errors`.
        """
        began = time.perf_counter()
        if threads is not None and threads < 1:
            raise OptionError(f"threads must be at least 1, not {threads}")
        everywhere = parse_providers(provider)
        asked = {"encoder": encoder_provider, "decoder": decoder_provider}
        apart = {role: parse_providers(given) for role, given in asked.items() if given is not None}
        artifact = open_artifact(Path(path) if path is not None else default_model())
        graphs = artifact.manifest.graphs
        for role in apart:
            if role not in graphs:
                raise OptionError(f"{role}_provider was given, but this model has no {role}, only {', '.join(graphs)}")
        options = EngineOptions(dict.fromkeys(graphs, everywhere) | apart, threads)
        made = cls(artifact, options)
        made.load_seconds = time.perf_counter() - began
        return made

    def transcribe(
        self,
        source: AudioSource,
        language: str | None = None,
        context: str = "",
        *,
        sample_rate: int | None = None,
        channel: int | None = None,
        max_new_tokens: int | None = None,
        ignore_stop: bool = False,
        max_batch: int = 1,
        progress: Callable[[float, float], object] | None = None,
    ) -> Transcript:
        """Transcribe one audio.

        Args:
            source: a path, a binary stream, or an array [n] or [n, channels] (which needs ``sample_rate``).
            language: English name or ISO code; None or ``auto`` detects it for each segment.
            context: hot words or free text that decides between spellings.
            sample_rate: of an array, in Hz.
            channel: use this channel, counted from 0, instead of the mean.
            max_new_tokens: bound on the tokens of a segment, in place of one from its length.
            ignore_stop: decode exactly ``max_new_tokens`` (to time random weights).
            max_batch: most segments that are decoded together. More are faster, and each takes memory for its keys
                and values. The text is the same in float32; in 8 and 4 bits it can differ where two tokens are
                nearly as likely.
            progress: called with (seconds done, seconds in all) after every segment.

        Raises:
            OptionError: an unknown language, or an option that this model's family cannot do.
            AudioNotFoundError, AudioInvalidError, AudioUnsupportedError: see :mod:`runtime.audio`.
        """
        options = SegmentOptions(self.resolve_language(language), context, max_new_tokens, ignore_stop)
        if context and not self.capabilities.context:
            raise OptionError(f"a context was given, but models of the family {self._family!r} cannot use one")
        if ignore_stop and not max_new_tokens:
            raise OptionError("ignore_stop needs max_new_tokens: nothing else would end the text")
        if max_batch < 1:
            raise OptionError(f"max_batch must be at least 1, not {max_batch}")
        samples = self._load(source, sample_rate, channel)
        rate = self._engine.sample_rate
        timings = Timings(load=self.load_seconds)
        spans = cut_points(samples, rate, self._engine.segment_seconds)
        pieces = [samples[start:end] for start, end in spans]
        results: dict[int, SegmentResult] = {}
        done = 0
        for place, result in self._engine.transcribe_many(pieces, options, timings, max_batch):
            results[place] = result
            done += len(pieces[place])
            if progress:
                progress(done / rate, len(samples) / rate)
        ordered = [results[place] for place in range(len(spans))]
        segments = [
            Segment(
                start=round(start / rate, 3),
                end=round(end / rate, 3),
                text=result.text,
                language=result.language,
                confidence=round(result.confidence, 4),
                finish_reason=result.finish_reason,
                tokens=result.tokens,
            )
            for (start, end), result in zip(spans, ordered, strict=True)
        ]
        spoken = [segment for segment in segments if segment.text]
        return Transcript(
            text=join_texts([segment.text for segment in segments]),
            language=_main_language(spoken),
            duration=round(len(samples) / rate, 3),
            segments=segments,
            timings=timings,
            tokens=TokenCounts(
                audio=sum(result.audio_tokens for result in ordered),
                prompt=sum(result.prompt_tokens for result in ordered),
                generated=sum(len(result.tokens) for result in ordered),
            ),
            model=self.artifact.manifest.name,
            provider=self._provider,
            versions={"asr-deploy": __version__, "onnxruntime": onnxruntime.__version__},
        )

    def _load(self, source: AudioSource, sample_rate: int | None, channel: int | None) -> npt.NDArray[np.float32]:
        rate = self._engine.sample_rate
        if isinstance(source, np.ndarray):
            if sample_rate is None:
                raise OptionError("an array of samples needs sample_rate, in Hz")
            return audio.from_array(source, sample_rate, rate, channel)
        if sample_rate is not None:
            raise OptionError("sample_rate is for arrays; a file says its own")
        return audio.load_audio(source, rate, channel)

    @property
    def engine(self) -> Engine:
        """The loaded model itself, for what measures and compares its graphs."""
        return self._engine

    @property
    def _family(self) -> str:
        return self.artifact.manifest.family

    def resolve_language(self, language: str | None) -> str | None:
        """English name of a language given by name or code; None for None or ``auto``.

        Raises:
            OptionError: unknown (the message has the near matches), or the family cannot be told a language.
        """
        if language is None or language.strip().lower() == "auto":
            return None
        if not self.capabilities.language:
            raise OptionError(f"a language was given, but models of the family {self._family!r} cannot be told one")
        known = self.artifact.manifest.languages
        wanted = language.strip().lower()
        for entry in known:
            if wanted in (entry.name.lower(), entry.code.lower()):
                return entry.name
        spellings = {entry.name.lower(): entry for entry in known} | {entry.code.lower(): entry for entry in known}
        near = [spellings[key] for key in difflib.get_close_matches(wanted, spellings, n=3, cutoff=0.6)]
        listed = ", ".join(dict.fromkeys(f"{entry.name} ({entry.code})" for entry in near or known))
        raise OptionError(f"unknown language {language!r}; {'did you mean' if near else 'this model knows'} {listed}")


def describe_roles(options: EngineOptions, roles: Iterable[str]) -> str:
    """Execution providers as a transcript names them: once where all graphs have the same, else for each graph."""
    said = {role: describe(options.providers_for(role)) for role in roles}
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    return ", ".join(f"{role} {providers}" for role, providers in said.items())


def _main_language(segments: list[Segment]) -> str | None:
    seconds: dict[str, float] = {}
    for segment in segments:
        if segment.language:
            seconds[segment.language] = seconds.get(segment.language, 0.0) + segment.end - segment.start
    return max(seconds, key=lambda name: seconds[name]) if seconds else None
