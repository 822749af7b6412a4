"""Finished segments of unfinished files: kept through a kill, and taken for the same audio and settings alone."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec
import pytest

from runtime.batch.inputs import Job
from runtime.batch.journal import MadeBy
from runtime.batch.segments import SegmentLog
from runtime.engines.base import SegmentResult, Span
from runtime.errors import OutputError

MADE_BY = MadeBy("tiny", "ab" * 32, "cpu", None, True)


def span(start: int, text: str) -> Span:
    return Span(start, 100, SegmentResult(text, "English", [1, 2], 0.5, "stop", 3, 4), "length" if start else None)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    path = tmp_path / "a.wav"
    path.write_bytes(b"audio")
    return Job("a", path)


def test_what_a_killed_run_left_is_known(job: Job, tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = SegmentLog(path)
    assert log.known(job, MADE_BY) == []
    log.add(job, MADE_BY, span(0, "first"))
    log.add(job, MADE_BY, span(100, "second"))
    with path.open("ab") as torn:
        torn.write(b'{"origin":{"audio":"')
    again = SegmentLog(path)
    assert again.known(job, MADE_BY) == [span(0, "first"), span(100, "second")]
    again.add(job, MADE_BY, span(200, "third"))
    again.close()
    assert len(SegmentLog(path).known(job, MADE_BY)) == 3
    assert SegmentLog(path, restart=True).known(job, MADE_BY) == []
    SegmentLog(path).remove()
    assert not path.exists()


def test_other_audio_and_other_settings_know_nothing_of_it(job: Job, tmp_path: Path) -> None:
    log = SegmentLog(tmp_path / "log")
    log.add(job, MADE_BY, span(0, "first"))
    log.close()
    log = SegmentLog(tmp_path / "log")
    assert log.known(job, msgspec.structs.replace(MADE_BY, context="names")) == []
    assert log.known(Job("b", tmp_path / "b.wav"), MADE_BY) == []
    job.audio.write_bytes(b"other audio")
    assert log.known(job, MADE_BY) == []


def test_a_full_disk_is_one_sentence(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = SegmentLog(tmp_path / "log")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("runtime.batch.segments.os.write", full)
    with pytest.raises(OutputError, match="log: cannot be written"):
        log.add(job, MADE_BY, span(0, "first"))
    with pytest.raises(OutputError, match="cannot be written"):
        SegmentLog(tmp_path / "none" / "log")
