"""``stream``: speech to text while it is spoken, from a microphone, a pipe or a file."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from typing import Annotated

import typer

from runtime.audio import open_audio
from runtime.audio.live import LIVE_RATE, FileSource, LiveSource
from runtime.cli.common import (
    DecoderProviderOption,
    EncoderProviderOption,
    ModelOption,
    ProviderOption,
    SegmentOption,
    ThreadsOption,
    guarded,
)
from runtime.cli.follow import Follower, stopped_by_interrupt
from runtime.cli.live_output import JsonLines, Output, SrtCues, StreamFormat, TextLines, VttCues
from runtime.errors import AudioNotFoundError, DeviceError, OptionError
from runtime.transcriber import Transcriber

_MICROPHONE, _PIPE = "mic", "-"
_PIECE_SECONDS = 0.1


def stream(
    source: Annotated[
        str,
        typer.Argument(
            help="An audio file; - is standard input, raw s16le mono or any audio file; mic is the microphone.",
            metavar="FILE|-|mic",
        ),
    ] = _MICROPHONE,
    model: ModelOption = None,
    language: Annotated[str, typer.Option(help="English name or code of the language, or auto.")] = "auto",
    context: Annotated[str, typer.Option(help="Hot words or free text that decides between spellings.")] = "",
    format: Annotated[
        StreamFormat, typer.Option(help="Text, a line of JSON an event, or subtitles as their segments end.")
    ] = StreamFormat.txt,
    interval: Annotated[
        float, typer.Option(help="Seconds of new audio after which an open segment's text is told.")
    ] = 1.0,
    pause: Annotated[float, typer.Option(help="Seconds of silence that end a segment.")] = 0.8,
    segment_seconds: SegmentOption = None,
    stable: Annotated[
        bool, typer.Option("--stable/--no-stable", help="Report what will not change any more inside of open segments.")
    ] = True,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="Feed a file at the pace at which it was spoken.")
    ] = False,
    chunk: Annotated[
        float | None, typer.Option(help=f"Seconds of a piece of a file. [default: {_PIECE_SECONDS}]")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Standard input is raw samples, whatever it looks like.")] = False,
    raw_rate: Annotated[
        int | None, typer.Option(help=f"The same, and their rate in Hz. [default: {LIVE_RATE}]")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Microphone, by its number or a part of its name.")] = None,
    list_devices: Annotated[bool, typer.Option("--list-devices", help="List the microphones, and do no more.")] = False,
    provider: ProviderOption = None,
    encoder_provider: EncoderProviderOption = None,
    decoder_provider: DecoderProviderOption = None,
    threads: ThreadsOption = None,
    stats: Annotated[bool, typer.Option("--stats", help="Say at the end how fast it was, on standard error.")] = False,
) -> None:
    """Turn speech into text while it is spoken.

    On a terminal the text of the open segment changes in place: what is dim may still change. In a pipe each segment is
    a line as soon as it is final. Ctrl-C ends the stream: what was said until then is shown.
    """
    with guarded():
        if list_devices:
            _list_devices()
            return
        _check_options(source, realtime=realtime, chunk=chunk, raw=raw or raw_rate is not None, device=device)
        with closing(_output(format)) as output:
            with closing(_open(source, realtime, chunk, raw, raw_rate, device, output)) as heard:
                transcriber = Transcriber.from_artifact(
                    model,
                    provider=provider or "cpu",
                    encoder_provider=encoder_provider,
                    decoder_provider=decoder_provider,
                    threads=threads,
                    max_batch=1,
                    segment_seconds=segment_seconds,
                )
                text = transcriber.stream(
                    transcriber.resolve_language(language),
                    context,
                    sample_rate=heard.rate,
                    interval=interval,
                    pause=pause,
                    stable=stable,
                )
                if source == _MICROPHONE:
                    output.note(f"listening to {heard.name} at {heard.rate} Hz; Ctrl-C ends")
                follower = Follower(heard, text, output)
                with stopped_by_interrupt(heard) as interrupted:
                    failure = follower.run()
            if stats:
                output.note(follower.stats())
        if failure is not None:
            raise failure
        if interrupted() and source != _MICROPHONE:
            raise KeyboardInterrupt


def _check_options(source: str, *, realtime: bool, chunk: float | None, raw: bool, device: str | None) -> None:
    """Refuse what would have no effect."""
    if source in (_MICROPHONE, _PIPE) and (realtime or chunk is not None):
        option = "--realtime" if realtime else "--chunk"
        raise OptionError(f"{option} is for files; standard input and the microphone come at a pace of their own")
    if source != _PIPE and raw:
        raise OptionError("--raw and --raw-rate are for standard input; stream a raw file with `stream - --raw < FILE`")
    if source != _MICROPHONE and device is not None:
        raise OptionError("--device is for the microphone; leave the file away, or the device")


def _open(
    source: str,
    realtime: bool,
    chunk: float | None,
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
    piece = _PIECE_SECONDS if chunk is None else chunk
    return FileSource(open_audio(source, LIVE_RATE), source, piece=piece, realtime=realtime)


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
    from runtime.cli.live_view import TerminalView  # rich takes its time to import

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
