"""Outputs of a batch: torn lines, kills between any two steps, foreign files, a second writer."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtime import Transcript
from runtime.batch import BatchSettings, Job, open_output
from runtime.batch.output import ERRORS, JOURNAL, UnusableNameError
from runtime.errors import OptionError, OutputError
from runtime.results import Timings, TokenCounts

SETTINGS = BatchSettings("tiny", "ab" * 32, "cpu", None, True)
LAYOUTS = ["out.jsonl", "out"]


def job(name: str) -> Job:
    return Job(name, Path("/audio", name))


def jobs(*names: str) -> list[Job]:
    return [job(name) for name in names]


def transcript(text: str) -> Transcript:
    return Transcript(text, "English", 1.0, [], Timings(), TokenCounts(0, 0, 0), "tiny", "cpu", {})


def finish(out: Path, inputs: Sequence[Job], *, settings: BatchSettings = SETTINGS, **options: Any) -> list[str]:
    """Finish all pending jobs and return their ids."""
    with closing(open_output(out, options.pop("format", None), settings, **options)) as output:
        pending = output.pending(inputs)
        for each in pending:
            output.add(each, transcript(f"text of {each.id}"))
    return [each.id for each in pending]


def lines(path: Path) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_finished_job_is_not_run_again(layout: str, tmp_path: Path) -> None:
    out = tmp_path / layout
    assert finish(out, jobs("a.wav", "sub/b.wav")) == ["a.wav", "sub/b.wav"]
    assert finish(out, jobs("a.wav", "sub/b.wav", "c.wav")) == ["c.wav"]
    assert finish(out, jobs("a.wav", "sub/b.wav", "c.wav")) == []


def test_a_line_has_audio_and_settings(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    finish(out, [Job("a", Path("/audio/x/../a.wav"), language="ru", channel=1)])
    (line,) = lines(out)
    assert (line["id"], line["audio"], line["text"]) == ("a", "/audio/a.wav", "text of a")
    assert line["batch"] == msgspec.to_builtins(msgspec.structs.replace(SETTINGS, language="ru", channel=1))


def test_a_torn_line_is_removed_and_its_job_runs_again(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    inputs = jobs("a.wav", "b.wav", "c.wav")
    finish(out, inputs)
    whole = out.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for end in range(last, len(whole)):
        out.write_bytes(whole[:end])
        assert finish(out, inputs) == ["c.wav"], end
        assert out.read_bytes() == whole
    first = whole.index(b"\n")
    for end in (1, 6, 7, 60, first):  # the file has a single, torn line
        out.write_bytes(whole[:end])
        assert finish(out, inputs) == ["a.wav", "b.wav", "c.wav"]
        assert out.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    [
        b'{"audio": "a.wav"}\n',  # a manifest, passed to --out by mistake
        b'{"id":"a","audio":"a.wav"}',
        b"notes without an end",
        b"notes\n",
        b"\n",
        b'{"id":"a\n{"id":"b',  # torn, but not at the end
    ],
)
@pytest.mark.parametrize("restart", [False, True])
def test_a_file_not_written_by_a_batch_is_not_changed(content: bytes, restart: bool, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(content)
    with pytest.raises(OutputError, match=r"out\.jsonl: line 1 .*not written by batch.*--out"):
        open_output(out, None, SETTINGS, restart=restart)
    assert out.read_bytes() == content


def test_a_journal_that_points_outside_removes_nothing(tmp_path: Path) -> None:
    finish(tmp_path / "out", jobs("a.wav"))
    journal = tmp_path / "out" / JOURNAL
    (tmp_path / "precious").write_text("mine")
    journal.write_bytes(journal.read_bytes().replace(b'"file":"a.wav.json"', b'"file":"../precious"'))
    with pytest.raises(OutputError, match="was not written by batch"):
        finish(tmp_path / "out", jobs("a.wav"), restart=True)
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "other"}, "(model: tiny there, other now)"),
        ({"manifest_sha256": "cd" * 32}, "(the model's manifest: abababababababababababa… there, cdcd"),
        ({"provider": "openvino"}, "provider: cpu there, openvino now"),
        ({"segment_seconds": 10.0, "vad": False}, "(segment seconds: None there, 10.0 now, voice activity: True there"),
        ({"language": "English"}, "'a.wav' was written with other settings (language: None there, English now)"),
        ({"context": "Kris"}, "'a.wav' was written with other settings (context: '' there, Kris now)"),
    ],
)
def test_other_settings_are_refused_without_restart(
    change: dict[str, Any], message: str, layout: str, tmp_path: Path
) -> None:
    out = tmp_path / layout
    finish(out, jobs("a.wav", "b.wav"))
    other = msgspec.structs.replace(SETTINGS, **change)
    with pytest.raises(OutputError) as caught:
        finish(out, jobs("a.wav"), settings=other)
    assert message in str(caught.value)
    assert "--out" in str(caught.value)
    assert "--restart" in str(caught.value)
    assert finish(out, jobs("a.wav"), settings=other, restart=True) == ["a.wav"]
    assert finish(out, jobs("a.wav"), settings=other) == []
    if layout == "out":
        assert sorted(path.name for path in out.iterdir()) == [JOURNAL, "a.wav.json"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_name_of_other_audio_is_refused(layout: str, tmp_path: Path) -> None:
    finish(tmp_path / layout, jobs("a.wav"))
    with pytest.raises(OutputError, match=r"'a\.wav' .*/audio/a\.wav.*/other/a\.wav"):
        finish(tmp_path / layout, [Job("a.wav", Path("/other/a.wav"))])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_failure_is_recorded_once_and_tried_again(layout: str, tmp_path: Path) -> None:
    out = tmp_path / layout
    inputs = jobs("bad.wav", "good.wav", "worse.wav")
    for _ in range(2):
        with closing(open_output(out, None, SETTINGS)) as output:
            pending = output.pending(inputs)
            for each in pending:
                if each.id == "good.wav":
                    output.add(each, transcript("good"))
                else:
                    output.fail(each, f"{each.audio}: is empty")
            errors_path = output.errors_path
        failed = [line for line in lines(errors_path) if "error" in line]
        assert [(line["id"], line["audio"], line["error"]) for line in failed] == [
            ("bad.wav", "/audio/bad.wav", "/audio/bad.wav: is empty"),
            ("worse.wav", "/audio/worse.wav", "/audio/worse.wav: is empty"),
        ]
    assert [each.id for each in pending] == ["bad.wav", "worse.wav"]
    assert finish(out, inputs) == ["bad.wav", "worse.wav"]
    if layout == "out":
        assert not (out / ERRORS).exists()
    else:
        assert sorted(line["id"] for line in lines(out)) == ["bad.wav", "good.wav", "worse.wav"]
        assert not any("error" in line for line in lines(out))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_second_writer_is_refused(layout: str, tmp_path: Path) -> None:
    out = tmp_path / layout
    finish(out, jobs("a.wav"))
    with closing(open_output(out, None, SETTINGS)) as output:
        with pytest.raises(OutputError, match="another batch is writing to it"):
            open_output(out, None, SETTINGS)
        output.fail(job("b.wav"), "broken")
        output.pending(jobs("a.wav", "b.wav"))  # replaces the file of lines
        with pytest.raises(OutputError, match="another batch is writing to it"):
            open_output(out, None, SETTINGS)
    assert finish(out, jobs("a.wav")) == []


def test_every_format_has_its_own_file(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    inputs = jobs("sub/a.wav")
    for format in ("json", "txt", "srt", "vtt", "tsv"):
        assert finish(out, inputs, format=format) == ["sub/a.wav"]
        assert finish(out, inputs, format=format) == []
    assert (out / "sub/a.wav.txt").read_text() == "text of sub/a.wav\n"
    result = msgspec.json.decode((out / "sub/a.wav.json").read_bytes())
    assert (result["id"], result["audio"], result["text"]) == ("sub/a.wav", "/audio/sub/a.wav", "text of sub/a.wav")
    assert sorted(path.name for path in (out / "sub").iterdir()) == [
        f"a.wav.{format}" for format in ("json", "srt", "tsv", "txt", "vtt")
    ]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_kill_between_the_steps_of_writing_a_file(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the journal's entry, or between it and the renaming: only this file is transcribed again."""
    out = tmp_path / "out"
    finish(out, jobs("a.wav"))

    class Killed(BaseException):
        pass

    def kill(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        output = open_output(out, None, SETTINGS)
        patch.setattr(os, step, kill)
        with pytest.raises(Killed):
            output.add(job("b.wav"), transcript("lost"))
    output.close()
    assert not (out / "b.wav.json").exists()
    assert finish(out, jobs("a.wav", "b.wav")) == ["b.wav"]
    assert sorted(path.name for path in out.iterdir()) == [JOURNAL, "a.wav.json", "b.wav.json"]


def test_a_deleted_file_is_written_again(tmp_path: Path) -> None:
    finish(tmp_path / "out", jobs("a.wav", "b.wav"))
    (tmp_path / "out" / "a.wav.json").unlink()
    assert finish(tmp_path / "out", jobs("a.wav", "b.wav")) == ["a.wav"]


def test_foreign_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.wav.txt").write_text("by hand")
    with pytest.raises(OutputError, match=r"a\.wav\.txt: exists.*--out"):
        finish(tmp_path, jobs("a.wav"), format="txt")
    assert finish(tmp_path, jobs("b.wav"), format="txt", restart=True) == ["b.wav"]
    assert (tmp_path / "a.wav.txt").read_text() == "by hand"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_continues_after_a_full_disk(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / layout
    write = os.write

    def full(file: int, data: Any) -> int:
        if len(data) < 30:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data[:20])

    with closing(open_output(out, None, SETTINGS)) as output:
        output.add(job("a.wav"), transcript("kept"))
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\)"):
                output.add(job("b.wav"), transcript("lost"))
    journal = out if layout.endswith("jsonl") else out / JOURNAL
    assert [each["id"] for each in lines(journal)] == ["a.wav"]  # no part of a line
    assert not list(tmp_path.rglob("*.part"))
    assert finish(out, jobs("a.wav", "b.wav")) == ["b.wav"]


