"""Form fields of a transcription request in OpenAI's audio API. Unsupported fields and values are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal, get_args

import msgspec

from runtime.server.http.api_errors import invalid
from runtime.server.http.uploads import FILE_FIELD

ResponseFormat = Literal["json", "text", "verbose_json", "srt", "vtt"]
_FORMATS = get_args(ResponseFormat)
_STREAMABLE = ("json", "text", "verbose_json")

# No name of a language is longer. Longer values are neither looked up nor repeated in a message.
_MAX_LANGUAGE_LENGTH = 64

_MAX_TRACK_DIGITS = 4

_LISTS = ("timestamp_granularities", "include")
_VAD_OPTIONS = ("prefix_padding_ms", "silence_duration_ms", "threshold")
_SINGLE = ("model", "language", "prompt", "response_format", "temperature", "stream", "chunking_strategy", "track")
# OpenAI's fields that no model here supports, with the reason or an alternative.
_UNSUPPORTED = {
    "keywords": "write the words into `prompt`",
    "languages": "give one `language`, or none to detect it",
    "known_speaker_names": "speakers are not identified",
    "known_speaker_references": "speakers are not identified",
}


class TranscriptionOptions(msgspec.Struct, frozen=True):
    """Validated options of a request.

    Attributes:
        model: model name; None for the server's default.
        language: name or code as the client wrote it; None to detect it.
        prompt: context for the model.
        response_format: format of the response.
        stream: send server-sent events.
        words: include times of words.
        track: index of the audio track of a container; None for the default one.
        segments: include times of segments, which the model gives if it can.
    """

    model: str | None = None
    language: str | None = None
    prompt: str = ""
    response_format: ResponseFormat = "json"
    stream: bool = False
    words: bool = False
    track: int | None = None
    segments: bool = False


def parse_options(values: Mapping[str, list[str]], *, vad: bool) -> TranscriptionOptions:
    """Validate the fields of a form.

    Args:
        values: values by field name.
        vad: the server splits audio by voice activity detection, as ``chunking_strategy`` requests.

    Raises:
        ApiError: a field is unknown or repeated.
        ApiError: a field or its value is not supported.
    """
    single, lists, strategy = _split_fields(values)
    format = single.get("response_format", "json")
    if format == "diarized_json":
        raise invalid("response_format diarized_json is not supported: speakers are not identified.", "response_format")
    if format not in _FORMATS:
        message = f"response_format must be one of {', '.join(_FORMATS)}, not {format[:40]!r}."
        raise invalid(message, "response_format")
    stream = _parse_stream(single.get("stream", "false"), format)
    if len(single.get("language", "")) > _MAX_LANGUAGE_LENGTH:
        raise invalid(f"language is longer than {_MAX_LANGUAGE_LENGTH} characters; give a name or code.", "language")
    _check_temperature(single.get("temperature") or "0")
    granularities = _parse_granularities(lists["timestamp_granularities"], format, stream=stream)
    _check_include(lists["include"])
    _check_strategy(single.get("chunking_strategy"), strategy, vad=vad)
    return TranscriptionOptions(
        model=single.get("model") or None,
        language=single.get("language") or None,
        prompt=single.get("prompt", ""),
        response_format=format,  # type: ignore[arg-type]  # checked above
        stream=stream,
        track=_parse_track(single.get("track", "")),
        words="word" in granularities,
        segments=format in ("srt", "vtt") or "segment" in granularities,
    )


def _split_fields(values: Mapping[str, list[str]]) -> tuple[dict[str, str], dict[str, list[str]], dict[str, str]]:
    """Split fields into single values, lists, and the members of ``chunking_strategy[…]``."""
    single: dict[str, str] = {}
    lists: dict[str, list[str]] = {name: [] for name in _LISTS}
    strategy: dict[str, str] = {}
    for name, items in values.items():
        plain = name.removesuffix("[]")
        member = name.removeprefix("chunking_strategy[").removesuffix("]")
        if plain in _LISTS:
            lists[plain] += items
        elif plain in _UNSUPPORTED:
            raise invalid(f"`{plain}` is not supported: {_UNSUPPORTED[plain]}.", plain)
        elif name not in _SINGLE and not (name == f"chunking_strategy[{member}]" and member in ("type", *_VAD_OPTIONS)):
            known = ", ".join((FILE_FIELD, *_SINGLE, *_LISTS))
            raise invalid(f"Unknown field {name[:40]!r}; known fields: {known}.", name[:40])
        elif len(items) > 1:
            raise invalid(f"`{name}` is given {len(items)} times; give it once.", name)
        elif name in _SINGLE:
            single[name] = items[0]
        else:
            strategy[member] = items[0]
    return single, lists, strategy


def _parse_stream(value: str, format: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise invalid(f"stream must be true or false, not {value[:40]!r}.", "stream")
    if value.lower() == "true" and format not in _STREAMABLE:
        message = f"response_format {format} cannot be streamed; use one of {', '.join(_STREAMABLE)}."
        raise invalid(message, "response_format")
    return value.lower() == "true"


def _parse_track(value: str) -> int | None:
    if value and not (value.isascii() and value.isdecimal() and len(value) <= _MAX_TRACK_DIGITS):
        raise invalid(f"track must be the number of an audio track, counted from 0, not {value[:40]!r}.", "track")
    return int(value) if value else None


def _check_temperature(value: str) -> None:
    try:
        temperature = float(value)
    except ValueError:
        raise invalid(f"temperature must be a number, not {value[:40]!r}.", "temperature") from None
    if temperature != 0:
        raise invalid("temperature must be 0: decoding is greedy, without sampling.", "temperature")


def _parse_granularities(values: list[str], format: str, *, stream: bool) -> frozenset[str]:
    """Return ``word`` and ``segment`` as far as they are requested; OpenAI's default for verbose_json is ``segment``.

    Whether the model supports times of words is checked later.
    """
    name = "timestamp_granularities"
    for value in values:
        if value not in ("segment", "word"):
            raise invalid(f"timestamp_granularities must be segment or word, not {value[:40]!r}.", name)
    if values and format != "verbose_json":
        raise invalid("timestamp_granularities needs response_format verbose_json.", name)
    if "word" in values and stream:
        raise invalid("timestamp_granularities word cannot be streamed; leave out stream.", name)
    return frozenset(values or (["segment"] if format == "verbose_json" else []))


def _check_include(values: list[str]) -> None:
    if values:
        message = f"include {values[0][:40]!r} is not supported: there are no additional fields."
        raise invalid(message, "include")


def _check_strategy(value: str | None, members: dict[str, str], *, vad: bool) -> None:
    """Check that the strategy is ``auto`` or a ``server_vad`` without settings.

    Args:
        value: ``auto`` or an object as JSON; None if absent.
        members: members of an object that was given in fields with brackets.
        vad: the server uses voice activity detection.
    """
    name = "chunking_strategy"
    if value is None and not members:
        return
    strategy: object = members
    if value is not None:
        if members:
            raise invalid("chunking_strategy is given twice; give it once.", name)
        strategy = {"type": "server_vad"} if value == "auto" else _parse_json(value)
    if not isinstance(strategy, dict) or strategy.get("type") != "server_vad":
        raise invalid('chunking_strategy must be "auto" or an object of type server_vad.', name)
    if others := sorted(str(key)[:40] for key in strategy if key != "type"):
        raise invalid(f"chunking_strategy: {', '.join(others)} cannot be set on this server.", name)
    if not vad:
        raise invalid("chunking_strategy is not supported: this server runs without voice activity detection.", name)


def _parse_json(text: str) -> object:
    """Return the parsed JSON, or None if it is malformed."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
