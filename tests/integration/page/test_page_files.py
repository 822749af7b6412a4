"""Tests of files on the server's page: segments, waveform and downloads."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from playwright.sync_api import Page, expect

from runtime.pipeline.join_text import join_texts
from runtime.results import Segment, Timings, TokenCounts, Transcript
from runtime.writers import FORMATS
from tests.conftest import DATA
from tests.helpers.browser import PATIENCE, ScriptedServer
from tests.helpers.page_steps import (
    RECORDING,
    TEXTS,
    Visit,
    button,
    choose,
    done,
    segments,
    shown,
    transcribed,
)


def test_unsupported_options_are_disabled(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    page.get_by_label("Context").fill("Madrid")
    page.get_by_label("Model").select_option("plain")
    for label, reason in (("Language", "English"), ("Context", "not used by this model")):
        expect(page.get_by_label(label)).to_be_disabled()
        expect(page.get_by_label(label)).to_have_attribute("placeholder", reason)
    server.after = [*segments(1), done("")]
    server.go_on.set()
    choose(page)
    expect(page.get_by_role("status")).to_have_text("Done: 1 segment.")
    assert "prompt" not in server.fields
    assert "language" not in server.fields
    page.get_by_label("Model").select_option("small")
    expect(page.get_by_label("Context")).to_be_enabled()


def test_segments_of_a_file_appear_one_by_one(visit: Visit, server: ScriptedServer) -> None:
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


def test_file_can_be_dropped_anywhere(visit: Visit, server: ScriptedServer) -> None:
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
    expect(page.get_by_role("status")).to_have_text(re.compile("Done. No speech"))
    assert server.upload == ("dropped.wav", RECORDING.read_bytes())


def test_waveform_shows_the_audio_and_the_progress(visit: Visit, server: ScriptedServer) -> None:
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
    assert reds == sorted(reds)  # one color for the transcribed part, then the other
    assert reds.count(min(reds)) / len(reds) == pytest.approx(1.0 / 2.067, abs=0.02)
    server.go_on.set()


def test_undecodable_file_is_sent_without_a_preview(visit: Visit, server: ScriptedServer, tmp_path: Path) -> None:
    page = visit(viewport={"width": 360, "height": 800})
    server.before = [done("")]
    odd = tmp_path / f"{'talk-' * 30}.xyz"
    odd.write_bytes(b"no audio")
    choose(page, odd)
    expect(page.get_by_text("No preview")).to_be_visible()
    expect(page.locator("#waveform")).to_be_hidden()
    assert server.upload == (odd.name, b"no audio")
    assert page.evaluate("document.documentElement.scrollWidth") == 360  # the long name does not widen the page


def test_cancel(visit: Visit, server: ScriptedServer) -> None:
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


def test_new_file_replaces_the_current_one(visit: Visit, server: ScriptedServer) -> None:
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


def test_downloads_equal_the_output_of_the_command_line(visit: Visit, server: ScriptedServer) -> None:
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
    with page.expect_download() as download_info:
        button(page, f"Download {name.upper()}").click()
    assert download_info.value.suggested_filename == f"en-1.{name}"
    return Path(download_info.value.path()).read_text(encoding="utf-8")


def test_text_is_copied(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    transcribed(page, server)
    button(page, "Copy").click()
    expect(page.get_by_role("status")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == "It was very quiet in Madrid. And so on."


def test_text_is_selected_without_a_clipboard(visit: Visit, server: ScriptedServer) -> None:
    page = visit()
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    transcribed(page, server)
    button(page, "Copy").click()
    expect(page.get_by_role("status")).to_have_text(re.compile("selected"))
    assert TEXTS[0][2] in page.evaluate("getSelection().toString()")


def test_texts_are_joined_like_in_the_runtime(visit: Visit) -> None:
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
