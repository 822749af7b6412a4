"""Tests of the fields of a transcription request: each is supported or refused, none is ignored."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.server.http.api_errors import ApiError
from runtime.server.openai.options import TranscriptionOptions, parse_options


def parse(*, vad: Any = True, **fields: Any) -> TranscriptionOptions:
    values = {name: [value] if isinstance(value, str) else value for name, value in fields.items()}
    return parse_options(values, vad=vad)


def test_defaults() -> None:
    assert parse() == TranscriptionOptions(None, None, "", "json", False)


def test_all_fields() -> None:
    options = parse(
        model="m",
        language="en",
        prompt="Sara, Jon",
        response_format="verbose_json",
        temperature="0.0",
        stream="True",
        chunking_strategy="auto",
        **{"timestamp_granularities[]": ["segment"]},
    )
    assert options == TranscriptionOptions("m", "en", "Sara, Jon", "verbose_json", True, segments=True)
    words = parse(response_format="verbose_json", **{"timestamp_granularities[]": ["segment", "word"]})
    assert words.words


def test_empty_values_count_as_not_given() -> None:
    """Clients send empty fields for options that are not set."""
    assert parse(model="", language="", prompt="", temperature="") == parse()


@pytest.mark.parametrize(
    ("format", "granularities", "segments", "words"),
    [
        ("json", [], False, False),
        ("text", [], False, False),
        ("srt", [], True, False),
        ("vtt", [], True, False),
        ("verbose_json", [], True, False),
        ("verbose_json", ["segment"], True, False),
        ("verbose_json", ["word"], False, True),
        ("verbose_json", ["segment", "word"], True, True),
    ],
)
def test_times_of_segments_and_words(format: str, granularities: list[str], segments: bool, words: bool) -> None:
    options = parse(response_format=format, **{"timestamp_granularities[]": granularities})
    assert (options.segments, options.words) == (segments, words)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"response_format": "xml"}, "response_format", "json, text, verbose_json, srt, vtt, not 'xml'"),
        ({"response_format": "diarized_json"}, "response_format", "speakers"),
        ({"temperature": "0.5"}, "temperature", "must be 0"),
        ({"temperature": "nan"}, "temperature", "must be 0"),
        ({"temperature": "hot"}, "temperature", "a number, not 'hot'"),
        ({"stream": "maybe"}, "stream", "true or false"),
        ({"stream": "true", "response_format": "srt"}, "response_format", "srt cannot be streamed"),
        ({"timestamp_granularities[]": ["word"]}, "timestamp_granularities", "needs response_format verbose_json"),
        (
            {"timestamp_granularities[]": ["word"], "response_format": "verbose_json", "stream": "true"},
            "timestamp_granularities",
            "word cannot be streamed",
        ),
        ({"timestamp_granularities[]": ["hour"]}, "timestamp_granularities", "segment or word, not 'hour'"),
        ({"timestamp_granularities": ["segment"]}, "timestamp_granularities", "needs response_format verbose_json"),
        ({"include[]": ["logprobs"]}, "include", "'logprobs' is not supported"),
        ({"chunking_strategy": "none"}, "chunking_strategy", '"auto" or an object'),
        ({"chunking_strategy": "[" * 100_000}, "chunking_strategy", '"auto" or an object'),
        ({"chunking_strategy": '{"type":"server_vad","threshold":0.9}'}, "chunking_strategy", "threshold cannot be"),
        ({"chunking_strategy[type]": "server_vad", "chunking_strategy[threshold]": "1"}, "chunking_strategy", "be set"),
        ({"chunking_strategy": "auto", "chunking_strategy[type]": "server_vad"}, "chunking_strategy", "twice"),
        ({"language": "x" * 65}, "language", "longer than 64"),
        ({"keywords[]": ["Jon"]}, "keywords", "into `prompt`"),
        ({"known_speaker_names[]": ["Jon"]}, "known_speaker_names", "speakers"),
        ({"beam_size": "5"}, "beam_size", "'beam_size'; known fields: file, model"),
        ({"model[]": "x"}, "model[]", "Unknown field"),
        ({"chunking_strategy[colour]": "x"}, "chunking_strategy[colour]", "Unknown field"),
        ({"model": ["a", "b"]}, "model", "given 2 times"),
    ],
)
def test_unsupported_fields_are_refused(fields: dict[str, str | list[str]], param: str, message: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse(**fields)
    assert refused.value.status == 400
    assert refused.value.param == param
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"chunking_strategy": "auto"},
        {"chunking_strategy": '{"type": "server_vad"}'},
        {"chunking_strategy[type]": "server_vad"},
    ],
)
def test_chunking_strategy_needs_voice_activity_detection(fields: dict[str, str]) -> None:
    parse(**fields)
    with pytest.raises(ApiError, match="without voice activity"):
        parse(vad=False, **fields)
