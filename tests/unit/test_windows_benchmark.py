"""The files that show what joined windows change."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks import windows
from benchmarks.recordings import RATE, Recordings

LANGUAGES = ("en", "fr")


@pytest.fixture
def recordings(tmp_path: Path) -> Recordings:
    entries = []
    for language in LANGUAGES:
        for number in range(16):
            name = f"{language}-{number}.wav"
            soundfile.write(tmp_path / name, np.full(4 * RATE + number, 0.1, np.float32), RATE)
            entries.append({"file": name, "language": language, "text": f"{language} {number}"})
    (tmp_path / "index.json").write_text(json.dumps(entries))
    return Recordings(tmp_path)


def test_files_have_one_language_or_change_it_each_time(recordings: Recordings) -> None:
    files = list(windows.files_of(recordings, recordings.texts, None))
    assert {file.group for file in files} == {*LANGUAGES, "mixed"}
    for file in files:
        said = file.text.split()[::2]
        assert len(file.samples) / RATE >= len(said) * (4 + windows.PAUSE_SECONDS)
        if file.language:
            assert {*said} == {file.language}
        else:
            assert all(one != other for one, other in pairwise(said))
    assert len([file for file in files if file.group == "mixed"]) == 20
    assert [file.text for file in windows.files_of(recordings, recordings.texts, None)] == [file.text for file in files]


def test_windows_are_counted() -> None:
    class Engine:
        def encode(self, samples: list[int]) -> int:
            return len(samples)

    engine = Engine()
    count = windows.counted(engine)
    assert (engine.encode([1, 2]), engine.encode([]), count()) == (2, 0, 2)
