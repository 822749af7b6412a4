"""Tests of resident memory and of the description of the machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime.bench import machine
from runtime.host import memory
from runtime.host.cpu import processor_name
from runtime.host.memory import peak_resident_bytes, resident_bytes

ALLOCATED = 300 * 2**20  # bytes


def test_peak_stays_and_is_not_inherited_by_a_child() -> None:
    before = peak_resident_bytes()
    block = np.ones(ALLOCATED, np.uint8)
    assert resident_bytes() >= ALLOCATED
    del block
    assert peak_resident_bytes() >= max(before, ALLOCATED)
    code = "from runtime.host.memory import peak_resident_bytes; print(peak_resident_bytes())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 2**20 < int(child.stdout) < ALLOCATED / 2


def test_systems_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """The standard library and ps report nearly the same sizes as ``/proc/self/status``."""
    resident, peak = resident_bytes(), peak_resident_bytes()
    monkeypatch.setattr(memory, "_from_status", lambda key: None)
    assert resident_bytes() == pytest.approx(resident, rel=0.2)
    assert peak_resident_bytes() >= peak * 0.9


def test_status_without_the_entry(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("VmPeak:\t 5 kB\nVmHWM:\t  12 kB\n")
    assert memory._from_status("VmHWM", tmp_path / "status") == 12 * 1024
    assert memory._from_status("VmRSS", tmp_path / "status") is None
    assert memory._from_status("VmRSS", tmp_path / "absent") is None


def test_this_machine() -> None:
    described = machine.describe()
    assert described.cores >= 1
    assert described.processor
    assert set(described.versions) == {"asr-deploy", "numpy", "onnxruntime", "python"}
    assert described.date.endswith("+00:00")


def test_instruction_sets_from_flags() -> None:
    flags = frozenset({"avx2", "avx512f", "avx512_vnni", "amx_int8", "sse2"})
    assert machine.instructions(flags) == ["AVX2", "AVX-512", "AVX512-VNNI", "AMX-INT8"]
    assert machine.instructions(frozenset({"asimd", "asimddp", "i8mm"})) == ["NEON", "DotProd", "I8MM"]
    assert machine.instructions(frozenset()) == []


def test_macos_is_described_by_sysctl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a Mac, names that sysctl does not know have an empty output and exit code 1."""
    answers = {
        "machdep.cpu.brand_string": "Apple M4",
        "hw.optional.arm.FEAT_I8MM": "1",
        "hw.optional.arm.FEAT_SME": "0",
    }

    def sysctl(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[:2] == ["/usr/sbin/sysctl", "-n"]
        return subprocess.CompletedProcess(command, 0, answers.get(command[2], "") + "\n", "")

    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    monkeypatch.setattr("subprocess.run", sysctl)
    monkeypatch.setattr(machine, "processor_flags", lambda: None)
    assert processor_name(tmp_path / "absent") == "Apple M4"
    assert machine.instructions() == ["NEON", "I8MM"]


def test_memory_is_limited_by_the_cgroup(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    installed = machine.memory_bytes(limit)
    limit.write_text("1000000\n")
    assert machine.memory_bytes(limit) == 1_000_000
    limit.write_text("max\n")
    assert machine.memory_bytes(limit) == installed


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_freed_memory_of_the_heap_returns_to_the_system() -> None:
    code = """
import ctypes
from runtime.host.memory import release_free_memory, resident_bytes
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
blocks = [libc.malloc(64_000) for _ in range(2000)]
for block in blocks:
    ctypes.memset(block, 1, 64_000)
for block in blocks[:-1]:  # the last one keeps the heap from shrinking by itself
    libc.free(block)
before = resident_bytes()
print(release_free_memory(), before - resident_bytes())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    possible, released = done.stdout.split()
    assert (possible == "True") == (int(released) > 100_000_000)
