"""The machine that figures were measured on, and the versions that made them."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime

from runtime.host.cpu import processor_flags, processor_name, sysctl
from runtime.ort.threads import usable_cores
from runtime.version import __version__

_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")

# Instruction sets that decide which kernels run, by the name that Linux or macOS has for them.
_INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "amx_int8": "AMX-INT8",
    "amx_bf16": "AMX-BF16",
    "asimd": "NEON",
    "asimddp": "DotProd",
    "i8mm": "I8MM",
    "bf16": "BF16",
    "sve": "SVE",
    "sve2": "SVE2",
    "sme": "SME",
    "FEAT_DotProd": "DotProd",
    "FEAT_I8MM": "I8MM",
    "FEAT_BF16": "BF16",
    "FEAT_SME": "SME",
}


class Machine(msgspec.Struct, frozen=True):
    """Where and with what something was measured.

    ``cores`` are those this process may use (affinity, cgroup quota), ``memory_bytes`` what it may have at most, None
    where the system does not say; ``date`` is UTC.
    """

    processor: str
    architecture: str
    cores: int
    memory_bytes: int | None
    instructions: list[str]
    system: str
    versions: dict[str, str]
    date: str


def describe() -> Machine:
    """Say what this machine is, now."""
    return Machine(
        processor=processor_name(),
        architecture=platform.machine(),
        cores=usable_cores(),
        memory_bytes=memory_bytes(),
        instructions=instructions(),
        system=_system(),
        versions={
            "asr-deploy": __version__,
            "onnxruntime": onnxruntime.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def instructions(flags: frozenset[str] | None = None) -> list[str]:
    """Instruction sets that matter to matrix products, those of this machine unless ``flags`` are given."""
    if flags is None:
        flags = processor_flags()
    if flags is None and platform.system() == "Darwin":
        found = {name for name in _INSTRUCTIONS if sysctl(f"hw.optional.arm.{name}") == "1"}
        flags = frozenset(found | ({"asimd"} if platform.machine() == "arm64" else set()))
    return list(dict.fromkeys(said for name, said in _INSTRUCTIONS.items() if name in (flags or ())))


def memory_bytes(limit_file: Path = _MEMORY_LIMIT) -> int | None:
    """Memory that this process may have: the machine's, cut to the cgroup's limit; None where unknown."""
    if sys.platform == "win32":
        return _windows_memory()
    try:
        installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
    try:
        return min(installed, int(limit_file.read_text()))
    except (OSError, ValueError):  # no cgroup v2, or no limit ("max")
        return installed


def _system() -> str:
    """Distribution or release, and kernel."""
    kernel = f"{platform.system()} {platform.release()}"
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {kernel}"
    except (OSError, KeyError):
        release = platform.mac_ver()[0]
        return f"macOS {release}, {kernel}" if release else platform.platform()


def _windows_memory() -> int | None:
    """Installed memory, from ``GetPhysicallyInstalledSystemMemory``."""
    import ctypes

    kilobytes = ctypes.c_ulonglong()
    known = ctypes.CDLL("kernel32.dll").GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes))
    return kilobytes.value * 1024 if known else None
