"""What a request for a transcription may say, after OpenAI's audio API: each field is honoured or refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal, get_args

import msgspec

from runtime.server.http.problems import invalid
from runtime.server.http.uploads import FILE_FIELD

ResponseFormat = Literal["json", "text", "verbose_json", "srt", "vtt"]
_FORMATS = get_args(ResponseFormat)
_STREAMED = ("json", "text", "verbose_json")

# No language has a longer name; what is longer is not looked up, nor repeated in a message.
_LONGEST_NAME = 64

_LISTS = ("timestamp_granularities", "include")
_VAD_OPTIONS = ("prefix_padding_ms", "silence_duration_ms", "threshold")
_SINGLE = ("model", "language", "prompt", "response_format", "temperature", "stream", "chunking_strategy")
# OpenAI's fields that no model here can honour, and what to do instead.
_REFUSED = {
    "keywords": "write the words into `prompt`",
    "languages": "give one `language`, or none to have it detected",
    "known_speaker_names": "speakers are not told apart",
    "known_speaker_references": "speakers are not told apart",
}


class TranscriptionOptions(msgspec.Struct, frozen=True):
    """A checked request. ``model`` is None for the server's first; ``language`` is as the client wrote it.

    ``words``: the times of words are asked for, beside those of segments.
    """

    model: str | None = None
    language: str | None = None
    prompt: str = ""
    response_format: ResponseFormat = "json"
    stream: bool = False
    words: bool = False


def transcription_options(values: Mapping[str, list[str]], *, vad: bool) -> TranscriptionOptions:
    """Check a form's values by field.

    ``vad``: the server cuts audio where nobody speaks, which is what a ``chunking_strategy`` asks for.

    Raises:
        RequestProblem: a field is unknown or given twice, or its value cannot be honoured.
    """
    single, lists, strategy = _sorted(values)
    format = single.get("response_format", "json")
    if format == "diarized_json":
        raise invalid("response_format diarized_json is not supported: speakers are not told apart.", "response_format")
    if format not in _FORMATS:
        raise invalid(f"response_format {format[:40]!r} is none of {', '.join(_FORMATS)}.", "response_format")
    stream = _stream(single.get("stream", "false"), format)
    if len(single.get("language", "")) > _LONGEST_NAME:
        raise invalid("language is no name or code of a language.", "language")
    _check_temperature(single.get("temperature", "0"))
    words = _words(lists["timestamp_granularities"], format, stream=stream)
    _check_include(lists["include"])
    _check_strategy(single.get("chunking_strategy"), strategy, vad=vad)
    return TranscriptionOptions(
        model=single.get("model"),
        language=single.get("language") or None,
        prompt=single.get("prompt", ""),
        response_format=format,  # type: ignore[arg-type]  # it is one of them
        stream=stream,
        words=words,
    )


def _sorted(values: Mapping[str, list[str]]) -> tuple[dict[str, str], dict[str, list[str]], dict[str, str]]:
    """Single values, lists, and what is inside of ``chunking_strategy[…]``."""
    single: dict[str, str] = {}
    lists: dict[str, list[str]] = {name: [] for name in _LISTS}
    strategy: dict[str, str] = {}
    for name, given in values.items():
        plain = name.removesuffix("[]")
        inner = name.removeprefix("chunking_strategy[").removesuffix("]")
        if plain in _LISTS:
            lists[plain] += given
        elif plain in _REFUSED:
            raise invalid(f"`{plain}` is not supported: {_REFUSED[plain]}.", plain)
        elif name not in _SINGLE and not (name == f"chunking_strategy[{inner}]" and inner in ("type", *_VAD_OPTIONS)):
            known = ", ".join((FILE_FIELD, *_SINGLE, *_LISTS))
            raise invalid(f"Unknown field {name[:40]!r}; known are {known}.", name[:40])
        elif len(given) > 1:
            raise invalid(f"`{name}` is given {len(given)} times.", name)
        elif name in _SINGLE:
            single[name] = given[0]
        else:
            strategy[inner] = given[0]
    return single, lists, strategy


def _stream(value: str, format: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise invalid(f"stream must be true or false, not {value[:40]!r}.", "stream")
    if value.lower() == "true" and format not in _STREAMED:
        raise invalid(f"response_format {format} cannot be streamed; {', '.join(_STREAMED)} can.", "response_format")
    return value.lower() == "true"


def _check_temperature(value: str) -> None:
    try:
        temperature = float(value)
    except ValueError:
        raise invalid(f"temperature must be a number, not {value[:40]!r}.", "temperature") from None
    if temperature != 0:
        raise invalid("temperature must be 0: the most likely token is taken, nothing is drawn.", "temperature")


def _words(given: list[str], format: str, *, stream: bool) -> bool:
    """Whether the times of words are asked for; whether the model can tell them is another matter."""
    name = "timestamp_granularities"
    for each in given:
        if each not in ("segment", "word"):
            raise invalid(f"timestamp_granularities {each[:40]!r} is neither segment nor word.", name)
    if given and format != "verbose_json":
        raise invalid("timestamp_granularities needs response_format verbose_json.", name)
    if "word" in given and stream:
        raise invalid("timestamp_granularities word cannot be streamed; ask without stream.", name)
    return "word" in given


def _check_include(given: list[str]) -> None:
    if given:
        raise invalid(f"include {given[0][:40]!r} is not supported: no more than the transcript is given.", "include")


def _check_strategy(value: str | None, fields: dict[str, str], *, vad: bool) -> None:
    """``auto``, or a ``server_vad`` without settings of its own: as JSON, or in fields with brackets."""
    name = "chunking_strategy"
    if value is None and not fields:
        return
    given: object = fields
    if value is not None:
        if fields:
            raise invalid("chunking_strategy is given twice.", name)
        given = {"type": "server_vad"} if value == "auto" else _object(value)
    if not isinstance(given, dict) or given.get("type") != "server_vad":
        raise invalid('chunking_strategy must be "auto" or an object of the type server_vad.', name)
    if others := sorted(str(key)[:40] for key in given if key != "type"):
        raise invalid(f"chunking_strategy: {', '.join(others)} cannot be set on this server.", name)
    if not vad:
        raise invalid("chunking_strategy is not supported: this server runs without voice activity detection.", name)


def _object(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
