"""Tests that decoder libraries print nothing, and that other threads' messages are not lost meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REPOSITORY
from tests.helpers.recordings import RATE, encoded, sound, tone

# Reads files in one thread, while others write to standard error through Python and through the descriptor.
PROGRAM = """
import os, sys, threading
from runtime.audio import load_audio
from runtime.errors import AsrError
done = threading.Event()
def chatter(write):
    for number in range(300):
        write(f"line {number}\\n")
        done.wait(0.001)
threads = [
    threading.Thread(target=chatter, args=(lambda text: os.write(2, text.encode()),)),
    threading.Thread(target=chatter, args=(lambda text: sys.stderr.write(text),)),
]
[thread.start() for thread in threads]
while any(thread.is_alive() for thread in threads):
    for path in sys.argv[1:]:
        try:
            load_audio(path, 16_000)
        except AsrError:
            pass
[thread.join() for thread in threads]
import ctypes
libc = ctypes.CDLL(None)
libc.fputs(b"from C\\n", ctypes.c_void_p.in_dll(libc, "stderr"))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library's variable has another name")
def test_messages_of_libraries_do_not_reach_standard_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    paths = []
    mp3 = sound(np.concatenate([tone(1.0), rng.normal(0, 0.3, RATE).astype(np.float32)]), "MP3")
    aac = encoded(tone(1.0), "adts", "aac")
    for index, data in enumerate([mp3, mp3, mp3, aac, encoded(tone(1.0), "mp4", "aac")]):
        damaged = bytearray(data)
        for position in rng.integers(len(data) // 3, len(data), 40):
            damaged[position] ^= 0x55
        paths.append(tmp_path / f"{index}.bin")
        paths[-1].write_bytes(damaged)
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, paths)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    lines = result.stderr.splitlines()
    assert lines.count("from C") == 1
    assert sorted(lines) == sorted([f"line {number}" for number in range(300)] * 2 + ["from C"])
