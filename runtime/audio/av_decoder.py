"""Decode containers with the optional package PyAV (FFmpeg), by the time stamps of their frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.audio.containers.byte_ranges import ByteStream, CallbackStream
from runtime.audio.containers.ends import breaks_off
from runtime.audio.decoded import DecodedAudio, Piece, Warn, block_frames
from runtime.audio.levels import FloatRange
from runtime.errors import AudioInvalidError, AudioUnsupportedError, OptionError

Floats = npt.NDArray[np.float32]

# Containers whose frames carry times. In others, FFmpeg derives times from a bit rate, or they restart in the middle.
_TIMED = frozenset({"mov", "matroska", "asf", "flv", "avi", "mpegts", "mpeg", "rm"})
# Containers whose packets are whole frames: one that FFmpeg marks as incomplete breaks off. Formats without frames end
# in a packet of any size.
_FRAMED = _TIMED | {"aac", "loas", "ogg"}
# Containers of broadcasts, whose times begin anywhere: the earliest of all tracks is 0.
_RELATIVE = frozenset({"mpegts", "mpeg"})
# Times are rounded to milliseconds and jitter in recordings of calls. Smaller gaps are left until they add up.
_GAP_SECONDS = 0.1
# A gap of more than this is the clock of a recorder or damage, not silence, unless the declared duration covers it and
# the file has at least 16 bytes for each second of it: other tracks, or what was recorded between.
_LONGEST_GAP = 3600.0
_BYTES_PER_SECOND = 16
# A step back by more than this begins a new recording; less is an overlap.
_LONGEST_OVERLAP = 1.0
# An MP4 declares samples exactly; players round, and encoders add up to a frame or two.
_DURATION_TOLERANCE = 1.0
_NEEDED = (
    "needs the optional package PyAV, as do m4a, mp4, mkv, webm, aac, ac3, wma, amr, speex, avi, flv and mpeg-ts: "
    "pip install 'asr-deploy[av]'"
)


def unsupported(name: str) -> AudioUnsupportedError:
    """Return the error for a container that only PyAV reads, where it is not installed."""
    return AudioUnsupportedError(f"{name}: {_NEEDED}")


def av_decoder(
    stream: ByteStream, size: int, name: str, format: str, track: int | None, opened: ExitStack, warn: Warn
) -> DecodedAudio:
    """Open a container.

    Args:
        stream: the whole file, at any position.
        size: bytes of the file.
        name: name of the audio, for messages.
        format: FFmpeg's name of the container.
        track: index of the audio track; the default one if None.
        opened: receives the resources that must be closed.
        warn: called with a message about audio that was changed to be read.

    Raises:
        AudioInvalidError: the container is damaged, breaks off, or has no audio track.
        AudioUnsupportedError: PyAV is not installed.
        OptionError: the container has no such track.
    """
    try:
        import av
    except ImportError:
        raise unsupported(name) from None
    if breaks_off(stream, size, format):
        raise AudioInvalidError(f"{name}: is truncated: its last part breaks off; copy it again")
    stream.seek(0)
    calls = CallbackStream(stream)  # PyAV prints errors of its calls
    with _av_errors(name, calls):
        container = opened.enter_context(av.open(calls, format=format, metadata_errors="replace"))
        chosen = _track(container, track, name)
        if chosen.codec_context is None:
            raise AudioInvalidError(f"{name}: its audio track has an unknown codec; convert the file first")
        reading = _Reading(container, chosen, format, size, name, warn)
        pieces = reading.pieces()
        first = next(pieces, None)
    if first is None:
        raise AudioInvalidError(f"{name}: holds no samples")
    return DecodedAudio(name, first.samples.shape[1], reading.duration, _guarded(first, pieces, name, calls))


def _guarded(first: Piece, pieces: Iterator[Piece], name: str, stream: CallbackStream) -> Iterator[Piece]:
    yield first
    with _av_errors(name, stream):
        yield from pieces


@contextmanager
def _av_errors(name: str, stream: CallbackStream) -> Iterator[None]:
    """Convert errors of PyAV to AudioInvalidError, unless the system could not read the stream."""
    import av

    try:
        yield
    except (AudioInvalidError, OptionError):
        if stream.failure:
            raise stream.failure from None
        raise
    # Beside its own errors, PyAV raises these for values in damaged headers that Python cannot represent.
    except (av.FFmpegError, ValueError, OverflowError, LookupError) as error:
        if stream.failure:
            raise stream.failure from None
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise AudioInvalidError(f"{name}: is not audio that can be decoded ({reason})") from None
    if stream.failure:
        raise stream.failure


def _track(container: Any, index: int | None, name: str) -> Any:
    """Return the audio track with this index, or the default one."""
    import av

    tracks = container.streams.audio
    if not tracks:
        raise AudioInvalidError(f"{name}: holds no audio track")
    if index is None:
        default = av.stream.Disposition.default
        return next((track for track in tracks if track.disposition & default), tracks[0])
    if not 0 <= index < len(tracks):
        present = ", ".join(_described(number, track) for number, track in enumerate(tracks))
        raise OptionError(f"{name}: has no audio track {index}; it has {present}", "track")
    return tracks[index]


def _described(number: int, track: Any) -> str:
    """Describe a track by its index, language and title."""
    details = [track.metadata[key] for key in ("language", "title") if track.metadata.get(key)]
    return f"{number} ({', '.join(details)})" if details else str(number)


class _Reading:
    """Decoded pieces of one track, with silence where its time stamps have gaps."""

    def __init__(self, container: Any, track: Any, format: str, size: int, name: str, warn: Warn) -> None:
        import av

        self._container, self._track, self._name, self._warn = container, track, name, warn
        start = (container.start_time or 0) / av.time_base
        self._timed, self._framed = format in _TIMED, format in _FRAMED
        self._origin = start if format in _RELATIVE else 0.0  # time of the first sample of the result
        whole = container.duration / av.time_base if self._timed and container.duration else None
        # Durations of Matroska, FLV and ASF count from 0, those of MP4 and broadcasts from the first sample.
        counted = format == "mov" or format in _RELATIVE
        self._last_time = (start if counted else 0.0) + whole if whole else 0.0
        self._size = size
        self.duration = self._declared(whole)
        # MP4 lists every sample; fragments and other containers do not.
        self._exact = format == "mov" and bool(track.frames)
        # Only codecs that store floats can hold integers in them; what follows a block is not known.
        stores_floats = track.codec_context.name.startswith("pcm_f")
        self._range = FloatRange(name, lambda: 0.0, warn) if stores_floats else None
        # Seconds at the last change of the rate, and samples since.
        self._base, self._count, self._rate = 0.0, 0, 0
        self._left_out = 0.0  # seconds of gaps that are not silence

    def _declared(self, whole: float | None) -> float | None:
        """Seconds up to the end of the track, as far as declared."""
        track = self._track
        if not self._timed:
            return None
        if track.duration and track.time_base:
            first = max(0.0, float((track.start_time or 0) * track.time_base) - self._origin)
            return float(first + track.duration * track.time_base)
        # A container's duration is that of its longest track.
        return whole if len(self._container.streams) == 1 else None

    @property
    def _position(self) -> float:
        """Seconds of the result so far."""
        return self._base + (self._count / self._rate if self._rate else 0.0)

    def pieces(self) -> Iterator[Piece]:
        """Yield the track; raise AudioInvalidError if it ends within a packet or before its declared length."""
        for piece in _joined(self._timed_frames()):
            yield piece._replace(samples=self._range.apply(piece.samples)) if self._range else piece
        declared = self.duration
        if self._exact and declared and self._position + self._left_out < declared - _DURATION_TOLERANCE:
            raise AudioInvalidError(
                f"{self._name}: is truncated: its header announces {declared:.1f} s, only {self._position:.1f} s "
                "are there; copy it again"
            )

    def _timed_frames(self) -> Iterator[Piece]:
        for frame in self._frames():
            samples = _as_samples(frame, self._name)
            if not len(samples):
                continue
            if frame.sample_rate != self._rate:
                self._base, self._count, self._rate = self._position, 0, frame.sample_rate
            if self._timed and frame.pts is not None and frame.time_base:
                yield from self._silence(float(frame.pts * frame.time_base), samples.shape[1])
            self._count += len(samples)
            yield Piece(samples, self._rate)

    def _silence(self, time: float, channels: int) -> Iterator[Piece]:
        """Yield silence up to a frame's time."""
        gap = time - self._origin - self._position
        is_covered = time <= self._last_time and gap * _BYTES_PER_SECOND <= self._size
        if gap > _LONGEST_GAP and not is_covered:
            self._origin += gap
            self._left_out += gap
            self._warn(f"{self._name}: its time stamps jump by {gap:.0f} s at {self._position:.2f} s; none was added")
            return
        if gap < -_LONGEST_OVERLAP and self._position:
            self._origin += gap  # a recording that was appended
            return
        if gap <= (_GAP_SECONDS if self._position else 0.0):
            return
        left, step = round(gap * self._rate), block_frames(self._rate, channels)
        self._count += left
        while left > 0:
            yield Piece(np.zeros((min(left, step), channels), np.float32), self._rate)
            left -= step

    def _frames(self) -> Iterator[Any]:
        """Yield decoded frames; packets before the first decodable one are skipped, as in a recorded broadcast."""
        import av

        any_decoded = False
        failure: AudioInvalidError | None = None
        for packet in self._container.demux(self._track):
            if failure:
                if packet.size:
                    raise failure
                break
            try:
                frames = packet.decode()
            except av.InvalidDataError as error:
                if any_decoded:
                    failure = AudioInvalidError(
                        f"{self._name}: is damaged or truncated: decoding stops after {self._position:.2f} s "
                        f"({error.strerror})"
                    )
                continue
            for frame in frames:
                any_decoded = True
                yield frame
            if self._framed and packet.is_corrupt and packet.size:
                failure = AudioInvalidError(
                    f"{self._name}: is damaged or truncated: a packet at {self._position:.2f} s breaks off; "
                    "copy it again"
                )
        if failure:
            raise failure


