"""Finished segments of unfinished files: they survive a kill and are used only for the same audio and settings."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec
import pytest

from runtime.batch.inputs import Job
from runtime.batch.journal import BatchSettings
from runtime.batch.segments import SegmentLog
from runtime.engines.base import SegmentResult, Span
from runtime.errors import OutputError

SETTINGS = BatchSettings("tiny", "ab" * 32, "cpu", None, True)


def span(start: int, text: str) -> Span:
    return Span(start, 100, SegmentResult(text, "English", [1, 2], 0.5, "stop", 3, 4), "length" if start else None)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    path = tmp_path / "a.wav"
    path.write_bytes(b"audio")
    return Job("a", path)


def test_segments_of_a_killed_run_are_read(job: Job, tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = SegmentLog(path)
    assert log.known(job, SETTINGS) == []
    log.add(job, SETTINGS, span(0, "first"))
    log.add(job, SETTINGS, span(100, "second"))
    with path.open("ab") as torn:
        torn.write(b'{"origin":{"audio":"')
    again = SegmentLog(path)
    assert again.known(job, SETTINGS) == [span(0, "first"), span(100, "second")]
    again.add(job, SETTINGS, span(200, "third"))
    again.close()
    assert len(SegmentLog(path).known(job, SETTINGS)) == 3
    assert SegmentLog(path, restart=True).known(job, SETTINGS) == []
    SegmentLog(path).remove()
    assert not path.exists()


def test_other_audio_and_other_settings_have_no_segments(job: Job, tmp_path: Path) -> None:
    log = SegmentLog(tmp_path / "log")
    log.add(job, SETTINGS, span(0, "first"))
    log.close()
    log = SegmentLog(tmp_path / "log")
    assert log.known(job, msgspec.structs.replace(SETTINGS, context="names")) == []
    assert log.known(Job("b", tmp_path / "b.wav"), SETTINGS) == []
    job.audio.write_bytes(b"other audio")
    assert log.known(job, SETTINGS) == []


def test_a_full_disk_is_one_sentence(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = SegmentLog(tmp_path / "log")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("runtime.host.files.os.write", full)
    with pytest.raises(OutputError, match="log: cannot be written"):
        log.add(job, SETTINGS, span(0, "first"))
    with pytest.raises(OutputError, match="cannot be written"):
        SegmentLog(tmp_path / "none" / "log")