def test_a_name_that_cannot_be_used_concerns_its_job_only(tmp_path: Path) -> None:
    """Too long with its suffix, or below a name that is a file; the next results are stored."""
    out = tmp_path / "out"
    with closing(open_output(out, "txt", SETTINGS)) as output:
        assert len(output.pending(jobs("x" * 253, "a.wav"))) == 2
        output.add(job("a.wav"), transcript("one"))
        for name in ("x" * 253, "a.wav.txt/b.wav"):
            with pytest.raises(UnusableNameError, match=r"cannot be stored as .*JSON lines.*id"):
                output.add(job(name), transcript("two"))
        output.add(job("y" * 250), transcript("three"))
    assert sorted(path.name for path in out.glob("*.txt")) == ["a.wav.txt", "y" * 250 + ".txt"]
    assert not list(out.rglob("*.part"))


@pytest.mark.parametrize(
    ("out", "format", "message"),
    [
        ("out.jsonl", "srt", r"out\.jsonl: .*lines of JSON.*srt.*folder"),
        ("absent/out.jsonl", None, "give a file in a folder that exists"),
        ("folder.jsonl", None, "give a file in a folder that exists"),
        ("out.json", None, r"out\.json: .*give a folder, or a file that ends in \.jsonl"),
        ("out.txt", "txt", r"out\.txt: .*give a folder, or a file that ends in \.jsonl"),
        ("file", None, r"file: .*give a folder, or a file that ends in \.jsonl"),
    ],
)
def test_an_unsuitable_output_is_refused(out: str, format: str | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OptionError, match=message):
        open_output(tmp_path / out, format, SETTINGS)


def test_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"file/out: cannot be written \(Not a directory\)"):
        open_output(tmp_path / "file" / "out", None, SETTINGS)
    finish(tmp_path / "out", [Job("a.wav.json/b", Path("/audio/b"))])
    with pytest.raises(OutputError, match="exists, and this batch did not write it"):
        finish(tmp_path / "out", jobs("a.wav"))
