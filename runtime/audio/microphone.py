"""The microphone, through sounddevice (PortAudio), an optional package."""

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

# Audio that waits for a slow model, in seconds. A microphone does not wait: what is beyond is lost, and said to be.
_WAITING_SECONDS = 30
# A block, in seconds: small beside what people notice, large beside the cost of a call.
_BLOCK_SECONDS = 0.05
_MOST_CHANNELS = 2


class InputDevice(msgspec.Struct, frozen=True):
    """A microphone: its number, its name, its system of devices, its channels, its own rate in Hz."""

    number: int
    name: str
    system: str
    channels: int
    rate: float
    default: bool


def input_devices() -> list[InputDevice]:
    """All devices that can record.

    Raises:
        PackageMissingError: sounddevice, or PortAudio itself, is not installed.
        DeviceError: PortAudio cannot say.
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
    """What a microphone hears, from the first call of :meth:`blocks` on."""

    def __init__(self, device: str | None = None, *, warn: Callable[[str], object]) -> None:
        """Find the device, and how it can record; it does not yet.

        Args:
            device: its number, or a part of its name; the system's default one when None.
            warn: told once when audio was lost.

        Raises:
            PackageMissingError: sounddevice, or PortAudio itself, is not installed.
            DeviceError: there is no such device, or it cannot record.
        """
        self._sounddevice = _sounddevice()
        self._warn = warn
        asked = int(device) if device is not None and device.strip().isdecimal() else device
        said = "the default microphone" if device is None else f"microphone {device!r}"
        with _device_errors(self._sounddevice, said):
            self._info = _find(self._sounddevice, asked, device)
            self.name = str(self._info["name"])
            self.rate, self._channels = self._format()
        self._inbox: Inbox[Floats] = Inbox(_WAITING_SECONDS * self.rate)
        self._stream: Any = None
        self._lost = False

    def _format(self) -> tuple[int, int]:
        """The first rate and number of channels that it takes; :data:`LIVE_RATE` and one if it can."""
        own = round(self._info["default_samplerate"])
        channels = min(int(self._info["max_input_channels"]), _MOST_CHANNELS)
        refusal: Exception | None = None
        for rate, count in dict.fromkeys([(LIVE_RATE, 1), (own, 1), (LIVE_RATE, channels), (own, channels)]):
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
        """See :meth:`runtime.audio.live.LiveSource.blocks`."""
        with _device_errors(self._sounddevice, self.name):
            self._stream = self._sounddevice.InputStream(
                samplerate=self.rate,
                blocksize=round(self.rate * _BLOCK_SECONDS),
                device=self._info["index"],
                channels=self._channels,
                dtype="float32",
                callback=self._hear,
                finished_callback=self._gone,
            )
            self._stream.start()
        told = False
        for batch in self._inbox.batches():
            if self._lost and not told:
                told = True
                self._warn(
                    f"{self.name}: audio was lost, because this machine is too slow for it; words may be missing"
                )
            yield np.concatenate(batch)

    def _hear(self, data: Floats, _frames: int, _time: Any, status: Any) -> None:
        """Called by PortAudio's thread; ``data`` [frames, channels] is its own and must be copied."""
        mono = data[:, 0].copy() if self._channels == 1 else data.mean(axis=1, dtype=np.float32)
        if not self._inbox.offer(mono, len(mono)) or status.input_overflow:
            self._lost = True

    def _gone(self) -> None:
        """Called when the device records no more, whoever ended it; after :meth:`stop` it counts for nothing."""
        self._inbox.end(DeviceError(f"{self.name}: stopped recording; is it still plugged in?"))

    def stop(self) -> None:
        """See :meth:`runtime.audio.live.LiveSource.stop`."""
        self._inbox.end()

    def close(self) -> None:
        """See :meth:`runtime.audio.live.LiveSource.close`."""
        self._inbox.abandon()
        if self._stream is not None:
            self._stream.close()


def _sounddevice() -> Any:
    try:
        return importlib.import_module("sounddevice")
    except ImportError:
        raise PackageMissingError(
            "the microphone needs the optional package sounddevice: pip install 'asr-deploy[mic]'"
        ) from None
    except OSError as error:  # it looks for the library when it is imported
        raise PackageMissingError(
            f"the microphone needs the system's PortAudio library ({error}): "
            "apt install libportaudio2, dnf install portaudio, or brew install portaudio"
        ) from None


def _find(sounddevice: Any, asked: int | str | None, device: str | None) -> Any:
    try:
        return sounddevice.query_devices(asked, "input")
    except ValueError as error:  # none or several have such a name, or it only plays
        reason = str(error).strip().splitlines()[0].rstrip(":")
        raise DeviceError(f"{reason}; --list-devices shows what there is") from None
    except sounddevice.PortAudioError:
        if device is not None:
            raise DeviceError(f"there is no microphone {device!r}; --list-devices shows what there is") from None
        raise DeviceError(
            "this machine has no microphone, or no default one; --list-devices shows what there is, --device takes one"
        ) from None


def _default_number(sounddevice: Any) -> int | None:
    try:
        return int(sounddevice.query_devices(None, "input")["index"])
    except (sounddevice.PortAudioError, ValueError):
        return None  # there is none


@contextmanager
def _device_errors(sounddevice: Any, name: str) -> Iterator[None]:
    try:
        yield
    except sounddevice.PortAudioError as error:
        raise DeviceError(f"{name}: cannot record ({error}); is another program using it?") from None
