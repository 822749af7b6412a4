"""The server's page in headless Chromium: files, microphone, downloads, errors, keys, keyboard, screen reader, eyes."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
from playwright.sync_api import Browser, Locator, Page, expect
from starlette.responses import HTMLResponse, JSONResponse

from runtime.engine import Timings
from runtime.joining import join_texts
from runtime.server import page as pages
from runtime.transcriber import Segment, TokenCounts, Transcript
from runtime.writers import FORMATS
from tests.browser import PATIENCE, ScriptedServer, chromium, serving
from tests.conftest import DATA

RECORDING = DATA / "en-1.wav"
SPEECH = "conversation.item.input_audio_transcription"
TEXTS = [
    (0.258, 2.067, "It was very quiet in Madrid."),
    (3.4, 3.4, "Fish & chips, <b>hot</b>"),
    (3600.5, 3661.0004, "two\nlines"),
    (3700.0, 3701.0, ""),
]

Visit = Callable[..., Page]


def segments(count: int = len(TEXTS)) -> list[dict[str, Any]]:
    """The events of the first texts."""
    return [
        {
            "type": "transcript.text.segment",
            "id": place,
            "start": start,
            "end": end,
            "text": text,
            "language": "english",
        }
        for place, (start, end, text) in enumerate(TEXTS[:count])
    ]


def done(text: str) -> dict[str, Any]:
    return {"type": "transcript.text.done", "text": text}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(RECORDING) as launched:
        yield launched


@pytest.fixture
def server() -> ScriptedServer:
    return ScriptedServer()


@pytest.fixture
def address(server: ScriptedServer) -> Iterator[str]:
    with serving(server.app) as url:
        yield url


@pytest.fixture
def visit(browser: Browser, address: str, server: ScriptedServer) -> Iterator[Visit]:
    """Opens the page; at the end nothing may have gone wrong in it, nor have left for another origin."""
    problems: list[str] = []
    contexts = []

    def console(kind: str, text: str) -> None:
        refused = text.startswith(("Failed to load resource", "WebSocket connection to"))
        if kind in ("error", "warning") and not (refused and (server.key or server.refusal)):  # the browser's own words
            problems.append(text)

    def opened(**options: Any) -> Page:
        context = browser.new_context(permissions=["microphone", "clipboard-read", "clipboard-write"], **options)
        context.set_default_timeout(PATIENCE * 1000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: console(message.type, message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("websocket", lambda socket: requested(socket.url.replace("ws", "http", 1)))
        page.on("request", lambda request: requested(request.url))
        page.goto(address)
        page.locator("#model option, #key-form:not([hidden])").first.wait_for(state="attached")
        return page

    def requested(url: str) -> None:
        if not url.removeprefix("blob:").startswith(address):
            problems.append(f"a request to {url}")

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def choose(page: Page, path: Path = RECORDING) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a file").click()
    chooser.value.set_files(path)


def shown(page: Page) -> list[str]:
    return page.get_by_role("list", name="Segments").locator("p").all_inner_texts()


def transcribed(page: Page, server: ScriptedServer) -> None:
    """All texts, without waiting in between."""
    server.before, server.after = segments(), [done("It was very quiet in Madrid. And so on.")]
    server.go_on.set()
    choose(page)
    expect(page.get_by_role("status")).to_have_text("Done: 3 segments.")


# Files


def test_segments_of_a_file_show_as_they_come(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    assert page.locator("#languages option").all_inner_texts() == ["English", "Chinese"]
    page.get_by_label("Model").select_option("large")
    assert page.locator("#languages option").all_inner_texts() == ["English"]
    page.get_by_label("Language").fill(" en ")
    page.get_by_label("Context").fill("Madrid")
    server.before, server.after = segments(1), [*segments(2)[1:], done("")]
    choose(page)
    expect(page.get_by_text("It was very quiet in Madrid.")).to_be_visible()
    expect(page.get_by_role("status")).to_have_text("Transcribing…")
    expect(page.get_by_role("heading", name="en-1.wav")).to_be_visible()
    expect(page.get_by_role("progressbar", name="Progress")).to_be_visible()
    expect(page.get_by_text("0:02 / 0:02")).to_be_visible()
    expect(page.get_by_role("img", name="Waveform of en-1.wav, 0:02")).to_be_visible()
    expect(page.get_by_role("group", name="Copy or download")).to_be_hidden()
    assert len(shown(page)) == 1
    server.go_on.set()
    expect(page.get_by_role("status")).to_have_text("Done: 2 segments.")
    assert shown(page) == [TEXTS[0][2], TEXTS[1][2]]
    expect(page.get_by_text("0:00.2 – 0:02.0")).to_be_visible()
    expect(page.get_by_text(TEXTS[0][2])).to_have_attribute("lang", "en")
    expect(page.get_by_role("progressbar")).to_be_hidden()
    assert server.upload == ("en-1.wav", RECORDING.read_bytes())
    assert server.fields == {
        "model": "large",
        "language": "en",
        "prompt": "Madrid",
        "response_format": "verbose_json",
        "stream": "true",
    }


def test_a_file_is_dropped_anywhere(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    server.before = [done("")]
    transfer = page.evaluate_handle(
        """bytes => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "dropped.wav"));
            return transfer;
        }""",
        list(RECORDING.read_bytes()),
    )
    zone = page.get_by_role("button", name="Choose a file")
    for event in ("dragenter", "dragover"):
        page.dispatch_event("main", event, {"dataTransfer": transfer})
    expect(zone).to_have_class("source over")
    page.dispatch_event("main", "drop", {"dataTransfer": transfer})
    expect(zone).to_have_class("source")
    expect(page.get_by_role("status")).to_have_text("Done. Nobody was heard to speak.")
    assert server.upload == ("dropped.wav", RECORDING.read_bytes())


def test_the_waveform_is_drawn_from_the_audio_and_fills_with_the_text(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    server.before, server.after = [segments(1)[0] | {"end": 1.0}], [done("")]
    choose(page)
    expect(page.get_by_text("0:01 / 0:02")).to_be_visible()
    columns = page.evaluate("""() => {
        const canvas = document.getElementById("waveform");
        const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        const columns = [];
        for (let x = 0; x < canvas.width; x += 1) {
            const ys = [...Array(canvas.height).keys()].filter((y) => data[(y * canvas.width + x) * 4 + 3] > 200);
            const at = (ys[ys.length >> 1] * canvas.width + x) * 4;
            columns.push([ys.length, ys.length ? data[at] : -1]);
        }
        return columns;
    }""")
    bars = [(tall, red) for tall, red in columns if tall]
    samples = soundfile.read(RECORDING)[0]
    loud = [np.abs(part).max() for part in np.array_split(samples, len(bars))]
    assert np.corrcoef([tall for tall, _ in bars], loud)[0, 1] > 0.8
    reds = [red for _, red in bars]
    assert len(set(reds)) == 2
    assert reds == sorted(reds)  # one colour up to where the text reaches, and the other after it
    assert reds.count(min(reds)) / len(reds) == pytest.approx(1.0 / 2.067, abs=0.02)
    server.go_on.set()


def test_a_file_that_the_browser_cannot_decode_is_sent_without_a_preview(
    visit: Visit, server: ScriptedServer, tmp_path: Path
) -> None:
    page = visit(viewport={"width": 360, "height": 800})
    server.before = [done("")]
    odd = tmp_path / f"{'talk-' * 30}.xyz"
    odd.write_bytes(b"no audio")
    choose(page, odd)
    expect(page.get_by_text("No preview")).to_be_visible()
    expect(page.locator("#waveform")).to_be_hidden()
    assert server.upload == (odd.name, b"no audio")
    assert page.evaluate("document.documentElement.scrollWidth") == 360  # nor does the name widen the page


def test_cancel_gives_the_transcription_up(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    server.before = segments(1)
    choose(page)
    expect(page.get_by_text(TEXTS[0][2])).to_be_visible()
    button(page, "Cancel").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("Cancelled.")
    assert server.gone.wait(PATIENCE)
    assert shown(page) == [TEXTS[0][2]]
    expect(page.get_by_role("alert")).to_be_empty()
    server.after = [*segments(2)[1:], done("")]
    server.go_on.set()
    expect(button(page, "Transcribe again")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("Done: 2 segments.")
    assert len(shown(page)) == 2


def test_another_file_takes_the_place_of_the_one_in_work(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    server.before = segments(1)
    choose(page)
    expect(page.get_by_text(TEXTS[0][2])).to_be_visible()
    server.go_on.set()
    server.before, server.after = segments(2)[1:], [done("")]
    choose(page, DATA / "en-2.wav")
    expect(page.get_by_role("heading", name="en-2.wav")).to_be_visible()
    expect(page.get_by_role("status")).to_have_text("Done: 1 segment.")
    assert shown(page) == [TEXTS[1][2]]


# What is kept


def test_downloads_are_what_the_command_line_writes(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    transcribed(page, server)
    text = "It was very quiet in Madrid. And so on."
    spans = [Segment(start, end, text, "english", 1.0, "stop", []) for start, end, text in TEXTS]
    transcript = Transcript(text, "english", 0, spans, Timings(), TokenCounts(0, 0, 0), "", "", {})
    for name in ("txt", "srt", "vtt"):
        assert download(page, name) == FORMATS[name](transcript)
    assert json.loads(download(page, "json")) == {
        "text": text,
        "language": "english",
        "duration": pytest.approx(2.067, abs=0.001),
        "segments": [
            {"start": start, "end": end, "text": text, "language": "english"} for start, end, text in TEXTS if text
        ],
    }
    expect(page.get_by_role("status")).to_have_text("Saved en-1.json.")


def download(page: Page, name: str) -> str:
    with page.expect_download() as kept:
        button(page, f"Download {name.upper()}").click()
    assert kept.value.suggested_filename == f"en-1.{name}"
    return Path(kept.value.path()).read_text(encoding="utf-8")


def test_the_text_is_copied(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    transcribed(page, server)
    button(page, "Copy").click()
    expect(page.get_by_role("status")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == "It was very quiet in Madrid. And so on."


def test_without_a_clipboard_the_text_is_selected(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    transcribed(page, server)
    button(page, "Copy").click()
    expect(page.get_by_role("status")).to_have_text("Selected: copy it with the keyboard or the menu.")
    assert TEXTS[0][2] in page.evaluate("getSelection().toString()")


def test_texts_are_joined_as_the_runtime_joins_them(visit: Visit) -> None:
    page = visit()
    chance = random.Random(7)
    alphabet = "aé1 \t。，.…(（「\"'你好かカ한ไ𠀀ﾊ🙂«»?\x1c\u3000\ufeff"
    cases = [
        ["".join(chance.choices(alphabet, k=chance.randint(0, 4))) for _ in range(chance.randint(0, 4))]
        for _ in range(3000)
    ]
    joined = page.evaluate(
        """async (cases) => {
            const { joinTexts } = await import(new URL("static/formats.js", document.baseURI));
            return cases.map(joinTexts);
        }""",
        cases,
    )
    assert joined == [join_texts(case) for case in cases]


# What goes wrong


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        (JSONResponse({"error": {"message": "Unknown language 'xx'."}}, 400), "Unknown language 'xx'."),
        (HTMLResponse("<h1>Bad gateway</h1>", 502), "The server answered with status 502."),
    ],
)
def test_a_refusal_is_an_alert(
    visit: Visit, server: ScriptedServer, refusal: JSONResponse | HTMLResponse, sentence: str
) -> None:
    page = visit()
    server.refusal = refusal
    choose(page)
    expect(page.get_by_role("alert")).to_have_text(sentence)
    expect(page.get_by_role("status")).to_have_text("Stopped.")
    server.refusal = None
    server.before = [done("")]
    button(page, "Transcribe again").click()
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.get_by_role("status")).to_have_text(re.compile("Done"))
    server.refusal = refusal  # the browser's own words about the first one


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        ({"type": "error", "error": {"message": "It took too long."}}, "It took too long."),
        (None, "The connection ended before the transcript was complete. Try again."),
    ],
)
def test_what_breaks_on_the_way_is_an_alert_and_what_came_stays(
    visit: Visit, server: ScriptedServer, event: dict[str, Any] | None, sentence: str
) -> None:
    page = visit()
    server.before, server.after = segments(1), [event] if event else []
    server.go_on.set()
    choose(page)
    expect(page.get_by_role("alert")).to_have_text(sentence)
    assert shown(page) == [TEXTS[0][2]]
    expect(button(page, "Download TXT")).to_be_visible()


def test_a_server_that_is_gone_is_an_alert(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    page.context.route("**/v1/audio/transcriptions", lambda route: route.abort())
    server.refusal = JSONResponse({})  # the browser reports the request that fails
    choose(page)
    expect(page.get_by_role("alert")).to_have_text(re.compile("The server cannot be reached"))


def test_a_key_is_asked_for_and_kept_in_memory_alone(visit: Visit, server: ScriptedServer) -> None:
    server.key = "right"
    page = visit()
    field = page.get_by_label("API key")
    expect(field).to_be_focused()
    expect(page.get_by_role("alert")).to_be_empty()
    field.fill("wrong")
    button(page, "Use key").click()
    expect(page.get_by_role("alert")).to_have_text("This API key is not known.")
    field.fill("right")
    page.keyboard.press("Enter")
    expect(field).to_be_hidden()
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.get_by_role("button", name="Choose a file")).to_be_focused()
    transcribed(page, server)
    kept = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
    assert "right" not in kept
    assert page.content().count("right") == 0
    server.before, server.after = [speech_started("a")], [committed("a"), completed("a", "yes", 0.0, 1.0)]
    listen_to(page)
    expect(page.get_by_role("status")).to_have_text("Done: 1 segment.")
    assert server.protocols == ["realtime", "openai-insecure-api-key.right"]


def test_what_a_missing_key_stopped_is_done_once_there_is_one(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    expect(page.get_by_label("API key")).to_be_hidden()
    server.key = "new"
    server.before = [*segments(1), done("")]
    choose(page)
    page.get_by_label("API key").fill("new")
    button(page, "Use key").click()
    expect(page.get_by_role("status")).to_have_text("Done: 1 segment.")
    assert server.upload[0] == "en-1.wav"
    server.key = "newer"
    page.get_by_role("button", name="Use the microphone").click()
    expect(page.get_by_role("alert")).to_have_text("This API key is not known.")
    server.key = "a b"
    page.get_by_label("API key").fill("a b")
    button(page, "Use key").click()
    expect(page.get_by_role("alert")).to_have_text("This key has characters that live audio cannot carry.")


# Microphone


def speech_started(item: str) -> dict[str, Any]:
    return {"type": "input_audio_buffer.speech_started", "item_id": item}


def committed(item: str) -> dict[str, Any]:
    return {"type": "input_audio_buffer.committed", "item_id": item}


def partial(item: str, stable: str, unstable: str) -> dict[str, Any]:
    times = {"start": 0.2, "end": 1.2, "language": "English"}
    return {"type": f"{SPEECH}.partial", "item_id": item, "stable": stable, "unstable": unstable, **times}


def completed(item: str, text: str, start: float, end: float) -> dict[str, Any]:
    times = {"start": start, "end": end, "language": "English"}
    return {"type": f"{SPEECH}.completed", "item_id": item, "transcript": text, **times}


def listen_to(page: Page) -> None:
    """Speak a little: until a row of the transcript is open or there."""
    page.get_by_role("button", name="Use the microphone").click()
    expect(page.locator(".segment").first).to_be_visible()
    page.get_by_role("button", name="Stop and keep the transcript").click()


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
    finals = [completed(f"item {place}", "A sentence.", place, place + 1) for place in range(40)]
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


# By keyboard, by ear, by eye


def test_everything_is_reached_by_tab(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    transcribed(page, server)
    page.locator("h1").click()  # where Tab starts from
    names = []
    for _ in range(11):
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        names.append(focused.get_attribute("aria-label") or focused.get_attribute("id"))
        assert focused.evaluate("it => getComputedStyle(it).outlineStyle") == "solid"
    assert names == [
        "choose",
        "microphone",
        "language",
        "model",
        "context",
        "job-action",
        "copy",
        *(f"Download {name}" for name in ("TXT", "SRT", "VTT", "JSON")),
    ]
    with page.expect_download():
        page.keyboard.press("Space")


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_a_file_is_chosen_by_keyboard(visit: Visit, key: str) -> None:
    page = visit()
    with page.expect_file_chooser():  # waits for it from here on
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name="Choose a file")).to_be_focused()
        page.keyboard.press(key)


def test_a_screen_reader_is_told_names_states_and_finals(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    transcribed(page, server)
    expect(page.locator("body")).to_match_aria_snapshot("""
        - banner:
          - heading "Transcribe" [level=1]
        - main:
          - region "Audio":
            - button "Choose a file or drop it anywhere on this page"
            - button "Use the microphone text appears as you speak"
          - region "Options":
            - combobox "Language"
            - combobox "Model":
              - option "small" [selected]
              - option "large"
            - textbox "Context"
          - alert
          - region "en-1.wav":
            - heading "en-1.wav" [level=2]
            - button "Transcribe again"
            - img "Waveform of en-1.wav, 0:02"
            - status: "Done: 3 segments."
          - region "Transcript":
            - heading "Transcript" [level=2]
            - group "Copy or download":
              - button "Copy"
              - button "Download TXT"
              - button "Download SRT"
              - button "Download VTT"
              - button "Download JSON"
            - list "Segments":
              - listitem:
                - paragraph: It was very quiet in Madrid.
              - listitem:
                - paragraph: "Fish & chips, <b>hot</b>"
              - listitem:
                - paragraph: two lines
    """)
    expect(page.get_by_role("list", name="Segments")).to_have_attribute("aria-live", "polite")
    assert page.locator("#partials").evaluate("it => it.closest('[aria-live], [role=status], [role=alert]')") is None
    assert page.locator("#clock").evaluate("it => it.closest('[aria-live], [role=status], [role=alert]')") is None


def test_light_and_dark_differ_and_both_have_contrast(visit: Visit, server: ScriptedServer) -> None:
    pictures = {}
    for scheme in ("light", "dark"):
        page = visit(color_scheme=scheme, reduced_motion="reduce", viewport={"width": 360, "height": 800})
        server.go_on.clear()
        server.refusal = JSONResponse({"error": {"message": "Too long."}}, 413)
        choose(page)
        expect(page.get_by_role("alert")).to_have_text("Too long.")
        looked_at = {".alert": contrast(page, ".alert")}
        server.refusal = None
        transcribed(page, server)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        server.before = [partial("a", "It was", " quite")]
        server.after = [committed("a"), completed("a", "It was quiet.", 0, 1)]
        page.get_by_role("button", name="Use the microphone").click()
        expect(page.locator(".unstable")).to_have_text(" quite")
        for css in ("h1", ".lead", "label", "#status", ".clock", ".segment p", ".unstable", ".times", "input"):
            looked_at[css] = contrast(page, css)
        for css in ("#microphone .title", "#microphone .hint"):
            looked_at[css] = contrast(page, css)
        pictures[scheme] = page.screenshot()
        page.get_by_role("button", name="Stop and keep the transcript").click()
        expect(page.get_by_role("status")).to_have_text("Done: 1 segment.")
        for css in ("#choose .hint", "#microphone .hint", "#copy", "#job-name", "#transcript-title"):
            looked_at[f"{css} at rest"] = contrast(page, css)
        assert {css: ratio for css, ratio in looked_at.items() if ratio < 4.5} == {}
        server.refusal = JSONResponse({})  # the browser's own words about the first one
    assert pictures["light"] != pictures["dark"]


def contrast(page: Page, css: str) -> float:
    """WCAG's contrast ratio of an element's text with what is painted behind it."""
    colours = page.locator(css).first.evaluate("""it => {
        const solid = (colour) => !/, 0\\)$/.test(colour);
        let behind = it;
        while (behind.parentElement && !solid(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
        return [getComputedStyle(it).color, getComputedStyle(behind).backgroundColor];
    }""")
    bright, dark = sorted((luminance(colour) for colour in colours), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it, of ``rgb(r, g, b)``."""
    matched = re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", colour)
    assert matched, colour
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (int(part) / 255 for part in matched.groups())
    ]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