def _as_samples(frame: Any, name: str) -> Floats:
    """Convert a frame to samples [n, channels] in [-1, 1]."""
    channels = frame.layout.nb_channels
    values = frame.to_ndarray()
    samples: npt.NDArray[Any] = values.T if frame.format.is_planar else values.reshape(-1, channels)
    if samples.shape[1] != channels:
        raise AudioInvalidError(f"{name}: has a frame of {samples.shape[1]} channels instead of {channels}")
    kind, bits = samples.dtype.kind, 8 * samples.dtype.itemsize
    if kind == "f":
        floats: Floats = samples.astype(np.float32, copy=False)
        return floats
    full = 2.0 ** (bits - 1)
    scaled: Floats = (samples.astype(np.float32) - np.float32(full if kind == "u" else 0.0)) / np.float32(full)
    return scaled


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Join small pieces of one format up to a block: a codec's frame lasts 20 to 30 ms."""
    parts: list[npt.NDArray[Any]] = []
    rows = rate = channels = 0
    for samples, piece_rate in pieces:
        if parts and (piece_rate != rate or samples.shape[1] != channels):
            yield Piece(np.concatenate(parts), rate)
            parts, rows = [], 0
        rate, channels = piece_rate, samples.shape[1]
        parts.append(samples)
        rows += len(samples)
        if rows >= block_frames(rate, channels):
            yield Piece(np.concatenate(parts), rate)
            parts, rows = [], 0
    if parts:
        yield Piece(np.concatenate(parts), rate)
