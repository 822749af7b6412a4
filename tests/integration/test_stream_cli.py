"""The command ``stream``, with a scripted stream and with the small model."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from typer.testing import CliRunner

from runtime import Transcriber
from runtime.__main__ import app
from runtime.pipeline.events import Event, Partial
from tests.conftest import ARTIFACT, DATA, REPOSITORY
from tests.unit.test_live_view import Screen, final, partial, speech
from tests.unit.test_microphone import FakeSounddevice, FakeStream

SPOKEN = DATA / "en-1.wav"
# Longest wait for expected output, in seconds.
TIMEOUT = 120


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Enable interrupts, also if the tests run in the background, and in the processes that they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


pytestmark = pytest.mark.usefixtures("small_default")


def run(*arguments: str | Path, stdin: bytes | None = None) -> Any:
    return CliRunner().invoke(app, ["stream", *map(str, arguments)], input=stdin)


class Script:
    """A stream with scripted events: ``fed[n]`` after the n-th piece of audio, ``last`` at the end."""

    def __init__(self) -> None:
        self.fed: dict[int, list[Event]] = {}
        self.last: list[Event] = []
        self.pieces: list[npt.NDArray[Any]] = []
        self.arguments: tuple[Any, ...] = ()
        self.on_feed: Callable[[], object] = lambda: None
        self.on_finish: Callable[[], object] = lambda: None

    def open(self, _transcriber: Transcriber, language: str | None, context: str, **options: Any) -> Script:
        self.arguments, self.pieces = (language, context, options), []
        return self

    def feed(self, samples: npt.NDArray[Any]) -> list[Event]:
        self.pieces.append(samples)
        self.on_feed()
        return self.fed.get(len(self.pieces), [])

    def finish(self) -> list[Event]:
        self.on_finish()
        return self.last


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    script = Script()
    script.fed = {
        2: [speech(0)],
        5: [partial(0, "", "It wash")],
        7: [partial(0, "It was", " very")],
        8: [final(0, "It was very quiet."), speech(1)],
        9: [final(1, " ")],
    }
    script.last = [final(2, "In <Madrid>.\nAnd")]
    monkeypatch.setattr(
        Transcriber,
        "stream",
        lambda self, *arguments, **options: script.open(self, *arguments, **options),
        raising=False,
    )
    return script


class TestScripted:
    def test_text_has_a_line_for_each_segment(self, script: Script) -> None:
        result = run(SPOKEN)
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout == "It was very quiet.\nIn <Madrid>. And\n"

    def test_json_has_a_line_for_each_event(self, script: Script) -> None:
        script.fed[5] = [Partial(0, 0.12345, 1.00049, "", "Было", None)]
        result = run(SPOKEN, "--format", "json")
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        assert lines[0] == {"type": "speech", "segment": 0, "start": 0.0}
        assert lines[1] == {
            "type": "partial",
            "segment": 0,
            "start": 0.123,
            "end": 1.0,
            "stable": "",
            "unstable": "Было",
            "language": None,
        }
        assert [line["type"] for line in lines] == ["speech", "partial", "partial", "final", "speech", "final", "final"]
        assert lines[3]["result"]["text"] == "It was very quiet."
        assert lines[3]["as_offline"] is True
        assert "Было" in result.stdout  # not escaped

    def test_subtitles(self, script: Script) -> None:
        assert run(SPOKEN, "--format", "srt").stdout == (
            "1\n00:00:00,000 --> 00:00:01,000\nIt was very quiet.\n\n"
            "2\n00:00:02,000 --> 00:00:03,000\nIn <Madrid>. And\n"
        )
        assert run(SPOKEN, "--format", "vtt").stdout == (
            "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nIt was very quiet.\n\n"
            "00:00:02.000 --> 00:00:03.000\nIn &lt;Madrid&gt;. And\n"
        )
        script.fed, script.last = {}, []
        assert run(SPOKEN, "--format", "srt").stdout == ""
        assert run(SPOKEN, "--format", "vtt").stdout == "WEBVTT\n"

    def test_a_file_is_fed_in_pieces(self, script: Script) -> None:
        samples = soundfile.read(SPOKEN, dtype="float32")[0]
        run(SPOKEN)
        assert {len(piece) for piece in script.pieces[:-1]} == {1600}
        np.testing.assert_array_equal(np.concatenate(script.pieces), samples)
        run(SPOKEN, "--chunk", "0.5")
        assert len(script.pieces[0]) == 8000

    def test_options_reach_the_stream(self, script: Script) -> None:
        run(SPOKEN)
        defaults = {"sample_rate": 16_000, "interval": 1.0, "pause": 0.8, "stable": True}
        assert script.arguments[:2] == (None, "")
        assert script.arguments[2] == defaults
        run(
            *("-", "--raw-rate", "8000", "--language", "ru", "--context", "Kris"),
            *("--interval", "0.5", "--pause", "1.5", "--no-stable"),
            stdin=bytes(1000),
        )
        expected = {"sample_rate": 8_000, "interval": 0.5, "pause": 1.5, "stable": False}
        assert script.arguments[:2] == ("Russian", "Kris")
        assert script.arguments[2] == expected

    def test_stats_are_one_line_on_standard_error(self, script: Script) -> None:
        result = run(SPOKEN, "--stats")
        assert result.stdout == "It was very quiet.\nIn <Madrid>. And\n"
        (line,) = result.stderr.splitlines()
        assert line.startswith("2.1 s of audio, 0.0")
        assert " s of compute, RTF 0.0" in line
        assert ", first text 0.0" in line
        assert line.endswith(" s after the first audio, 3 segments")
        script.fed, script.last = {}, [final(0, "")]
        assert run(SPOKEN, "--stats").stderr.endswith(", no text, 1 segment\n")

    def test_a_text_that_may_be_incomplete_has_a_warning(self, script: Script) -> None:
        event = final(0, "and and and")
        cut = msgspec.structs.replace(event.result, finish_reason="length")
        script.fed, script.last = {}, [msgspec.structs.replace(event, result=cut)]
        result = run(SPOKEN)
        assert result.stdout == "and and and\n"
        assert result.stderr.startswith(f"warning: {SPOKEN}: 0.0-1.0 s: ")
        assert "token budget" in result.stderr

    def test_text_before_an_error_is_shown(self, script: Script, tmp_path: Path) -> None:
        data = SPOKEN.read_bytes()
        script.fed = {}
        result = run("-", stdin=data[: len(data) // 2])
        assert result.exit_code == 2
        assert result.stdout == "In <Madrid>. And\n"
        assert result.stderr.startswith("error: standard input: is truncated: its header announces")
        assert len(result.stderr.splitlines()) == 1

    def test_an_interrupt_finishes_the_audio_so_far(self, script: Script) -> None:
        def interrupt() -> None:
            if len(script.pieces) == 8:
                signal.raise_signal(signal.SIGINT)

        script.on_feed = interrupt
        result = run(SPOKEN)
        assert len(script.pieces) == 8
        assert result.exit_code == 130
        assert result.stdout == "It was very quiet.\nIn <Madrid>. And\n"
        assert result.stderr == "error: interrupted\n"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_a_second_interrupt_ends_the_command_at_once(self, script: Script) -> None:
        script.on_feed = script.on_finish = lambda: signal.raise_signal(signal.SIGINT)
        result = run(SPOKEN)
        assert (result.exit_code, result.stdout, result.stderr) == (130, "", "error: interrupted\n")
        assert len(script.pieces) == 1
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_a_terminal_shows_styled_text(self, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
        class Terminal(Screen):
            def isatty(self) -> bool:
                return True

        def shown(**environment: str) -> Terminal:
            screen = Terminal()
            with monkeypatch.context() as patched:
                for name in ("NO_COLOR", "TERM"):
                    patched.delenv(name, raising=False)
                for name, value in environment.items():
                    patched.setenv(name, value)
                patched.setattr(sys, "stdout", screen)
                app(["stream", str(SPOKEN)], standalone_mode=False)
            return screen

        lines = ["It was very quiet.", "In <Madrid>. And", ""]
        styled = shown(TERM="xterm")
        assert styled.shown == lines
        assert "\x1b[2mIt wash\x1b[22m" in styled.getvalue()
        bare = shown(TERM="xterm", NO_COLOR="1")
        assert bare.shown == lines
        assert "It was [very]" in bare.getvalue()
        assert "\x1b[2m" not in bare.getvalue()
        assert shown(TERM="dumb").getvalue() == "\n".join(lines)


class TestMicrophone:
    @pytest.fixture
    def sounddevice(self, monkeypatch: pytest.MonkeyPatch, script: Script) -> FakeSounddevice:
        """A microphone that records 0.05 s and is then interrupted."""
        fake = FakeSounddevice()
        begin = FakeStream.start

        def start(stream: FakeStream) -> None:
            begin(stream)
            stream.record(np.full(800, 0.5))

        monkeypatch.setattr(FakeStream, "start", start)
        monkeypatch.setitem(sys.modules, "sounddevice", fake)
        script.fed = {}
        script.on_feed = lambda: signal.raise_signal(signal.SIGINT)
        return fake

    @pytest.mark.parametrize("arguments", [[], ["mic"], ["mic", "--device", "Built"]])
    def test_an_interrupt_is_the_usual_end(
        self, sounddevice: FakeSounddevice, script: Script, arguments: list[str]
    ) -> None:
        result = run(*arguments)
        assert result.exit_code == 0
        assert result.stdout == "In <Madrid>. And\n"
        assert result.stderr == "listening to Built-in at 16000 Hz; Ctrl-C ends\n"
        assert [len(piece) for piece in script.pieces] == [800]
        (stream,) = sounddevice.streams
        assert stream.closed

    def test_another_sample_rate_is_passed_to_the_stream(self, sounddevice: FakeSounddevice, script: Script) -> None:
        sounddevice.accepted = {(44_100, 1)}
        assert run("--device", "2").stderr == "listening to Headset at 44100 Hz; Ctrl-C ends\n"
        assert script.arguments[2]["sample_rate"] == 44_100

    def test_lost_audio_has_a_warning(self, sounddevice: FakeSounddevice, script: Script) -> None:
        def lose() -> None:
            if len(script.pieces) == 1:
                sounddevice.streams[0].record(np.zeros(800), overflow=True)
            else:
                signal.raise_signal(signal.SIGINT)

        script.on_feed = lose
        assert "warning: Built-in: audio was lost, because" in run().stderr

    def test_an_unplugged_device_ends_the_stream_with_an_error(
        self, sounddevice: FakeSounddevice, script: Script
    ) -> None:
        script.on_feed = lambda: sounddevice.streams[0].finish()
        result = run()
        assert (result.exit_code, result.stdout) == (2, "In <Madrid>. And\n")
        assert result.stderr.splitlines()[-1] == "error: Built-in: stopped recording; is it still plugged in?"

    def test_devices_are_listed(self, sounddevice: FakeSounddevice) -> None:
        result = run("--list-devices")
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout == (
            "  1  Built-in, ALSA: 2 channels, 48000 Hz  (default)\n  2  Headset, ALSA: 1 channel, 44100 Hz\n"
        )
        sounddevice.devices = []
        result = run("--list-devices")
        assert (result.exit_code, result.stderr) == (2, "error: this machine has no microphone\n")

    def test_without_the_package_the_error_has_the_remedy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "sounddevice", None)
        for arguments in ([], ["--list-devices"]):
            result = run(*arguments)
            assert (result.exit_code, result.stdout) == (2, "")
            assert result.stderr == (
                "error: the microphone needs the optional package sounddevice: pip install 'asr-deploy[mic]'\n"
            )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.wav"], "absent.wav: no such file"),
        (["."], "is a folder"),
        (["en-1.wav", "--chunk", "0"], "pieces of a file must have 0.01 to 10 s, not 0 s"),
        (["-", "--realtime"], "--realtime is for files"),
        (["mic", "--chunk", "1"], "--chunk is for files"),
        (["en-1.wav", "--raw"], "stream a raw file with `stream - --raw < FILE`"),
        (["mic", "--raw-rate", "8000"], "--raw and --raw-rate are for standard input"),
        (["en-1.wav", "--device", "1"], "--device is for the microphone"),
        (["-", "--raw-rate", "1"], "the rate of raw samples must be 8000 to 192000 Hz, not 1"),
        (["-"], "standard input: is empty (0 bytes)"),
        (["en-1.wav", "--model", "/nowhere"], "/nowhere: no such model folder"),
        (["en-1.wav", "--language", "englsh"], "unknown language 'englsh'; did you mean English (en)"),
        (["en-1.wav", "--format", "vtt", "--language", "xx"], "unknown language 'xx'"),
        (["en-1.wav", "--interval", "0"], "interval"),
        (["en-1.wav", "--pause", "0.1"], "pause"),
        (["en-1.wav", "--context", "<|audio_pad|>"], "the context contains <|audio_pad|>"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(DATA)
    result = run(*arguments, stdin=b"")
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "runtime", "stream", "--model", str(ARTIFACT), *map(str, arguments)]


def first_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], TIMEOUT)[0], "no output"
    return process.stdout.readline()


def test_a_terminal_as_standard_input_is_refused() -> None:
    master, slave = pty.openpty()
    ended = subprocess.run(command("-"), stdin=slave, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    os.close(slave)
    os.close(master)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: standard input is a terminal; pipe audio into this command")


class TestBundledModel:
    def test_a_file_has_the_same_text_as_with_transcribe(self, samples: list[dict[str, Any]]) -> None:
        for sample in (samples[0], samples[4], samples[8]):
            offline = CliRunner().invoke(app, ["transcribe", str(DATA / sample["file"])])
            result = run(DATA / sample["file"])
            assert (result.exit_code, result.stderr) == (0, "")
            assert result.stdout == offline.stdout == sample["text"] + "\n"

    @pytest.mark.parametrize("kind", ["raw", "wav", "flac"])
    def test_standard_input_has_the_same_text(self, kind: str, samples: list[dict[str, Any]], tmp_path: Path) -> None:
        ints = soundfile.read(SPOKEN, dtype="int16")[0]
        soundfile.write(tmp_path / "spoken.flac", ints, 16_000)
        data = {
            "raw": ints.tobytes(),
            "wav": SPOKEN.read_bytes(),
            "flac": (tmp_path / "spoken.flac").read_bytes(),
        }
        result = run("-", stdin=data[kind])
        assert (result.exit_code, result.stdout, result.stderr) == (0, samples[0]["text"] + "\n", "")

    def test_results_do_not_depend_on_chunks_and_containers(
        self, samples: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        """Times and texts of several segments, in small chunks, in large ones, in a container, as raw samples."""
        silence = np.zeros(24_000, np.int16)
        parts = [soundfile.read(DATA / samples[number]["file"], dtype="int16")[0] for number in (0, 4, 8)]
        ints = np.concatenate([piece for part in parts for piece in (part, silence)])
        path = tmp_path / "joined.wav"
        soundfile.write(path, ints, 16_000)
        expected = run(path, "--format", "srt").stdout
        assert [line for line in expected.splitlines() if line][2::3] == [samples[n]["text"] for n in (0, 4, 8)]
        for result in (
            run(path, "--format", "srt", "--chunk", "3"),
            run("-", "--format", "srt", stdin=path.read_bytes()),
            run("-", "--format", "srt", "--raw", stdin=ints.tobytes()),
        ):
            assert (result.exit_code, result.stdout) == (0, expected)

    def test_events_of_a_file(self, samples: list[dict[str, Any]]) -> None:
        result = run(DATA / "ru-3.wav", "--format", "json")
        events = [json.loads(line) for line in result.stdout.splitlines()]
        assert events[0]["type"] == "speech"
        finals = [event["result"] for event in events if event["type"] == "final"]
        partials = [event for event in events if event["type"] == "partial"]
        assert " ".join(segment["text"] for segment in finals) == samples[6]["text"]
        assert len(partials) > 3
        for event in partials:
            segment = next(e for e in events if e["type"] == "final" and e["segment"] == event["segment"])
            assert segment["result"]["text"].startswith(event["stable"])
        assert any(event["stable"] for event in partials)
        unstable = run(DATA / "ru-3.wav", "--format", "json", "--no-stable")
        events_without = [json.loads(line) for line in unstable.stdout.splitlines()]
        assert any(event["type"] == "partial" for event in events_without)
        assert not any(event.get("stable") for event in events_without)

    def test_final_segments_are_written_while_the_pipe_is_open(self) -> None:
        ints = soundfile.read(SPOKEN, dtype="int16")[0]
        with subprocess.Popen(
            command("-"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY
        ) as process:
            assert process.stdin is not None
            process.stdin.write(ints.tobytes() + bytes(2 * 32_000))  # two seconds of silence
            process.stdin.flush()
            assert first_line(process) == b"It was very quiet in Madrid.\n"
            process.stdin.write(ints.tobytes())
            rest, errors = process.communicate(timeout=TIMEOUT)
            assert (process.returncode, rest.decode(), errors) == (0, "It was very quiet in Madrid.\n", b"")

    def test_an_interrupt_of_a_process_that_waits_for_audio(self) -> None:
        """The interrupt arrives during a read; the open segment is finished nevertheless."""
        ints = soundfile.read(SPOKEN, dtype="int16")[0]
        with subprocess.Popen(
            command("-", "--format", "json", "--interval", "0.5"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=REPOSITORY,
        ) as process:
            assert process.stdin is not None
            process.stdin.write(ints.tobytes())
            process.stdin.flush()
            assert json.loads(first_line(process))["type"] == "speech"
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=TIMEOUT)
        last = json.loads(rest.splitlines()[-1])
        assert last["result"]["text"] == "It was very quiet in Madrid."
        assert (process.returncode, errors) == (130, b"error: interrupted\n")

    def test_a_closed_pipe_ends_the_command_with_a_sentence(self) -> None:
        with subprocess.Popen(
            command(DATA / "en-3.wav", "--format", "json", "--interval", "0.2"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=REPOSITORY,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            first_line(process)
            process.stdout.close()
            assert process.stderr.read().startswith(b"error: standard output: cannot be written")
        assert process.returncode == 2

    def test_a_terminal_shows_the_text(self) -> None:
        master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "40", "LINES": "10"}
        environment.pop("NO_COLOR", None)
        screen = Screen(columns=40, lines=10)
        with subprocess.Popen(
            command(SPOKEN, "--interval", "0.5"),
            stdout=slave,
            stderr=subprocess.PIPE,
            cwd=REPOSITORY,
            env=environment,
        ) as process:
            os.close(slave)
            shown = b"".join(_pieces(master))
            assert process.stderr is not None
            assert process.stderr.read() == b""
        os.close(master)
        screen.write(shown.decode())
        assert screen.shown == ["It was very quiet in Madrid.", ""]
        assert b"\x1b[2m" in shown


def _pieces(descriptor: int) -> Iterator[bytes]:
    with contextlib.suppress(OSError):  # Linux raises OSError at the end of a terminal
        while piece := os.read(descriptor, 4096):
            yield piece
