"""Synthesize speech with known word and phoneme times, by libespeak-ng through ctypes.

The library has global state: use one :class:`Espeak` per process, and one call at a time.
Struct layouts and constants are those of ``espeak-ng/speak_lib.h`` (API revision 12).
"""

from __future__ import annotations

import ctypes
import ctypes.util
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_PHONEME_EVENTS = 0x0001
_CHARS_UTF8 = 1
_POS_CHARACTER = 1
_EVENT_WORD, _EVENT_PHONEME = 1, 7
_RATE, _PITCH, _RANGE = 1, 3, 4


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True, slots=True)
class Mark:
    """Start of a phoneme or word in seconds, and its label: a phoneme mnemonic, or the word as written."""

    start: float
    label: str


@dataclass(frozen=True, slots=True)
class Speech:
    """``samples`` int16 mono at ``rate`` Hz; word and phoneme marks in order of time."""

    samples: npt.NDArray[np.int16]
    rate: int
    words: tuple[Mark, ...]
    phonemes: tuple[Mark, ...]


class Espeak:
    """The synthesizer of this process."""

    def __init__(self) -> None:
        """Open the library.

        Raises:
            RuntimeError: libespeak-ng or its data is not installed.
        """
        name = ctypes.util.find_library("espeak-ng") or "libespeak-ng.so.1"
        try:
            self._lib = ctypes.CDLL(name)
        except OSError as error:
            raise RuntimeError(
                "libespeak-ng is not installed: apt-get install espeak-ng, or brew install espeak-ng"
            ) from error
        self.rate = int(self._lib.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 0, None, _INITIALIZE_PHONEME_EVENTS))
        if self.rate <= 0:
            raise RuntimeError("libespeak-ng has no data folder: install the package espeak-ng-data")
        self._chunks: list[npt.NDArray[np.int16]] = []
        self._events: list[tuple[int, int, int, int, str]] = []
        self._callback = _Callback(self._collect)  # referenced for the lifetime of the object: C holds only the pointer
        self._lib.espeak_SetSynthCallback(self._callback)

    def _collect(self, wav: object, count: int, events: object) -> int:
        if wav and count > 0:
            self._chunks.append(np.ctypeslib.as_array(wav, (count,)).copy())
        index = 0
        while events[index].type != 0:  # type: ignore[index]
            event = events[index]  # type: ignore[index]
            label = event.id.string.decode("utf-8", "replace") if event.type == _EVENT_PHONEME else ""
            self._events.append((event.type, event.sample, event.text_position, event.length, label))
            index += 1
        return 0

    def synthesize(self, text: str, voice: str, *, speed: int = 170, pitch: int = 50, pitch_range: int = 50) -> Speech:
        """Synthesize ``text``.

        Args:
            text: in the language of the voice.
            voice: name with variant, such as ``en-us+f2``.
            speed: words a minute, 80 to 450.
            pitch: 0 to 99.
            pitch_range: 0 to 99.

        Raises:
            ValueError: espeak-ng has no such voice.
            RuntimeError: the synthesis fails.
        """
        if self._lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        for parameter, value in ((_RATE, speed), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._lib.espeak_SetParameter(parameter, value, 0)
        self._chunks, self._events = [], []
        data = text.encode()
        status = self._lib.espeak_Synth(
            ctypes.c_char_p(data), ctypes.c_size_t(len(data) + 1), 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None
        )
        if status != 0:
            raise RuntimeError(f"espeak-ng failed with status {status} on {text!r}")
        samples = np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.int16)
        words, phonemes = [], []
        for kind, sample, position, length, label in self._events:
            if kind == _EVENT_WORD:
                words.append(Mark(sample / self.rate, text[position - 1 : position - 1 + length]))
            elif kind == _EVENT_PHONEME:
                phonemes.append(Mark(sample / self.rate, label))
        return Speech(samples, self.rate, tuple(words), tuple(phonemes))

    def phonemes(self, text: str, voice: str) -> tuple[str, ...]:
        """Return the phonemes of a text; texts with equal phonemes sound the same."""
        return tuple(mark.label for mark in self.synthesize(text, voice).phonemes if mark.label)
