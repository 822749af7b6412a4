"""Tests of the microphone on the server's page."""

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

NO_SPEECH = re.compile("No speech")


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_microphone(visit: Visit, server: ScriptedServer, motion: str) -> None:
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
    expect(page.locator("#clock")).to_have_text("0:03")  # the whole recording was played
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
    received = np.concatenate(server.received) / 32768
    assert likeness(received, soundfile.read(RECORDING)[0]) > 0.8
    assert download_live(page) == "It was very quiet. In Madrid.\n"


def likeness(received: Any, expected: Any) -> float:
    """Return the highest normalized cross-correlation of two signals [n] over all lags."""
    size = len(received) + len(expected)
    products = np.fft.irfft(np.fft.rfft(received, size) * np.conj(np.fft.rfft(expected, size)), size)
    return float(products.max() / (np.linalg.norm(received) * np.linalg.norm(expected)))


def download_live(page: Page) -> str:
    with page.expect_download() as download_info:
        button(page, "Download TXT").click()
    assert re.fullmatch(r"microphone-[\d-]+\.txt", download_info.value.suggested_filename)
    return Path(download_info.value.path()).read_text(encoding="utf-8")


def test_silence_is_not_an_error(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    empty = {"message": "empty", "code": "input_audio_buffer_commit_empty", "event_id": "commit"}
    server.after = [{"type": "error", "error": empty}]
    page.get_by_role("button", name="Use the microphone").click()
    expect(page.get_by_role("status")).to_have_text("Listening.")
    button(page, "Stop").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text(NO_SPEECH)
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.get_by_role("button", name="Use the microphone")).to_be_focused()


def test_stop_button_stays_visible(visit: Visit, server: ScriptedServer) -> None:
    page = visit(viewport={"width": 360, "height": 640})
    finals = [completed(f"item {index}", "A sentence.", index, index + 1) for index in range(40)]
    server.before = [*finals, partial("last", "The", " end")]
    page.get_by_role("button", name="Use the microphone").click()
    expect(page.get_by_text("The end")).to_be_in_viewport()
    expect(button(page, "Stop")).to_be_in_viewport()
    server.after = [committed("more"), completed("more", "The end is here.", 40, 41)]
    page.mouse.wheel(0, -1000)  # scrolling up stops following the end
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
    expect(page.get_by_role("alert")).to_have_text(re.compile("The connection to the server was lost"))
    expect(page.get_by_role("status")).to_have_text(NO_SPEECH)
    expect(page.locator("#partials")).to_be_empty()


def test_disconnected_microphone_stops(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    page.evaluate("""() => {
        const media = navigator.mediaDevices;
        const original = media.getUserMedia.bind(media);
        media.getUserMedia = async (constraints) => (window.stream = await original(constraints));
    }""")
    server.before = [speech_started("a")]
    server.after = [committed("a"), completed("a", "Good", 0.0, 0.5)]
    page.get_by_role("button", name="Use the microphone").click()
    expect(page.locator("#partials .segment")).to_have_text("…")
    page.evaluate("stream.getAudioTracks()[0].dispatchEvent(new Event('ended'))")
    expect(page.get_by_role("alert")).to_have_text(re.compile("microphone was disconnected"))
    expect(page.get_by_role("status")).to_have_text("Done: 1 segment.")


def test_stop_before_the_microphone_is_allowed(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    page.evaluate("""() => {
        const media = navigator.mediaDevices;
        const original = media.getUserMedia.bind(media);
        const allowed = new Promise((resolve) => (window.allow = resolve));
        media.getUserMedia = async (constraints) => (window.stream = (await allowed, await original(constraints)));
    }""")
    page.get_by_role("button", name="Use the microphone").click()
    expect(page.get_by_role("status")).to_have_text("Waiting for the microphone…")
    button(page, "Stop").click()
    page.evaluate("allow()")
    expect(page.get_by_role("status")).to_have_text(NO_SPEECH)
    assert page.evaluate("stream.getAudioTracks()[0].readyState") == "ended"
    assert server.gone.wait(PATIENCE)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', 'NotAllowedError'))",
            "denied",
        ),
        ("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })", "https"),
    ],
)
def test_unavailable_microphone_is_an_alert(visit: Visit, script: str, message: str) -> None:
    page = visit()
    page.evaluate(f"() => {{ {script} }}")
    page.get_by_role("button", name="Use the microphone").click()
    expect(page.get_by_role("alert")).to_have_text(re.compile(message))
    expect(page.get_by_role("button", name="Use the microphone")).to_be_enabled()


def test_other_sample_rates_are_resampled(visit: Visit) -> None:
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
        if rate > 20000:  # no aliasing from above the new Nyquist frequency
            assert np.abs(outputs[2][200:7600]).max() < 0.01


def test_events_in_chunks_of_any_size(visit: Visit) -> None:
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
