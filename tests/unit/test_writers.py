"""Tests of subtitles, tables and JSON against text written by hand."""

from __future__ import annotations

import csv
import io

import msgspec
import pytest

from runtime import Segment, Transcript
from runtime.cli.live_output import event_as_json
from runtime.engines.base import SegmentResult, Span
from runtime.pipeline.events import Final
from runtime.pipeline.spans import join_results, segment_of
from runtime.results import Timings, TokenCounts, Word
from runtime.writers import FORMATS, as_json, as_srt, as_tsv, as_vtt


def segment(start: float, end: float, text: str) -> Segment:
    return msgspec.convert(
        {
            "start": start,
            "end": end,
            "text": text,
            "language": "English",
            "confidence": 1.0,
            "finish_reason": "stop",
            "tokens": [],
        },
        Segment,
    )


def transcript(*segments: Segment) -> Transcript:
    text = " ".join(each.text for each in segments)
    return Transcript(text, "English", 1.0, list(segments), Timings(), TokenCounts(0, 0, 0), "m", "cpu", {})


TRANSCRIPT = transcript(
    segment(0.0, 2.0674, "Tom & Jerry <b>"),
    segment(2.067, 3599.9996, ""),
    segment(3599.9996, 3661.5, "two\n\nlines\tand --> an arrow"),
    segment(90000.0, 90000.0, "short"),
)


def test_srt() -> None:
    assert as_srt(TRANSCRIPT) == (
        "1\n00:00:00,000 --> 00:00:02,067\nTom & Jerry <b>\n\n"
        "2\n01:00:00,000 --> 01:01:01,500\ntwo lines and --> an arrow\n\n"
        "3\n25:00:00,000 --> 25:00:00,001\nshort\n"
    )


def test_vtt() -> None:
    assert as_vtt(TRANSCRIPT) == (
        "WEBVTT\n\n"
        "00:00:00.000 --> 00:00:02.067\nTom &amp; Jerry &lt;b&gt;\n\n"
        "01:00:00.000 --> 01:01:01.500\ntwo lines and --&gt; an arrow\n\n"
        "25:00:00.000 --> 25:00:00.001\nshort\n"
    )


def test_tsv() -> None:
    rows = list(csv.reader(io.StringIO(as_tsv(TRANSCRIPT)), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert rows == [
        ["start", "end", "text"],
        ["0", "2067", "Tom & Jerry <b>"],
        ["3600000", "3661500", "two lines and --> an arrow"],
        ["90000000", "90000001", "short"],
    ]


@pytest.mark.parametrize("format", FORMATS)
def test_transcript_without_text_is_a_valid_file(format: str) -> None:
    expected = {"srt": "", "vtt": "WEBVTT\n", "tsv": "start\tend\ttext\n", "txt": "\n"}
    text = FORMATS[format](transcript(segment(0.0, 1.0, "")))
    assert text == expected[format] if format in expected else msgspec.json.decode(text)["text"] == ""


def test_dropped_text_is_in_json_only() -> None:
    result = SegmentResult("", None, [1], 0.5, "stop", 1, 0, no_speech_prob=0.812345, dropped_text="Thank you.")
    dropped = segment_of(Span(16_000, 8_000, result, None), 16_000)
    first, second = msgspec.json.decode(as_json(transcript(dropped, segment(3.0, 4.0, "x"))))["segments"]
    assert (first["text"], first["dropped_text"], first["no_speech_prob"]) == ("", "Thank you.", 0.8123)
    assert not {"dropped_text", "no_speech_prob"} & set(second)
    assert "Thank you" not in "".join(FORMATS[name](transcript(dropped)) for name in ("txt", "srt", "vtt", "tsv"))


def test_joined_parts_keep_what_was_dropped() -> None:
    spoken = SegmentResult("Yes.", "English", [1], 0.5, "stop", 1, 0, no_speech_prob=0.1)
    dropped = SegmentResult("", None, [2], 0.5, "stop", 1, 0, no_speech_prob=0.9, dropped_text="you")
    joined = join_results([dropped, spoken, dropped])
    assert (joined.text, joined.no_speech_prob, joined.dropped_text) == ("Yes.", 0.1, "you you")
    unknown = join_results([SegmentResult("Yes.", None, [1], 0.5, "stop", 1, 0)])
    assert (unknown.no_speech_prob, unknown.dropped_text) == (None, None)


def test_words_have_times_of_the_audio_and_are_left_out_if_missing() -> None:
    result = SegmentResult(
        "Hi, you", None, [1], 0.5, "stop", 1, 0, [Word("Hi,", 0.1, 0.2, 0.98765), Word("you", 0.3, 0.4, 1)]
    )
    with_words = segment_of(Span(32_000, 16_000, result, None), 16_000)
    assert with_words.words == [Word("Hi,", 2.1, 2.2, 0.9877), Word("you", 2.3, 2.4, 1.0)]
    expected = [{"text": "Hi,", "start": 2.1, "end": 2.2, "confidence": 0.9877}]
    expected.append({"text": "you", "start": 2.3, "end": 2.4, "confidence": 1.0})
    first, second = msgspec.json.decode(as_json(transcript(with_words, segment(3.0, 4.0, "x"))))["segments"]
    assert first["words"] == expected
    assert "words" not in second
    assert msgspec.json.decode(event_as_json(Final(0, with_words, True)))["result"]["words"] == expected
    assert "words" not in msgspec.json.decode(event_as_json(Final(0, segment(3.0, 4.0, "x"), True)))["result"]
    assert FORMATS["srt"](transcript(with_words)) == "1\n00:00:02,000 --> 00:00:03,000\nHi, you\n"
