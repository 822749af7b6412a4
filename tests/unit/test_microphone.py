"""Tests of the microphone with a fake sounddevice."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime.audio.live import LIVE_RATE
from runtime.audio.microphone import InputDevice, Microphone, input_devices
from runtime.errors import DeviceError, PackageMissingError


class PortAudioError(Exception):
    """As in sounddevice."""


class FakeStream:
    """Stream whose callbacks the test calls."""

    def __init__(self, callback: Callable[..., None], finished_callback: Callable[[], None], **settings: Any) -> None:
        self.settings = settings
        self._callback, self.finish = callback, finished_callback
        self.started = self.closed = False

    def start(self) -> None:
        self.started = True

    def close(self) -> None:
        self.closed = True
        self.finish()

    def record(self, data: np.ndarray, *, overflow: bool = False) -> None:
        buffer = np.array(data, np.float32).reshape(len(data), -1)
        self._callback(buffer, len(buffer), None, SimpleNamespace(input_overflow=overflow))
        buffer[:] = np.nan  # PortAudio reuses it


class FakeSounddevice:
    """The functions of sounddevice that the runtime uses, for a list of devices."""

    PortAudioError = PortAudioError

    def __init__(self) -> None:
        self.devices: list[dict[str, Any]] = []
        self.default = -1
        self.accepted: set[tuple[int, int]] = {(LIVE_RATE, 1)}  # rate, channels
        self.streams: list[FakeStream] = []
        self.busy = False
        self.add("Speakers", 0)
        self.add("Built-in", 2)
        self.add("Headset", 1, rate=44_100.0)
        self.default = 1

    def add(self, name: str, channels: int, rate: float = 48_000.0) -> None:
        info = {"name": name, "hostapi": 0, "max_input_channels": channels, "default_samplerate": rate}
        self.devices.append({**info, "index": len(self.devices)})

    def query_hostapis(self, index: int) -> dict[str, Any]:
        return {"name": ["ALSA"][index]}

    def query_devices(self, device: int | str | None = None, kind: str | None = None) -> Any:
        if device is None and kind is None:
            return self.devices
        number = self.default if device is None else device
        if isinstance(number, str):
            matches = [each["index"] for each in self.devices if number in each["name"]]
            if len(matches) != 1:
                raise ValueError(f"No input device matching {number!r}")
            number = matches[0]
        if not 0 <= number < len(self.devices):
            raise PortAudioError(f"Error querying device {number}")
        if not self.devices[number]["max_input_channels"]:
            raise ValueError(f"Not an input device: {self.devices[number]['name']!r}")
        return self.devices[number]

    def check_input_settings(self, device: int, channels: int, dtype: str, samplerate: int) -> None:
        assert dtype == "float32"
        if (samplerate, channels) not in self.accepted:
            raise PortAudioError("Invalid sample rate [PaErrorCode -9997]")

    def InputStream(self, **settings: Any) -> FakeStream:  # noqa: N802
        if self.busy:
            raise PortAudioError("Device unavailable [PaErrorCode -9985]")
        self.streams.append(FakeStream(**settings))
        return self.streams[-1]


@pytest.fixture
def sounddevice(monkeypatch: pytest.MonkeyPatch) -> FakeSounddevice:
    fake = FakeSounddevice()
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    return fake


def fail(text: str) -> None:
    raise AssertionError(f"unexpected warning {text!r}")


def started(microphone: Microphone, fake: FakeSounddevice) -> tuple[Any, FakeStream]:
    """Start recording; return the blocks and the stream that the test plays."""
    blocks = microphone.blocks()

    class Starting(list[FakeStream]):
        def append(self, stream: FakeStream) -> None:
            super().append(stream)
            stream.record(np.zeros(1))  # without a first block, next() would wait forever

    fake.streams = Starting()
    assert next(blocks).tolist() == [0.0]
    (stream,) = fake.streams
    assert stream.started
    return blocks, stream


def test_records_at_the_rate_of_models_if_possible(sounddevice: FakeSounddevice) -> None:
    microphone = Microphone(warn=fail)
    assert (microphone.name, microphone.rate) == ("Built-in", LIVE_RATE)
    assert sounddevice.streams == []  # does not record yet
    blocks, stream = started(microphone, sounddevice)
    settings = {key: stream.settings[key] for key in ("samplerate", "device", "channels", "dtype", "blocksize")}
    assert settings == {"samplerate": LIVE_RATE, "device": 1, "channels": 1, "dtype": "float32", "blocksize": 800}
    stream.record(np.array([0.25, 0.5]))
    stream.record(np.array([0.75]))
    assert next(blocks).tolist() == [0.25, 0.5, 0.75]
    stream.record(np.array([1.0]))
    microphone.stop()
    stream.record(np.array([-1.0]))
    assert [block.tolist() for block in blocks] == [[1.0]]  # recorded before the stop
    microphone.close()
    assert stream.closed


@pytest.mark.parametrize(
    ("accepted", "rate", "channels"),
    [
        ({(48_000, 1)}, 48_000, 1),
        ({(48_000, 2), (LIVE_RATE, 2)}, LIVE_RATE, 2),
        ({(48_000, 2)}, 48_000, 2),
    ],
)
def test_records_in_another_format_that_the_device_supports(
    sounddevice: FakeSounddevice, accepted: set[tuple[int, int]], rate: int, channels: int
) -> None:
    sounddevice.accepted = accepted
    microphone = Microphone(warn=fail)
    assert microphone.rate == rate
    blocks, stream = started(microphone, sounddevice)
    assert (stream.settings["samplerate"], stream.settings["channels"]) == (rate, channels)
    if channels == 2:
        stream.record(np.array([[0.25, 0.75], [0.0, -1.0]]))
        assert next(blocks).tolist() == [0.5, -0.5]


def test_device_is_selected_by_number_or_name(sounddevice: FakeSounddevice) -> None:
    sounddevice.accepted = {(44_100, 1), (48_000, 1)}
    assert [Microphone(device, warn=fail).name for device in ("2", "Head", "1")] == ["Headset", "Headset", "Built-in"]
    assert Microphone("2", warn=fail).rate == 44_100


def test_lost_audio_causes_one_warning(sounddevice: FakeSounddevice) -> None:
    warnings: list[str] = []
    microphone = Microphone(warn=warnings.append)
    blocks, stream = started(microphone, sounddevice)
    second = np.zeros(LIVE_RATE)
    for _ in range(32):
        stream.record(second)
    assert warnings == []  # the recording thread does not warn
    assert len(next(blocks)) == 30 * LIVE_RATE
    stream.record(second, overflow=True)
    assert len(next(blocks)) == LIVE_RATE
    (warning,) = warnings
    assert warning.startswith("Built-in: audio was lost")


def test_overflow_in_portaudio_causes_a_warning(sounddevice: FakeSounddevice) -> None:
    warnings: list[str] = []
    blocks, stream = started(Microphone(warn=warnings.append), sounddevice)
    stream.record(np.zeros(10), overflow=True)
    assert len(next(blocks)) == 10
    assert len(warnings) == 1


def test_disconnected_microphone_is_an_error_after_its_audio(sounddevice: FakeSounddevice) -> None:
    blocks, stream = started(Microphone(warn=fail), sounddevice)
    stream.record(np.ones(2))
    stream.finish()
    assert next(blocks).tolist() == [1.0, 1.0]
    with pytest.raises(DeviceError, match=r"^Built-in: stopped recording"):
        next(blocks)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("9", "there is no microphone '9'; --list-devices"),
        ("0", "Not an input device: 'Speakers'; --list-devices"),
        ("Radio", "No input device matching 'Radio'; --list-devices"),
    ],
)
def test_unknown_device_is_refused(sounddevice: FakeSounddevice, device: str, message: str) -> None:
    with pytest.raises(DeviceError) as caught:
        Microphone(device, warn=fail)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_missing_and_busy_devices_are_refused(sounddevice: FakeSounddevice) -> None:
    microphone = Microphone(warn=fail)
    sounddevice.busy = True
    with pytest.raises(DeviceError, match=r"^Built-in: cannot record \(Device unavailable .*another program"):
        next(microphone.blocks())
    microphone.close()
    sounddevice.accepted = set()
    with pytest.raises(DeviceError, match=r"^the default microphone: cannot record \(Invalid sample rate"):
        Microphone(warn=fail)
    sounddevice.default = -1
    with pytest.raises(DeviceError, match=r"^this machine has no microphone"):
        Microphone(warn=fail)
    sounddevice.devices = []
    assert input_devices() == []


def test_input_devices_are_listed(sounddevice: FakeSounddevice) -> None:
    assert input_devices() == [
        InputDevice(1, "Built-in", "ALSA", 2, 48_000.0, default=True),
        InputDevice(2, "Headset", "ALSA", 1, 44_100.0, default=False),
    ]
    sounddevice.default = -1
    assert [device.default for device in input_devices()] == [False, False]


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    for act in (lambda: Microphone(warn=fail), input_devices):
        with pytest.raises(PackageMissingError, match=r"pip install 'asr-deploy\[mic\]'$"):
            act()


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')\n")
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PackageMissingError, match=r"\(PortAudio library not found\): apt install libportaudio2, "):
        Microphone(warn=fail)
