"""Audio → segments → engine → transcript."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime

from runtime import audio
from runtime.engines.base import DEFAULT_BATCH, Engine, EngineOptions, LongFormEngine, SegmentOptions, Span
from runtime.engines.batch_plan import BatchPlan
from runtime.errors import AsrError, OptionError
from runtime.families import check_request, make_engine
from runtime.host.cpu import lacks_vnni
from runtime.model.artifact import Artifact, open_artifact
from runtime.ort.providers import describe, parse_providers
from runtime.pipeline.join_text import join_texts
from runtime.pipeline.scheduler import File, Work
from runtime.pipeline.spans import segments_of
from runtime.pipeline.streaming import DEFAULT_LIVE, LiveOptions, LiveSession, Stream
from runtime.results import Segment, Task, Timings, TokenCounts, Transcript
from runtime.version import __version__

log = logging.getLogger(__name__)

AudioSource = str | os.PathLike[str] | BinaryIO | npt.NDArray[Any]


class Request(msgspec.Struct, frozen=True):
    """An audio to transcribe, and how; see :meth:`Transcriber.transcribe` for what the fields mean.

    ``known`` are segments that were heard before (see :meth:`Transcriber.transcribe_many`): where the audio is cut at
    the same places again, they are taken as they are. ``name`` is what error messages call a binary stream.
    """

    source: AudioSource
    language: str | None = None
    context: str = ""
    sample_rate: int | None = None
    channel: int | None = None
    known: Sequence[Span] = ()
    name: str = "standard input"
    timestamps: bool = False
    task: Task = "transcribe"


class Outcome(msgspec.Struct, frozen=True):
    """What became of the request at ``place``: a transcript, or what was wrong."""

    index: int
    transcript: Transcript | None = None
    error: AsrError | None = None

    def result(self) -> Transcript:
        """The transcript.

        Raises:
            AsrError: what was wrong.
        """
        if self.transcript is None:
            raise self.error or AssertionError("an outcome without transcript and error")
        return self.transcript


def default_model() -> Path:
    """The folder of the model that comes with the package."""
    package = Path(__file__).resolve().parent
    installed = package / "default_model"
    return installed if installed.is_dir() else package.parent / "artifacts" / "qwen3-asr-tiny-int8"


class Transcriber:
    """An opened model. One call at a time; use one transcriber a thread."""

    def __init__(self, artifact: Artifact, options: EngineOptions, *, vad: bool = True) -> None:
        """``vad``: look for speech and send nothing else to the model; without it every sample is sent."""
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
        self._vad = vad
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
        max_batch: int = DEFAULT_BATCH,
        memory: int | None = None,
        segment_seconds: float | None = None,
        vad: bool = True,
    ) -> Transcriber:
        """Open the model in ``path``, or the one that comes with the package.

        Args:
            path: an artifact's folder.
            provider: execution provider of every graph, ``NAME`` or ``NAME:key=value,…``, or several in order of
                priority; the CPU takes the nodes that they leave, and a warning says which.
            encoder_provider: the same of the encoder alone, in place of ``provider``.
            decoder_provider: the same of the decoder alone.
            threads: threads of a session; by default the cores this process may use.
            max_batch: most segments that are decoded together. More are faster, and each takes memory for its keys
                and values. The text is the same in float32; in 8 and 4 bits it can differ where two tokens are
                nearly as likely.
            memory: bytes that this process may have resident, which bounds the batch too; by default half of what the
                system has left.
            segment_seconds: longest segment, up to what the model is made for.
            vad: look for speech and send nothing else to the model; without it every sample is sent. Streams always
                look for speech: its pauses end their segments.

        Raises:
            ArtifactNotFoundError, ArtifactInvalidError, ProviderError, OptionError: see :mod:`runtime.errors`.
        """
        began = time.perf_counter()
        if threads is not None and threads < 1:
            raise OptionError(f"threads must be at least 1, not {threads}")
        if segment_seconds is not None and not segment_seconds >= 1:
            raise OptionError(f"segments must have at least 1 s, not {segment_seconds:g}")
        everywhere = parse_providers(provider)
        asked = {"encoder": encoder_provider, "decoder": decoder_provider}
        apart = {role: parse_providers(given) for role, given in asked.items() if given is not None}
        artifact = open_artifact(Path(path) if path is not None else default_model())
        graphs = artifact.manifest.graphs
        for role in apart:
            if role not in graphs:
                raise OptionError(
                    f"{role}_provider was given, but this model has no {role}, only {', '.join(graphs)}; "
                    "leave it out: provider is for all of them"
                )
        providers = dict.fromkeys(graphs, everywhere) | apart
        options = EngineOptions(providers, threads, max_batch, memory, segment_seconds)
        made = cls(artifact, options, vad=vad)
        made.load_seconds = time.perf_counter() - began
        return made

    @property
    def plan(self) -> BatchPlan:
        """How many segments are decoded together, and what memory that can take."""
        return self._engine.plan

    def transcribe(
        self,
        source: AudioSource,
        language: str | None = None,
        context: str = "",
        *,
        sample_rate: int | None = None,
        channel: int | None = None,
        timestamps: bool = False,
        task: Task = "transcribe",
        long_form: bool = False,
        max_new_tokens: int | None = None,
        ignore_stop: bool = False,
        on_progress: Callable[[float, float], object] | None = None,
    ) -> Transcript:
        """Transcribe one audio.

        Args:
            source: a path, a binary stream, or an array [n] or [n, channels] (which needs ``sample_rate``).
            language: English name or ISO code; None or ``auto`` detects it for each segment.
            context: hot words or free text that decides between spellings.
            sample_rate: of an array, in Hz.
            channel: use this channel, counted from 0, instead of the mean.
            timestamps: let the model say the times of parts of the text; each is then a segment of its own.
            task: `transcribe`, or `translate` into English.
            long_form: let the model itself say where each of its windows ends and the next begins, instead of cutting
                the audio at its pauses; with timestamps. All of the audio is read before the first text.
            max_new_tokens: bound on the tokens of a segment, in place of one from its length.
            ignore_stop: decode exactly ``max_new_tokens`` (to time random weights).
            on_progress: called with (seconds done, seconds in all, as far as is known) after every segment.

        Raises:
            OptionError: an unknown language, or an option that this model's family cannot do.
            AudioNotFoundError, AudioInvalidError, AudioUnsupportedError: see :mod:`runtime.audio`.
        """
        request = Request(source, language, context, sample_rate, channel, timestamps=timestamps, task=task)
        if long_form:
            self.check(request, long_form=True)
        prepared = self.prepare(0, request, max_new_tokens, ignore_stop)
        if long_form:
            return self._long_form(prepared, on_progress)
        work = Work(
            self._engine,
            [prepared],
            vad=self._vad,
            on_progress=(lambda file: on_progress(file.done, file.duration)) if on_progress else None,
        )
        (file,) = work.finished()
        if file.error:
            raise file.error
        return self.transcript_of(file)

    def _long_form(self, file: File, on_progress: Callable[[float, float], object] | None) -> Transcript:
        """Transcribe by the model's own rule for long audio."""
        if file.error or not file.reader:
            raise file.error or AssertionError("a file without reader and error")
        with file.reader as reader, file.timings.measure("segment"):
            samples = np.concatenate(list(reader.blocks()))
        engine = cast(LongFormEngine, self._engine)
        work = engine.long_form(samples, file.options, file.timings)
        rate = self._engine.sample_rate
        for _, result in self._engine.run(work.next_job):
            work.take(result)
            if on_progress:
                on_progress(work.done / rate, len(samples) / rate)
        file.timings.total = time.perf_counter() - file.began
        return self._transcript(work.spans, len(samples) / rate, file.timings)

    def transcribe_many(
        self,
        requests: Iterable[Request],
        *,
        max_new_tokens: int | None = None,
        ignore_stop: bool = False,
        on_progress: Callable[[float], object] | None = None,
        on_segment: Callable[[int, Span], object] | None = None,
    ) -> Iterator[Outcome]:
        """Transcribe many audios, segments of all of them decoded together.

        Args:
            requests: taken one by one, a little ahead of the decoding, by another thread.
            max_new_tokens: see :meth:`transcribe`.
            ignore_stop: see :meth:`transcribe`.
            on_progress: called with the seconds of audio that became done, after every segment.
            on_segment: called with a request's place and each of its segments that is done before the whole is, for
                whoever wants to go on from there another time.

        Yields:
            Each request's outcome as soon as it is there, so not in order. What is wrong with one stops no other.
        """
        done: dict[int, float] = {}

        def report(file: File) -> None:
            if on_progress:
                on_progress(file.done - done.get(file.index, 0.0))
            done[file.index] = file.done

        prepared = (self.prepare(index, request, max_new_tokens, ignore_stop) for index, request in enumerate(requests))
        noted = (lambda file, span: on_segment(file.index, span)) if on_segment else None
        for file in Work(self._engine, prepared, vad=self._vad, on_progress=report, on_segment=noted).finished():
            done.pop(file.index, None)
            yield Outcome(file.index, error=file.error) if file.error else Outcome(file.index, self.transcript_of(file))

    def live(self, language: str | None = None, context: str = "", live: LiveOptions = DEFAULT_LIVE) -> LiveSession:
        """What a stream needs but the engine: see :class:`runtime.pipeline.streaming.LiveSession`.

        Raises:
            OptionError: an unknown language, or an option that this model's family cannot do.
        """
        options = self._options(Request("", language, context), None, ignore_stop=False)
        return LiveSession(self._engine, options, live)

    def stream(
        self,
        language: str | None = None,
        context: str = "",
        *,
        sample_rate: int = 16_000,
        interval: float = 1.0,
        pause: float = 0.8,
        stable: bool = True,
    ) -> Stream:
        """Transcribe audio while it arrives.

        Args:
            language: see :meth:`transcribe`.
            context: see :meth:`transcribe`.
            sample_rate: of the samples that will be fed, in Hz.
            interval: seconds of new audio between partial texts.
            pause: seconds of silence that end a segment.
            stable: report what will not change inside of open segments.

        Raises:
            OptionError: an option that cannot be, or that this model's family cannot do.
        """
        return Stream(self._engine, self.live(language, context, LiveOptions(interval, pause, stable)), sample_rate)

    def _options(self, request: Request, max_new_tokens: int | None, *, ignore_stop: bool) -> SegmentOptions:
        """What a request asks of each segment.

        Raises:
            OptionError: what this model or its family cannot do.
        """
        language = self.check(request, forcing=ignore_stop)
        if ignore_stop and not max_new_tokens:
            raise OptionError("ignore_stop needs max_new_tokens: nothing else would end the text")
        options = SegmentOptions(
            language, request.context, max_new_tokens, ignore_stop, timestamps=request.timestamps, task=request.task
        )
        self._engine.check(options)
        return options

    def prepare(
        self, index: int, request: Request, max_new_tokens: int | None = None, ignore_stop: bool = False
    ) -> File:
        """A file for :class:`runtime.pipeline.scheduler.Work`, with its audio opened, or with what is wrong with the request.

        Whoever takes it closes its ``reader``.
        """
        file = File(index, self._engine.sample_rate, Timings(load=self.load_seconds))
        try:
            file.options = self._options(request, max_new_tokens, ignore_stop=ignore_stop)
            file.reader = self._reader(request)
            file.known = {(span.start, span.length): span for span in request.known}
        except AsrError as error:
            file.error = error
        return file

    def _reader(self, request: Request) -> audio.AudioReader:
        source, rate = request.source, self._engine.sample_rate
        if isinstance(source, np.ndarray):
            if request.sample_rate is None:
                raise OptionError("an array of samples needs sample_rate, in Hz")
            return audio.open_array(source, request.sample_rate, rate, request.channel)
        if request.sample_rate is not None:
            raise OptionError("sample_rate is for arrays; a file says its own")
        return audio.open_audio(source, rate, request.channel, name=request.name)

    def transcript_of(self, file: File) -> Transcript:
        """The transcript of a file that is complete and without error."""
        return self._transcript(file.spans, file.duration, file.timings)

    def _transcript(self, spans: Sequence[Span], duration: float, timings: Timings) -> Transcript:
        segments = [segment for span in spans for segment in segments_of(span, self._engine.sample_rate)]
        return Transcript(
            text=join_texts([segment.text for segment in segments]),
            language=_main_language([segment for segment in segments if segment.text]),
            duration=round(duration, 3),
            segments=segments,
            timings=timings,
            tokens=TokenCounts(
                audio=sum(span.result.audio_tokens for span in spans),
                prompt=sum(span.result.prompt_tokens for span in spans),
                generated=sum(len(span.result.tokens) for span in spans),
            ),
            model=self.artifact.manifest.name,
            provider=self._provider,
            versions={"asr-deploy": __version__, "onnxruntime": onnxruntime.__version__},
        )

    @property
    def engine(self) -> Engine:
        """The loaded model itself, for what measures and compares its graphs, and for what schedules its work."""
        return self._engine

    @property
    def vad(self) -> bool:
        """Whether speech is looked for and silence left out."""
        return self._vad

    def check(
        self, request: Request, *, long_form: bool = False, words: bool = False, forcing: bool = False
    ) -> str | None:
        """Find out before the work that this model cannot do what a request asks for; its audio is not looked at.

        Args:
            request: what is asked for.
            long_form: see :meth:`transcribe`.
            words: the times of words are asked for.
            forcing: that a text be of a given length.

        Returns:
            The language as the model knows it: see :meth:`resolve_language`.

        Raises:
            CapabilityError: this model cannot do it.
            OptionError: a language that it does not know.
        """
        return check_request(
            self.artifact.manifest,
            self.capabilities,
            language=request.language,
            context=request.context,
            timestamps=request.timestamps,
            task=request.task,
            long_form=long_form,
            words=words,
            forcing=forcing,
        )

    def resolve_language(self, language: str | None) -> str | None:
        """English name of a language given by name or code; None for None or ``auto``.

        Raises:
            CapabilityError: this model cannot be told a language, or knows another one alone.
            OptionError: unknown (the message has the near matches).
        """
        return self.check(Request("", language))


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
