"""A live session's configuration: read from ``session.update``, reported in ``session.updated``.

The names are those of OpenAI's transcription sessions, in both spellings: ``session.update`` with its nested ``audio``,
and the older, flat ``transcription_session.update``. What is not mentioned stays as it is. What this server cannot do
is refused by name, and then nothing of the update is taken.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import msgspec

from runtime.errors import AsrError

Encoding = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]

DEFAULT_RATE = 24_000
TELEPHONE_RATE = 8_000
LOWEST_RATE, HIGHEST_RATE = 8_000, 48_000
DEFAULT_PAUSE_MS = 800
# A segment keeps a quarter of a second of silence on both sides: a shorter pause than both together ends none.
SHORTEST_PAUSE_MS, LONGEST_PAUSE_MS = 500, 10_000
# Characters. A prompt is read by the model with every segment.
LONGEST_MODEL, LONGEST_PROMPT = 256, 16_384
_MOST_SHOWN = 64  # of what a client sent, in an error

_LEGACY_FORMATS: dict[str, Encoding] = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}

_NO_INCLUDE = "log-probabilities and other additions are not available here; leave it out"
_NO_NOISE_REDUCTION = "there is no noise reduction here; set it to null"


class EventError(AsrError, ValueError):
    """A client's event that cannot be handled. The text is for the client; ``param`` is the field that was wrong."""

    def __init__(self, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


class SessionConfig(msgspec.Struct, frozen=True):
    """What a client may choose. ``pause`` is the silence in ms that ends a segment; None: only a commit ends one."""

    model: str
    encoding: Encoding = "audio/pcm"
    rate: int = DEFAULT_RATE
    language: str | None = None
    prompt: str = ""
    pause: int | None = DEFAULT_PAUSE_MS


class _Fields:
    """An object of the client, whose fields are taken one by one; what is left over is unknown."""

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, Mapping):
            raise EventError(f"{path} must be an object", "invalid_type", path)
        self._left: dict[str, Any] = dict(value)
        self._path = path

    def name(self, field: str) -> str:
        return f"{self._path}.{field}"

    def has(self, field: str) -> bool:
        return field in self._left

    def take(self, field: str) -> Any:
        return self._left.pop(field, None)

    def text(self, field: str, longest: int = 64) -> str:
        """A string; null is the empty one."""
        value = self.take(field)
        if value is not None and (not isinstance(value, str) or len(value) > longest):
            name = self.name(field)
            raise EventError(f"{name} must be a string of at most {longest} characters", "invalid_value", name)
        return value or ""

    def integer(self, field: str, lowest: int, highest: int) -> int:
        value = self.take(field)
        if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
            raise EventError(
                f"{self.name(field)} must be an integer from {lowest} to {highest}", "invalid_value", self.name(field)
            )
        return value

    def refuse(self, field: str, why: str) -> None:
        """``field`` may be absent or off."""
        value = self.take(field)
        if value is not None and value is not False and value != []:
            raise EventError(f"{self.name(field)}: {why}", "unsupported_parameter", self.name(field))

    def done(self) -> None:
        for field in self._left:
            field = field[:_MOST_SHOWN]
            raise EventError(f"unknown parameter {self.name(field)}", "unknown_parameter", self.name(field))


def read_session(config: SessionConfig, session: object, models: Collection[str]) -> SessionConfig:
    """``config`` with what the ``session`` of a ``session.update`` changes.

    Raises:
        EventError: it is malformed, or asks for what this server cannot do.
    """
    fields = _Fields(session, "session")
    if fields.take("type") != "transcription":
        raise EventError(
            'session.type must be "transcription": there are no others here', "invalid_value", "session.type"
        )
    fields.refuse("include", _NO_INCLUDE)
    if fields.has("audio"):
        audio = _Fields(fields.take("audio"), "session.audio")
        if audio.has("input"):
            heard = _Fields(audio.take("input"), "session.audio.input")
            if heard.has("format"):
                config = _format(config, _Fields(heard.take("format"), heard.name("format")))
            heard.refuse("noise_reduction", _NO_NOISE_REDUCTION)
            if heard.has("transcription"):
                config = _transcription(config, heard.take("transcription"), heard.name("transcription"), models)
            if heard.has("turn_detection"):
                config = _turn_detection(config, heard.take("turn_detection"), heard.name("turn_detection"))
            heard.done()
        audio.refuse("output", "this server does not speak; leave it out")
        audio.done()
    fields.done()
    return config


def read_legacy_session(config: SessionConfig, session: object, models: Collection[str]) -> SessionConfig:
    """The same of a ``transcription_session.update``.

    Raises:
        EventError: see :func:`read_session`.
    """
    fields = _Fields(session, "session")
    if fields.has("input_audio_format"):
        name = fields.text("input_audio_format")
        if name not in _LEGACY_FORMATS:
            known = ", ".join(_LEGACY_FORMATS)
            raise EventError(
                f"session.input_audio_format must be one of {known}", "invalid_value", "session.input_audio_format"
            )
        encoding = _LEGACY_FORMATS[name]
        rate = DEFAULT_RATE if encoding == "audio/pcm" else TELEPHONE_RATE
        config = msgspec.structs.replace(config, encoding=encoding, rate=rate)
    if fields.has("input_audio_transcription"):
        given = fields.take("input_audio_transcription")
        config = _transcription(config, given, "session.input_audio_transcription", models)
    if fields.has("turn_detection"):
        config = _turn_detection(config, fields.take("turn_detection"), "session.turn_detection")
    fields.refuse("input_audio_noise_reduction", _NO_NOISE_REDUCTION)
    fields.refuse("include", _NO_INCLUDE)
    fields.refuse("client_secret", "this server makes no secrets; leave it out")
    if fields.take("modalities") not in (None, ["text"]):
        raise EventError('session.modalities must be ["text"]', "unsupported_parameter", "session.modalities")
    fields.done()
    return config


