"""The command ``stream``: transcribe live speech from a microphone, a pipe or a file."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from typing import Annotated

import typer

from runtime.audio import open_audio
from runtime.audio.live import LIVE_RATE, FileSource, LiveSource
from runtime.cli.common import (
    ContextOption,
    DecoderProviderOption,
    EncoderProviderOption,
    LanguageOption,
    ModelOption,
    ProviderOption,
    SegmentOption,
    ThreadsOption,
    TrackOption,
    guarded,
)
from runtime.cli.follow import Follower, stopped_by_interrupt
from runtime.cli.live_output import JsonLines, Output, SrtCues, StreamFormat, TextLines, VttCues
from runtime.errors import AudioNotFoundError, DeviceError, OptionError
from runtime.transcriber import Transcriber

_MICROPHONE, _PIPE = "mic", "-"
_CHUNK_SECONDS = 0.1


def stream(
    source: Annotated[
        str,
        typer.Argument(
            help="Audio file; - for standard input (raw s16le mono samples or an audio file); mic for the microphone.",
            metavar="FILE|-|mic",
        ),
    ] = _MICROPHONE,
    model: ModelOption = None,
    language: LanguageOption = "auto",
    context: ContextOption = "",
    format: Annotated[
        StreamFormat, typer.Option(help="Text, a line of JSON for each event, or subtitles as segments end.")
    ] = StreamFormat.txt,
    interval: Annotated[
        float, typer.Option(help="Update the text of the open segment after this many seconds of new audio, 0.1 to 60.")
    ] = 1.0,
    pause: Annotated[float, typer.Option(help="Seconds of silence that end a segment, 0.5 to 60.")] = 0.8,
    segment_seconds: SegmentOption = None,
    stable: Annotated[
        bool,
        typer.Option(
            "--stable/--no-stable", help="Mark the part of an open segment's text that will not change any more."
        ),
    ] = True,
    realtime: Annotated[bool, typer.Option("--realtime", help="Read a file at the speed of speech.")] = False,
    chunk: Annotated[
        float | None,
        typer.Option(help=f"Length of the chunks of a file in seconds, 0.01 to 10. [default: {_CHUNK_SECONDS}]"),
    ] = None,
    track: TrackOption = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Read standard input as raw s16le mono samples, without format detection.")
    ] = False,
    raw_rate: Annotated[
        int | None,
        typer.Option(help=f"Sample rate of raw samples in Hz, 8000 to 192000; implies --raw. [default: {LIVE_RATE}]"),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Microphone, by its number or a part of its name. [default: that of the system]"),
    ] = None,
    list_devices: Annotated[bool, typer.Option("--list-devices", help="List the microphones and exit.")] = False,
    provider: ProviderOption = None,
    encoder_provider: EncoderProviderOption = None,
    decoder_provider: DecoderProviderOption = None,
    threads: ThreadsOption = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Print audio length, compute time and latency to standard error at the end.")
    ] = False,
) -> None:
    """Transcribe live speech.

    On a terminal the text of the open segment is updated in place; dim text may still change. In a pipe each segment is
    written as a line when it is final. Ctrl-C ends the stream after the text of the audio so far.
    """
    with guarded():
        if list_devices:
            _list_devices()
            return
        _check_options(
            source, realtime=realtime, chunk=chunk, track=track, raw=raw or raw_rate is not None, device=device
        )
        with closing(_output(format)) as output:
            with closing(_open(source, realtime, chunk, track, raw, raw_rate, device, output)) as live_source:
                transcriber = Transcriber.from_artifact(
                    model,
                    provider=provider or "cpu",
                    encoder_provider=encoder_provider,
                    decoder_provider=decoder_provider,
                    threads=threads,
                    max_batch=1,
                    segment_seconds=segment_seconds,
                )
                live_stream = transcriber.stream(
                    transcriber.resolve_language(language),
                    context,
                    sample_rate=live_source.rate,
                    interval=interval,
                    pause=pause,
                    stable=stable,
                )
                if source == _MICROPHONE:
                    output.note(f"listening to {live_source.name} at {live_source.rate} Hz; Ctrl-C ends")
                follower = Follower(live_source, live_stream, output)
                with stopped_by_interrupt(live_source) as interrupted:
                    failure = follower.run()
            if stats:
                output.note(follower.stats())
        if failure is not None:
            raise failure
        if interrupted() and source != _MICROPHONE:
            raise KeyboardInterrupt


def _check_options(
    source: str, *, realtime: bool, chunk: float | None, track: int | None, raw: bool, device: str | None
) -> None:
    """Reject options that have no effect on the source.

    Raises:
        OptionError: an option is for another kind of source.
    """
    if source in (_MICROPHONE, _PIPE) and (realtime or chunk is not None or track is not None):
        option = "--realtime" if realtime else "--chunk" if chunk is not None else "--track"
        raise OptionError(f"{option} is for files; leave it out for standard input and the microphone")
    if source != _PIPE and raw:
        raise OptionError("--raw and --raw-rate are for standard input; stream a raw file with `stream - --raw < FILE`")
    if source != _MICROPHONE and device is not None:
        raise OptionError("--device is for the microphone; leave out the file or the device")


def _open(
    source: str,
    realtime: bool,
    chunk: float | None,
    track: int | None,
    raw: bool,
    raw_rate: int | None,
    device: str | None,
    output: Output,
) -> LiveSource:
    def warn(text: str) -> None:
        output.note(f"warning: {text}")

    if source == _MICROPHONE:
        from runtime.audio.microphone import Microphone

        return Microphone(device, warn=warn)
    if source == _PIPE:
        from runtime.audio.pipe import open_pipe

        if sys.stdin is None:
            raise AudioNotFoundError("standard input: is closed")
        if sys.stdin.isatty():
            raise OptionError("standard input is a terminal; pipe audio into this command, or give a file or mic")
        return open_pipe(sys.stdin.buffer, raw=raw, raw_rate=raw_rate, warn=warn)
    piece = _CHUNK_SECONDS if chunk is None else chunk
    return FileSource(open_audio(source, LIVE_RATE, track=track, warn=warn), source, piece=piece, realtime=realtime)


def _output(format: StreamFormat) -> Output:
    match format:
        case StreamFormat.json:
            return JsonLines(sys.stdout)
        case StreamFormat.srt:
            return SrtCues(sys.stdout)
        case StreamFormat.vtt:
            return VttCues(sys.stdout)
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return TextLines(sys.stdout)
    from runtime.cli.live_view import TerminalView  # imports rich, which is slow

    return TerminalView(sys.stdout, styled=not os.environ.get("NO_COLOR"))


def _list_devices() -> None:
    from runtime.audio.microphone import input_devices

    devices = input_devices()
    if not devices:
        raise DeviceError("this machine has no microphone")
    for device in devices:
        channels = f"{device.channels} {'channel' if device.channels == 1 else 'channels'}"
        default = "  (default)" if device.default else ""
        typer.echo(f"{device.number:>3}  {device.name}, {device.system}: {channels}, {device.rate:g} Hz{default}")
