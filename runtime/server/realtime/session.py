"""Configuration of a live session: parsing of ``session.update`` and the content of ``session.updated``.

Both forms of OpenAI's transcription sessions are supported: ``session.update`` with its nested ``audio``, and the
older, flat ``transcription_session.update``. Fields that are absent keep their value. An unsupported field is refused
by name, and then no part of the update is applied.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import msgspec

from runtime.errors import AsrError

Encoding = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]

DEFAULT_RATE = 24_000
TELEPHONE_RATE = 8_000
MIN_RATE, MAX_RATE = 8_000, 48_000
DEFAULT_PAUSE_MS = 800
# A segment includes 0.25 s of silence on both sides, so a pause shorter than both together cannot end it.
MIN_PAUSE_MS, MAX_PAUSE_MS = 500, 10_000
# Characters. The model processes the prompt with every segment.
MAX_MODEL_LENGTH, MAX_PROMPT_LENGTH = 256, 16_384
# Characters of a client's value that an error message repeats.
_MAX_QUOTED = 64

_LEGACY_FORMATS: dict[str, Encoding] = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}

_NO_INCLUDE = "log-probabilities and other additions are not supported; leave it out"
_NO_NOISE_REDUCTION = "noise reduction is not supported; set it to null"


class EventError(AsrError, ValueError):
    """Invalid or unsupported event of a client.

    Attributes:
        code: machine-readable error code, or None.
        param: path of the wrong field, or None.
    """

    def __init__(self, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


class SessionConfig(msgspec.Struct, frozen=True):
    """Configuration of a session.

    Attributes:
        model: model name.
        encoding: encoding of appended audio.
        rate: sample rate of appended audio in Hz, 8000 to 48000.
        language: name or code; None to detect it.
        prompt: context for the model.
        pause: silence in ms that ends a segment, 500 to 10000; None if only a commit ends a turn.
    """

    model: str
    encoding: Encoding = "audio/pcm"
    rate: int = DEFAULT_RATE
    language: str | None = None
    prompt: str = ""
    pause: int | None = DEFAULT_PAUSE_MS


class _FieldReader:
    """Reads the fields of a JSON object one by one; fields that were not read are unknown."""

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, Mapping):
            raise EventError(f"{path} must be an object", "invalid_type", path)
        self._fields: dict[str, Any] = dict(value)
        self._path = path

    def name(self, field: str) -> str:
        return f"{self._path}.{field}"

    def has(self, field: str) -> bool:
        return field in self._fields

    def take(self, field: str) -> Any:
        return self._fields.pop(field, None)

    def text(self, field: str, max_length: int = 64) -> str:
        """Return a string; null becomes the empty string."""
        value = self.take(field)
        if value is not None and (not isinstance(value, str) or len(value) > max_length):
            name = self.name(field)
            raise EventError(f"{name} must be a string of at most {max_length} characters", "invalid_value", name)
        return value or ""

    def integer(self, field: str, minimum: int, maximum: int) -> int:
        value = self.take(field)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise EventError(
                f"{self.name(field)} must be an integer from {minimum} to {maximum}", "invalid_value", self.name(field)
            )
        return value

    def refuse(self, field: str, reason: str) -> None:
        """Refuse ``field`` unless it is absent, null, false or empty."""
        value = self.take(field)
        if value is not None and value is not False and value != []:
            raise EventError(f"{self.name(field)}: {reason}", "unsupported_parameter", self.name(field))

    def done(self) -> None:
        """Refuse any field that was not read."""
        for field in self._fields:
            field = field[:_MAX_QUOTED]
            raise EventError(f"unknown parameter {self.name(field)}", "unknown_parameter", self.name(field))


def read_session(config: SessionConfig, session: object, models: Collection[str]) -> SessionConfig:
    """Apply the ``session`` of a ``session.update`` to ``config``.

    Args:
        config: current configuration.
        session: the event's object.
        models: names of the available models.

    Raises:
        EventError: a field has the wrong type or an invalid value.
        EventError: a field is unknown.
        EventError: a field or its value is not supported.
    """
    fields = _FieldReader(session, "session")
    if fields.take("type") != "transcription":
        raise EventError(
            'session.type must be "transcription"; no other type is supported', "invalid_value", "session.type"
        )
    fields.refuse("include", _NO_INCLUDE)
    if fields.has("audio"):
        audio = _FieldReader(fields.take("audio"), "session.audio")
        if audio.has("input"):
            audio_input = _FieldReader(audio.take("input"), "session.audio.input")
            if audio_input.has("format"):
                config = _format(config, _FieldReader(audio_input.take("format"), audio_input.name("format")))
            audio_input.refuse("noise_reduction", _NO_NOISE_REDUCTION)
            if audio_input.has("transcription"):
                config = _transcription(
                    config, audio_input.take("transcription"), audio_input.name("transcription"), models
                )
            if audio_input.has("turn_detection"):
                config = _turn_detection(config, audio_input.take("turn_detection"), audio_input.name("turn_detection"))
            audio_input.done()
        audio.refuse("output", "this server has no audio output; leave it out")
        audio.done()
    fields.done()
    return config


def read_legacy_session(config: SessionConfig, session: object, models: Collection[str]) -> SessionConfig:
    """Apply the ``session`` of a ``transcription_session.update`` to ``config``.

    Args:
        config: current configuration.
        session: the event's object.
        models: names of the available models.

    Raises:
        EventError: a field has the wrong type or an invalid value.
        EventError: a field is unknown.
        EventError: a field or its value is not supported.
    """
    fields = _FieldReader(session, "session")
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
        transcription = fields.take("input_audio_transcription")
        config = _transcription(config, transcription, "session.input_audio_transcription", models)
    if fields.has("turn_detection"):
        config = _turn_detection(config, fields.take("turn_detection"), "session.turn_detection")
    fields.refuse("input_audio_noise_reduction", _NO_NOISE_REDUCTION)
    fields.refuse("include", _NO_INCLUDE)
    fields.refuse("client_secret", "client secrets are not supported; leave it out")
    if fields.take("modalities") not in (None, ["text"]):
        raise EventError('session.modalities must be ["text"]', "unsupported_parameter", "session.modalities")
    fields.done()
    return config


def _format(config: SessionConfig, fields: _FieldReader) -> SessionConfig:
    encoding = fields.take("type") if fields.has("type") else config.encoding
    if encoding == "audio/pcm":
        rate = config.rate if encoding == config.encoding else DEFAULT_RATE
        if fields.has("rate"):
            rate = fields.integer("rate", MIN_RATE, MAX_RATE)
    elif encoding in ("audio/pcmu", "audio/pcma"):
        rate = fields.integer("rate", TELEPHONE_RATE, TELEPHONE_RATE) if fields.has("rate") else TELEPHONE_RATE
    else:
        name = fields.name("type")
        raise EventError(f"{name} must be audio/pcm, audio/pcmu or audio/pcma", "invalid_value", name)
    fields.done()
    return msgspec.structs.replace(config, encoding=encoding, rate=rate)


def _transcription(config: SessionConfig, value: object, path: str, models: Collection[str]) -> SessionConfig:
    if value is None:
        raise EventError(f"{path} cannot be null: this server only transcribes", "unsupported_parameter", path)
    fields = _FieldReader(value, path)
    if fields.has("model") and (model := fields.text("model", MAX_MODEL_LENGTH)):
        config = msgspec.structs.replace(config, model=checked_model(model, models, fields.name("model")))
    if fields.has("language"):
        config = msgspec.structs.replace(config, language=fields.text("language") or None)
    if fields.has("prompt"):
        config = msgspec.structs.replace(config, prompt=fields.text("prompt", MAX_PROMPT_LENGTH))
    fields.refuse("delay", "is not supported; leave it out")
    fields.refuse("keywords", "is not supported; write the words into the prompt")
    fields.refuse("languages", "is not supported; give one language, or none to detect it")
    fields.done()
    return config


def _turn_detection(config: SessionConfig, value: object, path: str) -> SessionConfig:
    if value is None:
        return msgspec.structs.replace(config, pause=None)
    fields = _FieldReader(value, path)
    kind = fields.take("type") if fields.has("type") else "server_vad"
    if kind != "server_vad":
        name = fields.name("type")
        raise EventError(f"{name} must be server_vad, or {path} must be null", "unsupported_parameter", name)
    pause = DEFAULT_PAUSE_MS if config.pause is None else config.pause
    if fields.has("silence_duration_ms"):
        pause = fields.integer("silence_duration_ms", MIN_PAUSE_MS, MAX_PAUSE_MS)
    fields.refuse("threshold", "the threshold of the voice activity detection is fixed; leave it out")
    fields.refuse("prefix_padding_ms", "the padding before speech is fixed; leave it out")
    fields.refuse("idle_timeout_ms", "is not supported; leave it out")
    for name in ("create_response", "interrupt_response"):
        fields.refuse(name, "this server creates no responses; leave it out")
    fields.refuse("eagerness", "belongs to semantic_vad, which is not supported; leave it out")
    fields.done()
    return msgspec.structs.replace(config, pause=pause)


def checked_model(name: str, models: Collection[str], param: str) -> str:
    """Return ``name`` if it is one of ``models``.

    Args:
        name: model name.
        models: names of the available models.
        param: path of the field, for the error.

    Raises:
        EventError: the model does not exist.
    """
    if name not in models:
        raise EventError(
            f"the model {name[:_MAX_QUOTED]!r} does not exist; available models: {', '.join(models)}",
            "model_not_found",
            param,
        )
    return name


def as_session(config: SessionConfig, session_id: str) -> dict[str, Any]:
    """Return the ``session`` of ``session.created`` and ``session.updated``: the whole configuration."""
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
    """Return the ``session`` of ``transcription_session.updated``: the whole configuration."""
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
