"""Record from a microphone with the optional package sounddevice (PortAudio)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np

from runtime.audio.live import LIVE_RATE, Inbox
from runtime.audio.reader import Floats
from runtime.errors import DeviceError, PackageMissingError

# Audio that may wait for a slow model, in seconds. A microphone does not wait: more audio is dropped, with a warning.
_WAITING_SECONDS = 30
# Length of a block in seconds: too short to notice, and long compared with the cost of a call.
_BLOCK_SECONDS = 0.05
_MAX_CHANNELS = 2


class InputDevice(msgspec.Struct, frozen=True):
    """A microphone.

    Attributes:
        number: of the device in PortAudio.
        name: of the device.
        system: name of the audio system, such as ALSA.
        channels: maximum number of input channels.
        rate: default sampling rate in Hz.
        default: whether it is the system's default microphone.
    """

    number: int
    name: str
    system: str
    channels: int
    rate: float
    default: bool


def input_devices() -> list[InputDevice]:
    """Return all devices that can record.

    Raises:
        PackageMissingError: sounddevice is not installed.
        PackageMissingError: the system's PortAudio library is not installed.
        DeviceError: PortAudio cannot list the devices.
    """
    sounddevice = _sounddevice()
    with _device_errors(sounddevice, "the list of devices"):
        default = _default_number(sounddevice)
        return [
            InputDevice(
                number,
                str(info["name"]),
                str(sounddevice.query_hostapis(info["hostapi"])["name"]),
                int(info["max_input_channels"]),
                float(info["default_samplerate"]),
                number == default,
            )
            for number, info in enumerate(sounddevice.query_devices())
            if info["max_input_channels"] > 0
        ]


class Microphone:
    """Live audio of a microphone, which records from the first block on."""

    def __init__(self, device: str | None = None, *, warn: Callable[[str], object]) -> None:
        """Find the device and a format that it supports, without recording yet.

        Args:
            device: its number, or a part of its name; the system's default microphone if None.
            warn: called with a message, at most once, when audio was lost.

        Raises:
            PackageMissingError: sounddevice is not installed.
            PackageMissingError: the system's PortAudio library is not installed.
            DeviceError: the device does not exist or cannot record.
        """
        self._sounddevice = _sounddevice()
        self._warn = warn
        title = "the default microphone" if device is None else f"microphone {device!r}"
        with _device_errors(self._sounddevice, title):
            self._info = _find(self._sounddevice, device)
            self.name = str(self._info["name"])
            self.rate, self._channels = self._format()
        self._inbox: Inbox[Floats] = Inbox(_WAITING_SECONDS * self.rate)
        self._stream: Any = None
        self._lost = False

    def _format(self) -> tuple[int, int]:
        """Return a rate and a number of channels that the device supports, :data:`LIVE_RATE` and 1 if possible."""
        default = round(self._info["default_samplerate"])
        channels = min(int(self._info["max_input_channels"]), _MAX_CHANNELS)
        refusal: Exception | None = None
        for rate, count in dict.fromkeys([(LIVE_RATE, 1), (default, 1), (LIVE_RATE, channels), (default, channels)]):
            try:
                self._sounddevice.check_input_settings(
                    device=self._info["index"], channels=count, dtype="float32", samplerate=rate
                )
            except self._sounddevice.PortAudioError as error:
                refusal = error
            else:
                return rate, count
        assert refusal is not None
        raise refusal

    def blocks(self) -> Iterator[Floats]:
        """Record, and yield mono float32 samples [n] as they arrive.

        Raises:
            DeviceError: the device cannot record, or was disconnected.
        """
        with _device_errors(self._sounddevice, self.name):
            self._stream = self._sounddevice.InputStream(
                samplerate=self.rate,
                blocksize=round(self.rate * _BLOCK_SECONDS),
                device=self._info["index"],
                channels=self._channels,
                dtype="float32",
                callback=self._on_audio,
                finished_callback=self._on_finished,
            )
            self._stream.start()
        warned = False
        for batch in self._inbox.batches():
            if self._lost and not warned:
                warned = True
                self._warn(
                    f"{self.name}: audio was lost, because this machine is too slow for it; words may be missing"
                )
            yield np.concatenate(batch)

    def _on_audio(self, data: Floats, _frames: int, _time: Any, status: Any) -> None:
        """Store a block. PortAudio's thread calls it and reuses ``data`` [frames, channels], so that it is copied."""
        mono = data[:, 0].copy() if self._channels == 1 else data.mean(axis=1, dtype=np.float32)
        if not self._inbox.offer(mono, len(mono)) or status.input_overflow:
            self._lost = True

    def _on_finished(self) -> None:
        """End the recording with an error. PortAudio calls it for every end; after :meth:`stop` it has no effect."""
        self._inbox.end(DeviceError(f"{self.name}: stopped recording; is it still plugged in?"))

    def stop(self) -> None:
        """End :meth:`blocks` after the audio recorded so far. Signal handlers may call it."""
        self._inbox.end()

    def close(self) -> None:
        """Close the device."""
        self._inbox.abandon()
        if self._stream is not None:
            self._stream.close()


def _sounddevice() -> Any:
    """Import sounddevice; raise PackageMissingError if it or PortAudio is not installed."""
    try:
        return importlib.import_module("sounddevice")
    except ImportError:
        raise PackageMissingError(
            "the microphone needs the optional package sounddevice: pip install 'asr-deploy[mic]'"
        ) from None
    except OSError as error:  # the package loads the library when it is imported
        raise PackageMissingError(
            f"the microphone needs the system's PortAudio library ({error}): "
            "apt install libportaudio2, dnf install portaudio, or brew install portaudio"
        ) from None


def _find(sounddevice: Any, device: str | None) -> Any:
    """Return sounddevice's description of an input device; raise DeviceError if there is none."""
    key = int(device) if device is not None and device.strip().isdecimal() else device
    try:
        return sounddevice.query_devices(key, "input")
    except ValueError as error:  # no device or several devices have this name, or the device only plays
        reason = str(error).strip().splitlines()[0].rstrip(":")
        raise DeviceError(f"{reason}; --list-devices lists the microphones") from None
    except sounddevice.PortAudioError:
        if device is not None:
            raise DeviceError(f"there is no microphone {device!r}; --list-devices lists the microphones") from None
        raise DeviceError(
            "this machine has no microphone, or no default one; --list-devices lists the microphones, "
            "--device selects one"
        ) from None


def _default_number(sounddevice: Any) -> int | None:
    """Return the number of the default microphone, or None if there is none."""
    try:
        return int(sounddevice.query_devices(None, "input")["index"])
    except (sounddevice.PortAudioError, ValueError):
        return None


@contextmanager
def _device_errors(sounddevice: Any, name: str) -> Iterator[None]:
    """Convert errors of PortAudio to DeviceError."""
    try:
        yield
    except sounddevice.PortAudioError as error:
        raise DeviceError(f"{name}: cannot record ({error}); is another program using it?") from None