def _format(config: SessionConfig, fields: _Fields) -> SessionConfig:
    encoding = fields.take("type") if fields.has("type") else config.encoding
    if encoding == "audio/pcm":
        rate = config.rate if encoding == config.encoding else DEFAULT_RATE
        if fields.has("rate"):
            rate = fields.integer("rate", LOWEST_RATE, HIGHEST_RATE)
    elif encoding in ("audio/pcmu", "audio/pcma"):
        rate = fields.integer("rate", TELEPHONE_RATE, TELEPHONE_RATE) if fields.has("rate") else TELEPHONE_RATE
    else:
        name = fields.name("type")
        raise EventError(f"{name} must be audio/pcm, audio/pcmu or audio/pcma", "invalid_value", name)
    fields.done()
    return msgspec.structs.replace(config, encoding=encoding, rate=rate)


def _transcription(config: SessionConfig, given: object, path: str, models: Collection[str]) -> SessionConfig:
    if given is None:
        raise EventError(f"{path} cannot be turned off: it is all that this server does", "unsupported_parameter", path)
    fields = _Fields(given, path)
    if fields.has("model") and (model := fields.text("model", LONGEST_MODEL)):
        config = msgspec.structs.replace(config, model=checked_model(model, models, fields.name("model")))
    if fields.has("language"):
        config = msgspec.structs.replace(config, language=fields.text("language") or None)
    if fields.has("prompt"):
        config = msgspec.structs.replace(config, prompt=fields.text("prompt", LONGEST_PROMPT))
    fields.refuse("delay", "is not available here; leave it out")
    fields.refuse("keywords", "is not available here; put the words into the prompt")
    fields.refuse("languages", "is not available here; give one language, or none to have it detected")
    fields.done()
    return config


def _turn_detection(config: SessionConfig, given: object, path: str) -> SessionConfig:
    if given is None:
        return msgspec.structs.replace(config, pause=None)
    fields = _Fields(given, path)
    kind = fields.take("type") if fields.has("type") else "server_vad"
    if kind != "server_vad":
        name = fields.name("type")
        raise EventError(f"{name} must be server_vad, or {path} null", "unsupported_parameter", name)
    pause = DEFAULT_PAUSE_MS if config.pause is None else config.pause
    if fields.has("silence_duration_ms"):
        pause = fields.integer("silence_duration_ms", SHORTEST_PAUSE_MS, LONGEST_PAUSE_MS)
    fields.refuse("threshold", "the threshold of the voice activity detection is fixed here; leave it out")
    fields.refuse("prefix_padding_ms", "what is kept before speech is fixed here; leave it out")
    fields.refuse("idle_timeout_ms", "is not available here; leave it out")
    for name in ("create_response", "interrupt_response"):
        fields.refuse(name, "there are no responses here; leave it out")
    fields.refuse("eagerness", "belongs to semantic_vad, which is not available here; leave it out")
    fields.done()
    return msgspec.structs.replace(config, pause=pause)


def checked_model(name: str, models: Collection[str], param: str) -> str:
    """``name``, which must be one of ``models``.

    Raises:
        EventError: it is not.
    """
    if name not in models:
        raise EventError(
            f"there is no model {name[:_MOST_SHOWN]!r} here, only {', '.join(models)}", "model_not_found", param
        )
    return name


def as_session(config: SessionConfig, session_id: str) -> dict[str, Any]:
    """The ``session`` of ``session.created`` and ``session.updated``: all that is in force."""
    telephone = config.encoding != "audio/pcm"
    return {
        "type": "transcription",
        "object": "realtime.transcription_session",
        "id": session_id,
        "audio": {
            "input": {
                "format": {"type": config.encoding} if telephone else {"type": config.encoding, "rate": config.rate},
                "noise_reduction": None,
                "transcription": {"model": config.model, "language": config.language, "prompt": config.prompt},
                "turn_detection": _as_turn_detection(config),
            }
        },
        "include": None,
    }


def as_legacy_session(config: SessionConfig, session_id: str) -> dict[str, Any]:
    """The same in ``transcription_session.updated``."""
    formats = {encoding: name for name, encoding in _LEGACY_FORMATS.items()}
    return {
        "object": "realtime.transcription_session",
        "id": session_id,
        "modalities": ["text"],
        "input_audio_format": formats[config.encoding],
        "input_audio_noise_reduction": None,
        "input_audio_transcription": {
            "model": config.model,
            "language": config.language,
            "prompt": config.prompt,
        },
        "turn_detection": _as_turn_detection(config),
        "include": None,
    }


def _as_turn_detection(config: SessionConfig) -> dict[str, Any] | None:
    return None if config.pause is None else {"type": "server_vad", "silence_duration_ms": config.pause}
