"""The comparison on one longer recording: which systems take part, and the rows of its table."""

from __future__ import annotations

from typing import Any

from benchmarks.real.long import ROWS, chosen, rows_of
from benchmarks.real.systems import System


def system(name: str, **options: Any) -> System:
    return System(name, name, {"options": options, "model": "m"}, 1)


def test_systems_for_long_audio() -> None:
    systems = [
        system("asr-deploy, float32", vad=True),
        system("asr-deploy, float32, not cut", vad=False),
        system("transformers, float32"),
        system("faster-whisper, int8", beam_size=1, without_timestamps=True),
        system("faster-whisper, float32, 5 beams"),
        system("whisper.cpp, f16", no_context=True),
    ]
    names = ["asr-deploy, float32", f"faster-whisper, int8, {ROWS} together", "whisper.cpp, f16"]
    found = chosen(systems)
    assert [each.name for each in found] == names
    assert found[1].job == {"options": {"beam_size": 1, "batch_size": ROWS}, "model": "m"}


def test_rows_have_medians_and_word_errors() -> None:
    answers = [{"seconds": each, "peak_bytes": 5e6 + each, "text": "Red green, black"} for each in (3.0, 1.0, 2.0)]
    assert rows_of({"ours": answers}, "red green blue") == [["ours", "2.00 s", "1.00 to 3.00", "5 MB", "1 of 3"]]
