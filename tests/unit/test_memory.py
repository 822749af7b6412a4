"""Resident memory, and what is known of the machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime.bench import machine
from runtime.host import memory
from runtime.host.memory import peak_resident_bytes, resident_bytes

HELD = 300 * 2**20


def test_the_peak_stays_and_a_child_does_not_inherit_it() -> None:
    before = peak_resident_bytes()
    held = np.ones(HELD, np.uint8)
    assert resident_bytes() >= HELD
    del held
    assert peak_resident_bytes() >= max(before, HELD)
    code = "from runtime.host.memory import peak_resident_bytes; print(peak_resident_bytes())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 2**20 < int(said.stdout) < HELD / 2


def test_systems_without_linux_tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There, the standard library and ps say nearly the same as Linux's table does here."""
    resident, peak = resident_bytes(), peak_resident_bytes()
    monkeypatch.setattr(memory, "_from_status", lambda key: None)
    assert resident_bytes() == pytest.approx(resident, rel=0.2)
    assert peak_resident_bytes() >= peak * 0.9


def test_a_table_without_the_entry(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("VmPeak:\t 5 kB\nVmHWM:\t  12 kB\n")
    assert memory._from_status("VmHWM", tmp_path / "status") == 12 * 1024
    assert memory._from_status("VmRSS", tmp_path / "status") is None
    assert memory._from_status("VmRSS", tmp_path / "absent") is None


def test_this_machine() -> None:
    found = machine.describe()
    assert found.cores >= 1
    assert found.processor
    assert set(found.versions) == {"asr-deploy", "numpy", "onnxruntime", "python"}
    assert found.date.endswith("+00:00")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor : 0\nmodel name\t: AMD EPYC 9755\n", "AMD EPYC 9755"),
        ("processor : 0\nFeatures : fp asimd\n\nModel\t\t: Raspberry Pi 5 Model B\n", "Raspberry Pi 5 Model B"),
    ],
)
def test_processor_names(text: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert machine.processor_name(tmp_path / "cpuinfo") == name
    assert machine.processor_name(tmp_path / "absent")


def test_instructions_that_matter() -> None:
    flags = frozenset({"avx2", "avx512f", "avx512_vnni", "amx_int8", "sse2"})
    assert machine.instructions(flags) == ["AVX2", "AVX-512", "AVX512-VNNI", "AMX-INT8"]
    assert machine.instructions(frozenset({"asimd", "asimddp", "i8mm"})) == ["NEON", "DotProd", "I8MM"]
    assert machine.instructions(frozenset()) == []


def test_a_mac_is_asked_with_sysctl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a Mac would answer; everything it does not know is empty, with exit code 1."""
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
    assert machine.processor_name(tmp_path / "absent") == "Apple M4"
    assert machine.instructions() == ["NEON", "I8MM"]


def test_memory_is_cut_to_the_limit(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    installed = machine.memory_bytes(limit)
    limit.write_text("1000000\n")
    assert machine.memory_bytes(limit) == 1_000_000
    limit.write_text("max\n")
    assert machine.memory_bytes(limit) == installed
