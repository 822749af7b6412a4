"""The microphone on the server's page: what is sent, what is shown, and how it ends."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from playwright.sync_api import Page, expect

from tests.helpers.browser import PATIENCE, ScriptedServer
from tests.helpers.page_steps import (
    RECORDING,
    Visit,
    button,
    committed,
    completed,
    partial,
    shown,
    speech_started,
)


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_the_microphone_is_heard_and_its_text_shown(visit: Visit, server: ScriptedServer, motion: str) -> None:
    page = visit(reduced_motion=motion)
    page.get_by_label("Language").fill("English")
    page.get_by_label("Context").fill("Madrid")
    server.before = [speech_started("a"), partial("a", "It was", ""), partial("a", "It was very", " quite")]
    server.after = [
        committed("b"),
        completed("a", "It was very quiet.", 0.2, 1.2),
        completed("b", "In Madrid.", 1.3, 2.0),
    ]
    page.get_by_role("button", name="Use the microphone").click()
    row = page.locator("#partials .segment")
    expect(row.locator("p")).to_have_text("It was very quite")
    expect(row.locator(".unstable")).to_have_text(" quite")
    expect(row.locator("time")).to_have_text("0:00.2")
    expect(page.get_by_role("status")).to_have_text("Listening.")
    expect(page.get_by_role("button", name="Choose a file")).to_be_disabled()
    expect(page.locator("#clock")).to_have_text("0:03")  # the whole recording was played by then
    stop = page.get_by_role("button", name="Stop and keep the transcript")
    stop.focus()
    page.keyboard.press("Space")
    expect(page.get_by_role("status")).to_have_text("Done: 2 segments.")
    assert shown(page) == ["It was very quiet.", "In Madrid."]
    expect(row).to_have_count(0)
    expect(page.get_by_role("button", name="Use the microphone")).to_be_focused()
    assert server.gone.wait(PATIENCE)

    assert server.query == {"intent": "transcription", "partials": "true", "model": "small"}
    assert server.protocols == ["realtime"]
    assert server.session == {
        "type": "transcription",
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 16000},
                "transcription": {"model": "small", "language": "English", "prompt": "Madrid"},
                "turn_detection": {"type": "server_vad", "silence_duration_ms": 800},
            }
        },
    }
    heard = np.concatenate(server.heard) / 32768
    assert likeness(heard, soundfile.read(RECORDING)[0]) > 0.8
    assert download_live(page) == "It was very quiet. In Madrid.\n"


def likeness(heard: Any, said: Any) -> float:
    """The highest correlation of ``said`` with a stretch of ``heard``."""
    size = len(heard) + len(said)
    products = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(said, size)), size)
    return float(products.max() / (np.linalg.norm(heard) * np.linalg.norm(said)))


def download_live(page: Page) -> str:
    with page.expect_download() as kept:
        button(page, "Download TXT").click()
    assert re.fullmatch(r"microphone-[\d-]+\.txt", kept.value.suggested_filename)
    return Path(kept.value.path()).read_text(encoding="utf-8")


def test_nothing_said_is_no_error(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    empty = {"message": "empty", "code": "input_audio_buffer_commit_empty", "event_id": "commit"}
    server.after = [{"type": "error", "error": empty}]
    page.get_by_role("button", name="Use the microphone").click()
    expect(page.get_by_role("status")).to_have_text("Listening.")
    button(page, "Stop").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("Done. Nobody was heard to speak.")
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.get_by_role("button", name="Use the microphone")).to_be_focused()


def test_what_stops_it_stays_in_sight_of_a_long_transcript(visit: Visit, server: ScriptedServer) -> None:
    page = visit(viewport={"width": 360, "height": 640})
    finals = [completed(f"item {index}", "A sentence.", index, index + 1) for index in range(40)]
    server.before = [*finals, partial("last", "The", " end")]
    page.get_by_role("button", name="Use the microphone").click()
    expect(page.get_by_text("The end")).to_be_in_viewport()
    expect(button(page, "Stop")).to_be_in_viewport()
    server.after = [committed("more"), completed("more", "The end is here.", 40, 41)]
    page.mouse.wheel(0, -1000)  # who reads further up is left there
    expect(page.get_by_text("The end")).not_to_be_in_viewport()
    button(page, "Stop").click()
    expect(page.get_by_role("status")).to_have_text("Done: 41 segments.")
    expect(page.get_by_text("The end")).not_to_be_in_viewport()


def test_a_live_error_stops_the_microphone(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    server.before = [completed("a", "So far.", 0.0, 0.5), {"type": "error", "error": {"message": "It is too long."}}]
    page.get_by_role("button", name="Use the microphone").click()
    expect(page.get_by_role("alert")).to_have_text("It is too long.")
    expect(page.get_by_role("button", name="Use the microphone")).to_be_enabled()
    expect(page.get_by_role("button", name="Choose a file")).to_be_enabled()
    assert shown(page) == ["So far."]


def test_a_broken_connection_stops_the_microphone(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    server.before, server.hang_up = [partial("a", "Half", " a")], True
    page.get_by_role("button", name="Use the microphone").click()
    expect(page.get_by_role("alert")).to_have_text(re.compile("The connection to the server broke"))
    expect(page.get_by_role("status")).to_have_text("Done. Nobody was heard to speak.")
    expect(page.locator("#partials")).to_be_empty()


def test_a_microphone_that_goes_away_ends_it(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    page.evaluate("""() => {
        const media = navigator.mediaDevices;
        const given = media.getUserMedia.bind(media);
        media.getUserMedia = async (wanted) => (window.stream = await given(wanted));
    }""")
    server.before = [speech_started("a")]
    server.after = [committed("a"), completed("a", "Good", 0.0, 0.5)]
    page.get_by_role("button", name="Use the microphone").click()
    expect(page.locator("#partials .segment")).to_have_text("…")
    page.evaluate("stream.getAudioTracks()[0].dispatchEvent(new Event('ended'))")
    expect(page.get_by_role("alert")).to_have_text("The microphone has gone.")
    expect(page.get_by_role("status")).to_have_text("Done: 1 segment.")


def test_who_stops_before_it_began_is_not_listened_to(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    page.evaluate("""() => {
        const media = navigator.mediaDevices;
        const given = media.getUserMedia.bind(media);
        const allowed = new Promise((resolve) => (window.allow = resolve));
        media.getUserMedia = async (wanted) => (window.stream = (await allowed, await given(wanted)));
    }""")
    page.get_by_role("button", name="Use the microphone").click()
    expect(page.get_by_role("status")).to_have_text("Waiting for the microphone…")
    button(page, "Stop").click()
    page.evaluate("allow()")
    expect(page.get_by_role("status")).to_have_text("Done. Nobody was heard to speak.")
    assert page.evaluate("stream.getAudioTracks()[0].readyState") == "ended"
    assert server.gone.wait(PATIENCE)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', 'NotAllowedError'))",
            "The microphone was not allowed",
        ),
        ("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })", "only to pages on https"),
    ],
)
def test_without_a_microphone_a_sentence_says_why(visit: Visit, change: str, sentence: str) -> None:
    page = visit()
    page.evaluate(f"() => {{ {change} }}")
    page.get_by_role("button", name="Use the microphone").click()
    expect(page.get_by_role("alert")).to_have_text(re.compile(sentence))
    expect(page.get_by_role("button", name="Use the microphone")).to_be_enabled()


def test_a_microphone_at_another_rate_is_resampled(visit: Visit) -> None:
    page = visit()
    for rate in (48000, 44100, 8000):
        outputs = page.evaluate(
            """async ([rate, tones]) => {
                const { Resampler } = await import(new URL("static/capture-worklet.js", document.baseURI));
                return tones.map((tone) => {
                    const resampler = new Resampler(rate, 16000);
                    const output = [];
                    for (let at = 0; at < rate / 2; at += 128) {
                        const piece = Float32Array.from({ length: 128 }, (_, index) =>
                            Math.sin((2 * Math.PI * tone * (at + index)) / rate));
                        output.push(...resampler.push(piece));
                    }
                    return [...output, ...resampler.flush()];
                });
            }""",
            [rate, [1000, 3000, 10000]],
        )
        times = np.arange(8000) / 16000
        for output, tone in zip(outputs[:2], (1000, 3000), strict=True):
            assert len(output) == pytest.approx(8000, abs=200)
            within = slice(200, 7600)
            assert np.abs(np.array(output)[within] - np.sin(2 * np.pi * tone * times)[within]).max() < 0.01
        if rate > 20000:  # nothing folds back from above the new limit
            assert np.abs(outputs[2][200:7600]).max() < 0.01


def test_events_are_read_however_the_network_cuts_them(visit: Visit) -> None:
    page = visit()
    stream = ': hello\r\n\r\nevent: x\r\ndata: {"a":\r\ndata: "é你"}\r\n\r\ndata:{"b": 2}\n\ndata: [DONE]\n\n'
    for size in (1, 2, 3, 7, 1000):
        events = page.evaluate(
            """async ([text, size]) => {
                const { serverSentEvents } = await import(new URL("static/api.js", document.baseURI));
                const body = new ReadableStream({
                    start(controller) {
                        for (let at = 0; at < text.length; at += size) controller.enqueue(text.slice(at, at + size));
                        controller.close();
                    },
                });
                const events = [];
                for await (const event of serverSentEvents(body)) events.push(event);
                return events;
            }""",
            [stream, size],
        )
        assert events == [{"a": "é你"}, {"b": 2}]
