"""The recordings of people in tests/data/real and benchmarks/data/real: whole, attributed, and divided as stated."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import soundfile

from quantize.audio_sets import real_folder
from runtime.evaluation import load_utterances
from tools.real_speech import BUNDLED, REST, RIGHTS, bundled, splits

FOLDERS = {BUNDLED: 60, REST: 246}


def index(folder: Path) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize(("folder", "count"), FOLDERS.items())
def test_files_are_those_of_the_index(folder: Path, count: int) -> None:
    entries = index(folder)
    assert len(load_utterances(folder)) == len(entries) == count
    assert {path.name for path in folder.glob("*.opus")} == {entry["file"] for entry in entries}
    for entry in entries:
        data = (folder / entry["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"], entry["file"]
        assert entry["text"].strip()


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_language_has_author_and_license(folder: Path) -> None:
    text = (folder / "LICENSES" / "README.md").read_text(encoding="utf-8")
    assert {entry["language"] for entry in index(folder)} == set(RIGHTS)
    for language, rights in RIGHTS.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {language} ")]
        assert f"© {rights.years} {rights.author}" in row
        assert f"{rights.licence}: <https://creativecommons.org/licenses/" in row


def test_no_recording_is_in_two_places() -> None:
    hashes = [entry["sha256"] for folder in FOLDERS for entry in index(folder)]
    assert len(set(hashes)) == sum(FOLDERS.values())
    names = Counter(entry["file"] for folder in FOLDERS for entry in index(folder))
    assert set(names.values()) == {1}


def test_bundled_recordings_are_those_of_the_rule() -> None:
    """Four for calibration and eight for evaluation a language, and both hold short and long ones."""
    everything = index(BUNDLED) + index(REST)
    assert splits(everything) == {entry["file"]: entry["split"] for entry in index(BUNDLED)}
    counts = Counter((entry["language"], entry["split"]) for entry in index(BUNDLED))
    assert counts == {(each, split): n for each in RIGHTS for split, n in (("calibration", 4), ("evaluation", 8))}
    for entry in index(BUNDLED)[::10]:
        assert soundfile.info(BUNDLED / entry["file"]).duration == pytest.approx(entry["seconds"], abs=1e-3)


def test_rule_takes_the_middle_of_twelve_parts() -> None:
    chosen = bundled([(seconds, f"{seconds:02}") for seconds in reversed(range(24))])
    assert list(chosen) == [f"{second:02}" for second in range(1, 24, 2)]
    assert [name for name, split in chosen.items() if split == "calibration"] == ["03", "09", "15", "21"]


def test_bundled_folder_is_that_of_the_source_tree() -> None:
    assert real_folder() == BUNDLED
    assert sum(path.stat().st_size for path in BUNDLED.iterdir() if path.is_file()) < 1.2e6
