"""Describe the machine and the package versions with which something was measured."""

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

# Instruction sets that decide which kernels run, by their names on Linux or macOS.
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
    """Machine and versions of a measurement.

    Attributes:
        processor: name of the processor.
        architecture: such as ``x86_64`` or ``arm64``.
        cores: cores this process may use (affinity, cgroup quota).
        memory_bytes: memory this process may use (installed memory, cgroup limit); None if unknown.
        instructions: instruction sets that matter to matrix products.
        system: distribution and kernel.
        versions: version by package.
        date: time in UTC, ISO 8601.
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
    """Describe this machine at the present time."""
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
    """List the instruction sets that matter to matrix products.

    Args:
        flags: flags of a processor as Linux or macOS names them; None: those of this machine.
    """
    if flags is None:
        flags = processor_flags()
    if flags is None and platform.system() == "Darwin":
        optional = {name for name in _INSTRUCTIONS if sysctl(f"hw.optional.arm.{name}") == "1"}
        flags = frozenset(optional | ({"asimd"} if platform.machine() == "arm64" else set()))
    return list(dict.fromkeys(label for name, label in _INSTRUCTIONS.items() if name in (flags or ())))


def memory_bytes(limit_file: Path = _MEMORY_LIMIT) -> int | None:
    """Return the memory this process may use in bytes: the smaller of installed memory and cgroup limit.

    Returns:
        None if the system does not report it.
    """
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
    """Return the distribution or release, and the kernel."""
    kernel = f"{platform.system()} {platform.release()}"
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {kernel}"
    except (OSError, KeyError):
        release = platform.mac_ver()[0]
        return f"macOS {release}, {kernel}" if release else platform.platform()


def _windows_memory() -> int | None:
    """Return the installed memory in bytes, from ``GetPhysicallyInstalledSystemMemory``; None if unknown."""
    import ctypes

    kilobytes = ctypes.c_ulonglong()
    succeeded = ctypes.CDLL("kernel32.dll").GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes))
    return kilobytes.value * 1024 if succeeded else None
