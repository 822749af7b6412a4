"""Sounds without speech, made from a seed: music, noise, hum, tones, silence, breathing, knocks, applause, lines.

Each maker takes a random generator and a number of samples at 16 kHz and returns float32 [n] in -1..1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

RATE = 16_000
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Maker = Callable[[np.random.Generator, int], Doubles]

# Progressions of triads, as semitones above A2 (110 Hz).
_CHORDS = ((0, 3, 7), (-4, 0, 3), (3, 7, 10), (-2, 2, 5))
_SCALE = (12, 14, 15, 17, 19, 22, 24)
# Dual tones of a telephone's keys, in Hz (ITU-T Q.23).
_ROWS, _COLUMNS = (697, 770, 852, 941), (1209, 1336, 1477, 1633)


def _hertz(semitones: float) -> float:
    return float(110.0 * 2 ** (semitones / 12))


def _colored(random: np.random.Generator, count: int, slope: float) -> Doubles:
    """Noise whose power falls with frequency to the power of ``slope``: 0 white, 1 pink, 2 brown; RMS 1."""
    spectrum = np.fft.rfft(random.standard_normal(count))
    hertz = np.fft.rfftfreq(count, 1 / RATE)
    noise = np.fft.irfft(spectrum / np.maximum(hertz, 20.0) ** (slope / 2), count)
    return noise / max(float(np.sqrt(np.mean(noise**2))), 1e-12)


def _band(random: np.random.Generator, count: int, low: float, high: float) -> Doubles:
    """White noise between two frequencies in Hz; RMS 1."""
    spectrum = np.fft.rfft(random.standard_normal(count))
    hertz = np.fft.rfftfreq(count, 1 / RATE)
    noise = np.fft.irfft(np.where((hertz >= low) & (hertz <= high), spectrum, 0), count)
    return noise / max(float(np.sqrt(np.mean(noise**2))), 1e-12)


def _add(audio: Doubles, start: int, sound: Doubles) -> None:
    """Add ``sound`` to ``audio`` from a sample on, as far as it fits."""
    part = sound[: max(0, len(audio) - start)]
    audio[start : start + len(part)] += part


def _note(hertz: float, count: int, decay: float, harmonics: int) -> Doubles:
    """A plucked string: harmonics that fade, the higher the faster; ``decay`` in 1/s."""
    time = np.arange(count) / RATE
    partials = (
        np.sin(2 * np.pi * hertz * number * time) * np.exp(-decay * number**0.5 * time) / number
        for number in range(1, harmonics + 1)
        if hertz * number < RATE / 2
    )
    attack = np.minimum(1, time / 0.008)
    return np.asarray(sum(partials), np.float64) * attack


def _tone(hertz: Sequence[float], count: int) -> Doubles:
    """Sum of sines with 5 ms of fade at both ends; peak at most 1."""
    time = np.arange(count) / RATE
    edge = np.minimum(1, np.minimum(time, time[::-1]) / 0.005)
    return np.asarray(sum(np.sin(2 * np.pi * each * time) for each in hertz), np.float64) / len(hertz) * edge


def music(random: np.random.Generator, count: int) -> Doubles:
    """Chords, a melody and drums at 100 beats a minute."""
    audio, beat = np.zeros(count), int(0.6 * RATE)
    for index, start in enumerate(range(0, count, beat)):
        if index % 4 == 0:
            for semitones in _CHORDS[index // 4 % len(_CHORDS)]:
                _add(audio, start, 0.16 * _note(_hertz(semitones), 4 * beat, 1.2, 8))
        for half in (0, beat // 2):
            if random.random() < 0.7:
                pitch = _hertz(int(random.choice(_SCALE)))
                _add(audio, start + half, 0.2 * _note(pitch, beat, 4.0, 6))
            _add(audio, start + half, 0.05 * _band(random, RATE // 20, 4000, 7900) * np.linspace(1, 0, RATE // 20) ** 2)
        time = np.arange(RATE // 5) / RATE
        kick = np.sin(2 * np.pi * (50 * time + 8 * (1 - np.exp(-30 * time)))) * np.exp(-14 * time)
        snare = _band(random, RATE // 6, 300, 5000) * np.exp(-22 * np.arange(RATE // 6) / RATE)
        _add(audio, start, 0.35 * kick if index % 2 == 0 else 0.12 * snare)
    return audio


def strings(random: np.random.Generator, count: int) -> Doubles:
    """Slow sustained chords with vibrato and a lead voice that glides between notes."""
    time, audio = np.arange(count) / RATE, np.zeros(count)
    for index, start in enumerate(range(0, count, 2 * RATE)):
        length = min(int(2.3 * RATE), count - start)
        local = time[:length]
        swell = np.sin(np.pi * np.minimum(1, local / 2.3)) ** 0.7
        for semitones in (*_CHORDS[index % len(_CHORDS)], int(random.choice(_SCALE))):
            phase = 2 * np.pi * _hertz(semitones) * local + 0.35 * np.sin(2 * np.pi * 5.3 * local)
            voice = sum(np.sin(number * phase) / number**1.3 for number in range(1, 9))
            _add(audio, start, 0.09 * swell * np.asarray(voice, np.float64))
    return audio


def noise(slope: float, level: float) -> Maker:
    """Steady noise: slope 0 white, 1 pink, 2 brown."""
    return lambda random, count: level * _colored(random, count, slope)


def hum(random: np.random.Generator, count: int) -> Doubles:
    """Mains hum of 50 Hz with harmonics and a little hiss."""
    time = np.arange(count) / RATE
    parts = (
        level * np.sin(2 * np.pi * 50 * number * time + random.uniform(0, 6))
        for number, level in ((1, 0.2), (2, 0.12), (3, 0.08), (4, 0.03), (5, 0.05), (7, 0.03), (9, 0.015))
    )
    return np.asarray(sum(parts), np.float64) + 0.002 * _colored(random, count, 1)


def tones(random: np.random.Generator, count: int) -> Doubles:
    """Keys of a telephone, then ringing (425 Hz, one second in five)."""
    audio, start = 0.001 * _colored(random, count, 1), RATE // 4
    for _ in range(11):
        key = (float(random.choice(_ROWS)), float(random.choice(_COLUMNS)))
        _add(audio, start, 0.4 * _tone(key, int(0.11 * RATE)))
        start += int(0.2 * RATE)
    while start < count:
        _add(audio, start, 0.3 * _tone((425,), RATE))
        start += 5 * RATE
    return audio


def beeps(random: np.random.Generator, count: int) -> Doubles:
    """Beeps of several pitches and lengths, and sweeps up and down."""
    audio, start = 0.0005 * _colored(random, count, 1), RATE // 5
    while start < count:
        length = int(random.choice((0.08, 0.15, 0.3, 0.6)) * RATE)
        if random.random() < 0.6:
            _add(audio, start, 0.4 * _tone((float(random.choice((440, 600, 1000, 1400, 2000))),), length))
        else:
            time = np.arange(2 * length) / RATE
            low, high = sorted(random.uniform(200, 3500, 2))
            first, last = (low, high) if random.random() < 0.5 else (high, low)
            sweep = np.sin(2 * np.pi * (first * time + (last - first) * time**2 / (2 * time[-1])))
            _add(audio, start, 0.3 * sweep * np.minimum(1, np.minimum(time, time[::-1]) / 0.01))
        start += length + int(random.uniform(0.15, 0.9) * RATE)
    return audio


def silence(random: np.random.Generator, count: int) -> Doubles:
    """Digital zeros."""
    del random
    return np.zeros(count)


def room(random: np.random.Generator, count: int) -> Doubles:
    """A quiet room at -60 dB: ventilation, faint hum, a thump now and then."""
    audio = 0.001 * _colored(random, count, 1.6) + 0.0002 * hum(random, count)
    for start in random.integers(0, count, max(1, count // (3 * RATE))):
        thump = _band(random, RATE // 8, 40, 300) * np.exp(-30 * np.arange(RATE // 8) / RATE)
        _add(audio, int(start), 0.01 * thump)
    return audio


def breathing(random: np.random.Generator, count: int) -> Doubles:
    """Breaths in and out near a microphone: bursts of noise with the resonances of a throat."""
    audio, start, inwards = 0.0005 * _colored(random, count, 1), RATE // 3, True
    while start < count:
        length = int(random.uniform(0.7, 1.1 if inwards else 1.6) * RATE)
        rise = np.linspace(0, np.pi, length)
        envelope = np.sin(rise) ** (1.2 if inwards else 0.8)
        bands = (
            ((400, 900, 0.5), (1200, 2200, 0.7), (2800, 5000, 0.4)) if inwards else ((200, 700, 1.0), (900, 1800, 0.4))
        )
        breath = sum(level * _band(random, length, low, high) for low, high, level in bands)
        _add(audio, start, 0.04 * envelope * np.asarray(breath, np.float64))
        start += length + int(random.uniform(0.2, 0.9) * RATE)
        inwards = not inwards
    return audio


def knocks(random: np.random.Generator, count: int) -> Doubles:
    """Clicks of a keyboard or a mouse, and knocks on wood in groups of two to four."""
    audio, start = 0.0004 * _colored(random, count, 1), RATE // 3
    while start < count:
        for _ in range(int(random.integers(2, 5))):
            length = RATE // 8
            fade = np.exp(-np.arange(length) / RATE * random.uniform(35, 60))
            wood = _tone((float(random.uniform(160, 260)), float(random.uniform(400, 700))), length)
            _add(audio, start, 0.5 * fade * (wood + 0.15 * _band(random, length, 800, 5000)))
            start += int(random.uniform(0.16, 0.3) * RATE)
        for _ in range(int(random.integers(0, 6))):
            _add(audio, start, 0.2 * _band(random, 80, 1500, 7000) * np.linspace(1, 0, 80))
            start += int(random.uniform(0.08, 0.3) * RATE)
        start += int(random.uniform(0.4, 1.5) * RATE)
    return audio


def applause(random: np.random.Generator, count: int) -> Doubles:
    """Many hands, each clapping about four times a second, louder and then softer."""
    audio = np.zeros(count)
    clap = np.exp(-np.arange(RATE // 30) / RATE * 160)
    for _ in range(25):
        start, period, low = random.uniform(0, 0.3), random.uniform(0.2, 0.3), float(random.uniform(500, 1200))
        while start * RATE < count:
            sound = clap * _band(random, len(clap), low, low + 2500) * random.uniform(0.3, 1)
            _add(audio, int(start * RATE), 0.12 * sound)
            start += period * random.uniform(0.9, 1.1)
    return audio * np.sin(np.linspace(0.3, np.pi - 0.3, count))


def telephone_line(random: np.random.Generator, count: int) -> Doubles:
    """An open line: hiss between 300 and 3400 Hz, hum, crackles."""
    audio = 0.01 * _band(random, count, 300, 3400) + 0.05 * hum(random, count)
    for start in random.integers(0, count, count // (RATE // 2)):
        size = int(random.integers(20, 200))
        _add(audio, int(start), random.uniform(0.02, 0.15) * _band(random, size, 300, 3400) * np.linspace(1, 0, size))
    return audio


MAKERS: dict[str, Maker] = {
    "music": music,
    "strings": strings,
    "white noise": noise(0, 0.05),
    "pink noise": noise(1, 0.1),
    "brown noise": noise(2, 0.2),
    "mains hum": hum,
    "telephone tones": tones,
    "beeps and sweeps": beeps,
    "digital silence": silence,
    "room tone": room,
    "breathing": breathing,
    "clicks and knocks": knocks,
    "applause": applause,
    "telephone line": telephone_line,
}
"""All sounds by name."""


def sound(name: str, seconds: float = 10.0, seed: int = 0) -> Floats:
    """Return a sound of :data:`MAKERS`: float32 [n] at 16 kHz, clipped to -1..1."""
    random = np.random.default_rng([seed, *name.encode()])
    return np.clip(MAKERS[name](random, round(seconds * RATE)), -1, 1).astype(np.float32)
