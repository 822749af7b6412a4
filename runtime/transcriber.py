"""The public façade: open an artifact and transcribe audio."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from runtime import audio
from runtime.engines.base import DEFAULT_BATCH, Engine, EngineOptions, SegmentOptions, Span
from runtime.engines.batch_plan import BatchPlan
from runtime.errors import AsrError, OptionError
from runtime.families import check_request, make_engine
from runtime.host.cpu import lacks_vnni
from runtime.model.artifact import Artifact, open_artifact
from runtime.model.bundled import default_model
from runtime.ort.providers import describe, parse_providers
from runtime.pipeline.audio_file import AudioFile
from runtime.pipeline.join_text import join_texts
from runtime.pipeline.scheduler import SegmentScheduler
from runtime.pipeline.spans import segments_of
from runtime.pipeline.streaming import DEFAULT_LIVE, LiveOptions, LiveSession, Stream
from runtime.requests import AudioSource, Outcome, Request, ValidatedRequest
from runtime.results import Segment, Task, Timings, TokenCounts, Transcript
from runtime.version import __version__

log = logging.getLogger(__name__)

__all__ = ["AudioSource", "Outcome", "Request", "Transcriber", "ValidatedRequest"]


class Transcriber:
    """An opened model. Not thread-safe: use one transcriber for each thread."""

    def __init__(self, artifact: Artifact, options: EngineOptions, *, vad: bool = True) -> None:
        """Open ``artifact``; ``vad`` detects speech and leaves silence out, otherwise every sample is decoded."""
        start = time.perf_counter()
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
        self.load_seconds = time.perf_counter() - start

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
        """Open the model in ``path``, or the bundled one.

        Args:
            path: an artifact's folder; None opens the bundled model.
            provider: execution provider of every graph, ``NAME`` or ``NAME:key=value,…``, or several in order of
                priority. The CPU runs the nodes that they leave, and a warning lists these.
            encoder_provider: providers of the encoder, instead of ``provider``.
            decoder_provider: providers of the decoder, instead of ``provider``.
            threads: threads of a session, at least 1; by default the cores that this process may use.
            max_batch: largest number of segments decoded together. More are faster, and each takes memory for its keys
                and values. The text is the same in float32; in 8 and 4 bits it can differ where two tokens are almost
                equally likely.
            memory: resident bytes that this process may have, which bounds the batch too; by default half of the free
                memory.
            segment_seconds: longest segment in seconds, at least 1 and at most the model's limit.
            vad: detect speech and leave silence out; otherwise every sample is decoded. Streams always detect speech:
                pauses end their segments.

        Raises:
            ArtifactNotFoundError: no such folder, a file of the artifact is missing, or there is no bundled model.
            ArtifactInvalidError: the manifest is wrong, or a file differs from it.
            ProviderError: a provider is missing, inactive, or refuses a graph.
            OptionError: an option is out of range, or too little memory for one row.
        """
        start = time.perf_counter()
        if threads is not None and threads < 1:
            raise OptionError(f"threads must be at least 1, not {threads}")
        if segment_seconds is not None and not segment_seconds >= 1:
            raise OptionError(f"segments must have at least 1 s, not {segment_seconds:g}")
        default = parse_providers(provider)
        by_role = {"encoder": encoder_provider, "decoder": decoder_provider}
        own = {role: parse_providers(names) for role, names in by_role.items() if names is not None}
        artifact = open_artifact(Path(path) if path is not None else default_model())
        graphs = artifact.manifest.graphs
        for role in own:
            if role not in graphs:
                raise OptionError(
                    f"{role}_provider was given, but this model has no {role}, only {', '.join(graphs)}; "
                    "leave it out: provider applies to all graphs"
                )
        providers = dict.fromkeys(graphs, default) | own
        options = EngineOptions(providers, threads, max_batch, memory, segment_seconds)
        transcriber = cls(artifact, options, vad=vad)
        transcriber.load_seconds = time.perf_counter() - start
        return transcriber

    @property
    def plan(self) -> BatchPlan:
        """Segments that are decoded together, and the memory that this can take."""
        return self._engine.plan

    @property
    def engine(self) -> Engine:
        """The loaded model, for benchmarks, comparisons and the server's scheduler."""
        return self._engine

    @property
    def audio_in_prompt(self) -> bool:
        """Whether prompt positions in :class:`TokenCounts` include the audio's rows."""
        return self._engine.audio_in_prompt

    @property
    def vad(self) -> bool:
        """Whether speech is detected and silence left out."""
        return self._vad

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
        track: int | None = None,
        max_new_tokens: int | None = None,
        ignore_stop: bool = False,
        on_progress: Callable[[float, float], object] | None = None,
    ) -> Transcript:
        """Transcribe one audio; :class:`runtime.requests.Request` documents the options up to ``long_form``.

        Args:
            source: a path, a binary stream, or an array [n] or [n, channels].
            language: English name or ISO code; None or ``auto`` detects it for each segment.
            context: hot words or free text that guides spelling.
            sample_rate: of an array, in Hz.
            channel: channel to use, counted from 0, instead of the mean.
            timestamps: let the model time the parts of its text.
            task: ``transcribe``, or ``translate`` into English.
            long_form: decode by the model's own windows.
            track: audio track of a container, counted from 0, instead of its default one.
            max_new_tokens: largest number of tokens of a segment, instead of a limit from its length.
            ignore_stop: decode exactly ``max_new_tokens`` (to time random weights).
            on_progress: called with (seconds done, seconds in all as far as known) after every segment.

        Raises:
            OptionError: an unknown language, or an option that this model cannot do.
            AudioNotFoundError: no such file.
            AudioInvalidError: the audio is damaged, empty or truncated.
            AudioUnsupportedError: no installed decoder reads the format.
        """
        request = Request(
            source,
            language,
            context,
            sample_rate,
            channel,
            timestamps=timestamps,
            task=task,
            long_form=long_form,
            track=track,
        )
        start = time.perf_counter()
        validated = self.validate(request, max_new_tokens=max_new_tokens, ignore_stop=ignore_stop)
        file = self.open_file(0, validated, start)
        report = (lambda file: on_progress(file.done, file.duration)) if on_progress else None
        (file,) = SegmentScheduler(self._engine, [file], vad=self._vad, on_progress=report).run()
        if file.error:
            raise file.error
        return self.transcript_of(file)

    def transcribe_many(
        self,
        requests: Iterable[Request],
        *,
        max_new_tokens: int | None = None,
        ignore_stop: bool = False,
        on_progress: Callable[[float], object] | None = None,
        on_segment: Callable[[int, Span], object] | None = None,
    ) -> Iterator[Outcome]:
        """Transcribe many audios; segments of all of them are decoded together.

        Args:
            requests: taken one by one, slightly ahead of decoding, in another thread.
            max_new_tokens: largest number of tokens of a segment, instead of a limit from its length.
            ignore_stop: decode exactly ``max_new_tokens``.
            on_progress: called with the seconds of audio that were just decoded, after every segment.
            on_segment: called with a request's index and each segment that is done before its audio is complete; store
                them to resume later with ``Request.known``.

        Yields:
            Each request's outcome as soon as it is complete, in the order of completion. An error in one request does
            not stop the others.
        """
        done: dict[int, float] = {}

        def report(file: AudioFile) -> None:
            if on_progress:
                on_progress(file.done - done.get(file.index, 0.0))
            done[file.index] = file.done

        files = (
            self._try_open(index, request, max_new_tokens, ignore_stop=ignore_stop)
            for index, request in enumerate(requests)
        )
        on_span = (lambda file, span: on_segment(file.index, span)) if on_segment else None
        scheduler = SegmentScheduler(self._engine, files, vad=self._vad, on_progress=report, on_segment=on_span)
        for file in scheduler.run():
            done.pop(file.index, None)
            yield Outcome(file.index, error=file.error) if file.error else Outcome(file.index, self.transcript_of(file))

    def live(
        self,
        language: str | None = None,
        context: str = "",
        live: LiveOptions = DEFAULT_LIVE,
        *,
        shorten_context: bool = False,
    ) -> LiveSession:
        """Return a stream apart from its engine, for callers that schedule the engine themselves.

        ``shorten_context`` is that of :meth:`validate`.

        Raises:
            OptionError: an unknown language, or an option that this model cannot do.
        """
        validated = self.validate(Request("", language, context), shorten_context=shorten_context)
        return LiveSession(self._engine, validated.options, live)

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
        """Open a stream that transcribes audio while it arrives.

        Args:
            language: English name or ISO code; None or ``auto`` detects it for each segment.
            context: hot words or free text that guides spelling.
            sample_rate: of the samples that will be fed, in Hz.
            interval: seconds of new audio between partial texts, 0.1 to 60.
            pause: seconds of silence that end a segment.
            stable: report text of open segments that will not change.

        Raises:
            OptionError: an option is out of range, or this model cannot do it.
        """
        return Stream(self._engine, self.live(language, context, LiveOptions(interval, pause, stable)), sample_rate)

    def validate(
        self,
        request: Request,
        *,
        words: bool = False,
        max_new_tokens: int | None = None,
        ignore_stop: bool = False,
        shorten_context: bool = False,
    ) -> ValidatedRequest:
        """Validate a request's options against this model, once; its audio is not opened.

        Args:
            request: the request.
            words: word times are needed.
            max_new_tokens: largest number of tokens of a segment, instead of a limit from its length.
            ignore_stop: decode exactly ``max_new_tokens``.
            shorten_context: keep the last tokens of a context that is too long, instead of refusing it.

        Raises:
            CapabilityError: this model cannot do something that the request needs.
            OptionError: an unknown language, or a context that is too long or contains a reserved token.
        """
        language = self.check(request, words=words, forcing=ignore_stop)
        if ignore_stop and not max_new_tokens:
            raise OptionError("ignore_stop needs max_new_tokens: nothing else ends the text")
        options = SegmentOptions(
            language,
            request.context,
            max_new_tokens,
            ignore_stop,
            timestamps=request.timestamps,
            task=request.task,
        )
        dropped = 0
        if shorten_context and options.context:
            options, dropped = self._engine.shorten_context(options)
        self._engine.check(options)
        return ValidatedRequest(request, options, dropped)

    def check(self, request: Request, *, words: bool = False, forcing: bool = False) -> str | None:
        """Check capabilities and language of a request without looking at its context; faster than :meth:`validate`.

        Args:
            request: the request.
            words: word times are needed.
            forcing: a text of a given length is needed.

        Returns:
            English name of the language; None to detect it.

        Raises:
            CapabilityError: this model cannot do something that the request needs.
            OptionError: an unknown language; the message lists similar ones.
        """
        return check_request(
            self.artifact.manifest,
            self.capabilities,
            language=request.language,
            context=request.context,
            timestamps=request.timestamps,
            task=request.task,
            long_form=request.long_form,
            words=words,
            forcing=forcing,
        )

    def resolve_language(self, language: str | None) -> str | None:
        """Return the English name of a language given by name or code; None for None or ``auto``.

        Raises:
            CapabilityError: this model takes no language, or has another one only.
            OptionError: an unknown language; the message lists similar ones.
        """
        return self.check(Request("", language))

    def open_file(self, index: int, validated: ValidatedRequest, began: float | None = None) -> AudioFile:
        """Open a request's audio for :class:`runtime.pipeline.scheduler.SegmentScheduler`, which closes its reader.

        Args:
            index: the request's input position.
            validated: from :meth:`validate`.
            began: start of the request (``time.perf_counter``), from which its total time counts; by default now.

        Raises:
            OptionError: an array without sample rate, or a file with one.
            AudioNotFoundError: no such file.
            AudioInvalidError: the audio is damaged, empty or truncated.
            AudioUnsupportedError: no installed decoder reads the format.
        """
        request, start = validated.request, time.perf_counter() if began is None else began
        warnings: list[str] = []
        return AudioFile(
            index,
            self._engine.sample_rate,
            Timings(load=self.load_seconds),
            start,
            reader=self._reader(request, warnings.append),
            options=validated.options,
            use_long_form=request.long_form,
            known={(span.start, span.length): span for span in request.known},
            warnings=warnings,
        )

    def _try_open(self, index: int, request: Request, max_new_tokens: int | None, *, ignore_stop: bool) -> AudioFile:
        """Validate and open a request; an error becomes the file's."""
        start = time.perf_counter()
        try:
            validated = self.validate(request, max_new_tokens=max_new_tokens, ignore_stop=ignore_stop)
            return self.open_file(index, validated, start)
        except AsrError as error:
            timings = Timings(load=self.load_seconds)
            return AudioFile(index, self._engine.sample_rate, timings, error=error)

    def _reader(self, request: Request, warn: Callable[[str], object]) -> audio.AudioReader:
        source, rate = request.source, self._engine.sample_rate
        if isinstance(source, np.ndarray):
            if request.sample_rate is None:
                raise OptionError("an array of samples needs sample_rate, in Hz")
            if request.track is not None:
                raise OptionError("track is for files; an array has no tracks", "track")
            return audio.open_array(source, request.sample_rate, rate, request.channel, warn=warn)
        if request.sample_rate is not None:
            raise OptionError("sample_rate is for arrays only; a file has its own")
        return audio.open_audio(source, rate, request.channel, track=request.track, name=request.name, warn=warn)

    def transcript_of(self, file: AudioFile) -> Transcript:
        """Return the transcript of a file that is complete and has no error."""
        spans = file.spans
        segments = [segment for span in spans for segment in segments_of(span, self._engine.sample_rate)]
        return Transcript(
            text=join_texts([segment.text for segment in segments]),
            language=_main_language([segment for segment in segments if segment.text]),
            duration=round(file.duration, 3),
            segments=segments,
            timings=file.timings,
            tokens=TokenCounts(
                audio=sum(span.result.audio_tokens for span in spans),
                prompt=sum(span.result.prompt_tokens for span in spans),
                generated=sum(len(span.result.tokens) for span in spans),
            ),
            model=self.artifact.manifest.name,
            provider=self._provider,
            versions={"asr-deploy": __version__, "onnxruntime": onnxruntime.__version__},
            warnings=list(file.warnings),
        )


def describe_roles(options: EngineOptions, roles: Iterable[str]) -> str:
    """Return the execution providers as a transcript names them: once if all graphs share them, else for each graph."""
    by_role = {role: describe(options.providers_for(role)) for role in roles}
    if len(set(by_role.values())) == 1:
        return next(iter(by_role.values()))
    return ", ".join(f"{role} {providers}" for role, providers in by_role.items())


def _main_language(segments: list[Segment]) -> str | None:
    """Return the language of most seconds; None without any."""
    seconds: dict[str, float] = {}
    for segment in segments:
        if segment.language:
            seconds[segment.language] = seconds.get(segment.language, 0.0) + segment.end - segment.start
    return max(seconds, key=lambda name: seconds[name]) if seconds else None