# What the server sends


def test_every_file_is_in_the_table_and_no_other_path_is_answered(address: str) -> None:
    listed = sorted(name for name, _ in pages.FILES.values())
    assert listed == sorted(entry.name for entry in (files("runtime.server") / "static").iterdir())
    connection = HTTPConnection(urlsplit(address).netloc)
    for path, (name, media_type) in pages.FILES.items():
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.read() == (files("runtime.server") / "static" / name).read_bytes()
        assert answer.headers["content-type"] == media_type
        assert answer.headers["content-security-policy"].startswith("default-src 'self';")
        assert "unsafe" not in answer.headers["content-security-policy"]
        connection.request("GET", path, headers={"If-None-Match": f'"other", W/{answer.headers["etag"]}'})
        again = connection.getresponse()
        assert (again.status, again.read()) == (304, b"")
        connection.request("HEAD", path)
        head = connection.getresponse()
        assert (head.status, head.read()) == (200, b"")
    for path in ("/static/", "/static/../page.py", "/static/%2e%2e/page.py", "/static/..%2fpage.py", "/page.py"):
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 404
    connection.request("POST", "/")
    assert connection.getresponse().status == 405
    connection.close()


def test_the_policy_keeps_out_what_is_not_the_servers(browser: Browser, address: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    blocked = page.evaluate("""() => new Promise((resolve) => {
        const blocked = [];
        document.addEventListener("securitypolicyviolation", (event) => {
            blocked.push(event.effectiveDirective);
            if (blocked.length === 4) resolve(blocked);
        });
        document.body.insertAdjacentHTML("beforeend", "<p style='color: red' onclick='1'></p>");
        const script = document.createElement("script");
        script.textContent = "window.ran = true";
        document.body.append(script);
        fetch("http://elsewhere.invalid/").catch(() => null);
    })""")
    assert sorted(blocked) == ["connect-src", "script-src-attr", "script-src-elem", "style-src-attr"]
    assert page.evaluate("window.ran") is None
    context.close()
