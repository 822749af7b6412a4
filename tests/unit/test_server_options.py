"""Fields of a transcription request: each is honoured or refused, none is ignored."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.server.http.api_errors import ApiError
from runtime.server.openai.options import TranscriptionOptions, parse_options


def parse(*, vad: Any = True, **fields: Any) -> TranscriptionOptions:
    values = {name: [given] if isinstance(given, str) else given for name, given in fields.items()}
    return parse_options(values, vad=vad)


def test_defaults() -> None:
    assert parse() == TranscriptionOptions(None, None, "", "json", False)


def test_everything() -> None:
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
    assert options == TranscriptionOptions("m", "en", "Sara, Jon", "verbose_json", True)
    words = parse(response_format="verbose_json", **{"timestamp_granularities[]": ["segment", "word"]})
    assert words.words


def test_an_empty_language_is_none() -> None:
    assert parse(language="").language is None


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"response_format": "xml"}, "response_format", "'xml' is none of json, text, verbose_json, srt, vtt"),
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
        ({"timestamp_granularities[]": ["hour"]}, "timestamp_granularities", "neither segment nor word"),
        ({"timestamp_granularities": ["segment"]}, "timestamp_granularities", "needs response_format verbose_json"),
        ({"include[]": ["logprobs"]}, "include", "'logprobs' is not supported"),
        ({"chunking_strategy": "none"}, "chunking_strategy", '"auto" or an object'),
        ({"chunking_strategy": "[" * 100_000}, "chunking_strategy", '"auto" or an object'),
        ({"chunking_strategy": '{"type":"server_vad","threshold":0.9}'}, "chunking_strategy", "threshold cannot be"),
        ({"chunking_strategy[type]": "server_vad", "chunking_strategy[threshold]": "1"}, "chunking_strategy", "be set"),
        ({"chunking_strategy": "auto", "chunking_strategy[type]": "server_vad"}, "chunking_strategy", "twice"),
        ({"language": "x" * 65}, "language", "no name or code"),
        ({"keywords[]": ["Jon"]}, "keywords", "into `prompt`"),
        ({"known_speaker_names[]": ["Jon"]}, "known_speaker_names", "speakers"),
        ({"beam_size": "5"}, "beam_size", "Unknown field 'beam_size'; known are file, model"),
        ({"model[]": "x"}, "model[]", "Unknown field"),
        ({"chunking_strategy[colour]": "x"}, "chunking_strategy[colour]", "Unknown field"),
        ({"model": ["a", "b"]}, "model", "given 2 times"),
    ],
)
def test_what_cannot_be_honoured_is_refused(fields: dict[str, str | list[str]], param: str, says: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse(**fields)
    assert refused.value.status == 400
    assert refused.value.param == param
    assert says in str(refused.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"chunking_strategy": "auto"},
        {"chunking_strategy": '{"type": "server_vad"}'},
        {"chunking_strategy[type]": "server_vad"},
    ],
)
def test_cutting_by_voice_activity_needs_voice_activity(fields: dict[str, str]) -> None:
    parse(**fields)
    with pytest.raises(ApiError, match="without voice activity"):
        parse(vad=False, **fields)
