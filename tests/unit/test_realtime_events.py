"""Tests of the translation of a stream's events to OpenAI's server events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.pipeline.events import Event, Speech
from runtime.pipeline.join_text import join_texts
from runtime.server.realtime.events import EventTranslator
from tests.helpers.realtime import (
    TRANSCRIPTION,
    deltas,
    final,
    partial,
)

WORDS = st.sampled_from(["It", " was", "你好", "。", "...", ".", ' "quoted"', "'", " ", "(a)", "é", "ไทย", "!"])
TEXTS = st.lists(WORDS, max_size=6).map(lambda words: "".join(words).strip())


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[Event], list[str]]:
    """Draw the events of consecutive segments, whose partials extend the stable text, and the final texts."""
    events: list[Event] = []
    texts = draw(st.lists(TEXTS, max_size=4))
    for number, text in enumerate(texts):
        if draw(st.booleans()):
            events.append(Speech(number, float(number)))
        indices = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
        events.extend(partial(number, number + 0.5, text[:index], draw(TEXTS)) for index in indices)
        events.append(final(number, float(number), number + 1.0, text, draw(st.sampled_from([None, "English"]))))
    return events, texts


class TestDeltas:
    @given(streams())
    def test_deltas_of_a_segment_are_its_transcript(self, stream: tuple[list[Event], list[str]]) -> None:
        events, texts = stream
        translator = EventTranslator(partials=True)
        translator.start_stream(0.0, turn=False, codes={})
        sent: dict[str, str] = {}
        transcripts = []
        for event in events:
            for each in translator.translate(event):
                if each["type"] == f"{TRANSCRIPTION}.delta":
                    assert each["delta"]
                    sent[each["item_id"]] = sent.get(each["item_id"], "") + each["delta"]
                if each["type"] == f"{TRANSCRIPTION}.partial":
                    assert each["stable"] == sent.get(each["item_id"], "")
                if each["type"] == f"{TRANSCRIPTION}.completed":
                    assert each["transcript"] == sent.pop(each["item_id"], "")
                    transcripts.append(each["transcript"])
        assert transcripts == texts
        assert not sent

    @given(streams())
    def test_deltas_of_a_turn_are_the_joined_transcript(self, stream: tuple[list[Event], list[str]]) -> None:
        events, texts = stream
        translator = EventTranslator(partials=True)
        translator.start_stream(0.0, turn=True, codes={})
        whole, sent = join_texts(texts), ""
        server_events = [each for event in events for each in translator.translate(event)]
        for each in [*server_events, *translator.commit_turn(), *translator.complete_turn(9.0)]:
            if each["type"] == f"{TRANSCRIPTION}.delta":
                sent += each["delta"]
                assert whole.startswith(sent)
            if each["type"] == f"{TRANSCRIPTION}.partial":
                assert each["stable"] == sent
        assert sent == whole
        assert each["transcript"] == whole

    def test_texts_are_sent_in_order(self) -> None:
        translator = EventTranslator()
        translator.start_stream(0.0, turn=True, codes={})
        assert not translator.translate(Speech(0, 0.0))
        assert not translator.translate(partial(1, 2.0, "later", ""))
        assert not translator.translate(final(1, 1.0, 2.0, "later"))
        assert deltas(translator.translate(final(0, 0.0, 1.0, "first"))) == "first later"

    def test_changed_stable_text_fails(self) -> None:
        translator = EventTranslator()
        translator.start_stream(0.0, turn=False, codes={})
        translator.translate(partial(0, 1.0, "It", ""))
        with pytest.raises(AssertionError):
            translator.translate(final(0, 0.0, 1.0, "At"))
