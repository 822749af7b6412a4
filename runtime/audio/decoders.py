"""Decode audio files: with libsndfile, and what it refuses with the optional package PyAV."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import PurePath

import soundfile

from runtime.audio.av_decoder import av_decoder
from runtime.audio.containers import flac, mpeg, ogg, riff
from runtime.audio.containers.byte_ranges import ByteStream, CallbackStream
from runtime.audio.containers.ends import iff_breaks_off
from runtime.audio.containers.formats import container_of
from runtime.audio.decoded import DecodedAudio, Piece, Warn, block_frames
from runtime.audio.levels import FloatRange, peak
from runtime.audio.quiet import quiet_c_stderr
from runtime.errors import AudioInvalidError, OptionError

# Containers of which libsndfile reads some codecs, and None: it recognizes more than containers.formats.
_SNDFILE = frozenset({"wav", "w64", "ogg", "flac", "mp3", "caf", "aiff", "au", "g722", "g726", None})
_FLOATS = ("FLOAT", "DOUBLE")
# The length of an MP3 is a count of frames, of which encoders leave out or add one or two.
_MPEG_TOLERANCE = 2 * 1152


def decoder(stream: ByteStream, name: str, opened: ExitStack, *, track: int | None, warn: Warn) -> DecodedAudio:
    """Recognize the container and read its header.

    Args:
        stream: seekable stream with the whole file.
        name: name of the audio, for messages; its suffix tells formats without a header.
        opened: receives the resources that must be closed.
        track: index of the audio track; the default one if None.
        warn: called with a message about audio that was changed to be read.

    Raises:
        AudioInvalidError: the file is empty, not audio, or breaks off. Reading the pieces raises it too, for damaged or
            truncated audio.
        AudioUnsupportedError: the container needs PyAV, which is not installed.
        OptionError: the file has no such track.
    """
    size = stream.seek(0, io.SEEK_END)
    if size == 0:
        raise AudioInvalidError(f"{name}: is empty (0 bytes)")
    container = container_of(stream, size, PurePath(name).suffix.lower())
    parts, is_mpeg = _parts(stream, size, container, name)
    reason = ""
    if container in _SNDFILE and not (track is not None and container == "ogg"):
        try:
            first = _SoundFile(parts[0], name, opened, warn, is_mpeg=is_mpeg)
        except soundfile.LibsndfileError as error:
            reason = str(error.error_string).strip().rstrip(".")
        else:
            if track:
                raise OptionError(f"{name}: has no audio track {track}; it has 0", "track")
            following = partial(_SoundFile, name=name, opened=opened, warn=warn, is_mpeg=is_mpeg)
            duration = first.duration if len(parts) == 1 else None
            return DecodedAudio(name, first.channels, duration, _joined(first, parts[1:], following, name))
    if container is None:
        raise AudioInvalidError(f"{name}: is not audio that can be decoded ({reason})")
    decoded = partial(av_decoder, name=name, format=container, track=track, opened=opened, warn=warn)
    audio = decoded(parts[0], _size(parts[0]))
    if len(parts) == 1:
        return audio
    return replace(audio, duration=None, pieces=_av_joined(audio, parts[1:], decoded))


def _parts(stream: ByteStream, size: int, container: str | None, name: str) -> tuple[Sequence[ByteStream], bool]:
    """Return the recordings in a file as streams, and whether they are MPEG audio.

    Raises:
        AudioInvalidError: a page, frame or chunk breaks off.
    """
    if container == "wav":
        waves = riff.waves(stream, size, name)
        if any(wave.is_mpeg for wave in waves):
            found = [mpeg.recordings(stream, *data, name) for wave in waves for data in wave.data]
            if all(found):
                return mpeg.streams(stream, [each for several in found for each in several or []]), True
        return riff.streams(stream, waves), False
    if container == "mp3":
        recordings = mpeg.recordings(stream, 0, size, name)
        return mpeg.streams(stream, recordings) if recordings else [stream], True
    if container == "ogg":
        return [ogg.link_stream(stream, link, size) for link in ogg.links(stream, size, name)] or [stream], False
    if container == "flac":
        return flac.streams(stream, size, name), False
    if iff_breaks_off(stream, size):
        raise AudioInvalidError(f"{name}: is truncated: its header announces more bytes than it has; copy it again")
    return [stream], False


def _size(stream: ByteStream) -> int:
    return stream.seek(0, io.SEEK_END)


class _SoundFile:
    """A recording that libsndfile reads."""

    def __init__(self, stream: ByteStream, name: str, opened: ExitStack, warn: Warn, *, is_mpeg: bool) -> None:
        """Open a recording.

        Raises:
            soundfile.LibsndfileError: libsndfile does not read it.
        """
        self._name, self._quiet = name, quiet_c_stderr if is_mpeg else nullcontext
        stream.seek(0)
        self._stream = CallbackStream(stream)
        with self._quiet():
            self._sound = opened.enter_context(soundfile.SoundFile(self._stream))
        sound = self._sound
        self.channels = sound.channels
        self._step = block_frames(sound.samplerate, sound.channels)
        known = sound.seekable() and 0 < sound.frames < 2**62
        self.duration = sound.frames / sound.samplerate if known else None
        self._least = sound.frames - (_MPEG_TOLERANCE if is_mpeg else 0) if known else 0
        self._range = FloatRange(name, self._peak_of_rest, warn) if sound.subtype in _FLOATS else None

    def pieces(self, before: float) -> Iterator[Piece]:
        """Yield the samples; ``before`` is the length of earlier recordings in seconds, for messages.

        Raises:
            AudioInvalidError: the recording is damaged or ends before its declared length.
            OSError: the system cannot read the file.
        """
        sound, read = self._sound, 0
        while True:
            try:
                with self._quiet():
                    block = sound.read(self._step, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                self._raise_failure()
                raise AudioInvalidError(
                    f"{self._name}: is damaged or truncated: decoding stops after "
                    f"{before + read / sound.samplerate:.2f} s ({error})"
                ) from None
            if not len(block):
                break
            read += len(block)
            yield Piece(self._range.apply(block) if self._range else block, sound.samplerate)
        self._raise_failure()
        if read < self._least:
            raise AudioInvalidError(
                f"{self._name}: is truncated: its header announces {sound.frames} samples, only {read} are there; "
                "copy it again"
            )

    def _raise_failure(self) -> None:
        """Raise the error of the system that ended the stream."""
        if self._stream.failure:
            raise self._stream.failure

    def _peak_of_rest(self) -> float:
        sound, highest = self._sound, 0.0
        position = sound.tell()
        while len(block := sound.read(self._step, dtype="float32", always_2d=True)):
            highest = max(highest, peak(block))
        sound.seek(position)
        return highest

    def close(self) -> None:
        """Close it; its stream stays open."""
        with self._quiet():
            self._sound.close()


def _joined(
    first: _SoundFile, others: Sequence[ByteStream], following: Callable[[ByteStream], _SoundFile], name: str
) -> Iterator[Piece]:
    """Yield the pieces of all recordings in a file, opening each when the one before it has ended."""
    seconds = 0.0
    current = first
    for index in range(len(others) + 1):
        if index:
            current.close()
            try:
                current = following(others[index - 1])
            except soundfile.LibsndfileError as error:
                raise AudioInvalidError(
                    f"{name}: is damaged: its part {index + 1}, after {seconds:.2f} s, cannot be decoded ({error})"
                ) from None
        for piece in current.pieces(seconds):
            seconds += len(piece.samples) / piece.rate
            yield piece


def _av_joined(
    first: DecodedAudio, others: Sequence[ByteStream], decoded: Callable[[ByteStream, int], DecodedAudio]
) -> Iterator[Piece]:
    yield from first.pieces
    for stream in others:
        yield from decoded(stream, _size(stream)).pieces
