"""Read the processor's name, features and identity. This is the only module that reads ``/proc/cpuinfo``."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

# Fields that distinguish processors whose kernels or weight layouts could differ: x86's names, then Arm's.
_IDENTITY_FIELDS = frozenset(
    (
        *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),
        *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features"),
    )
)


def processor_name(cpuinfo: Path = CPUINFO) -> str:
    """Return the processor's name as the system reports it, or the architecture if it reports none."""
    text = _read(cpuinfo)
    for key in ("model name", "Hardware", "Model"):  # x86; older Arm kernels; boards such as the Raspberry Pi
        if match := re.search(rf"^{key}\s*:\s*(\S.*)$", text, re.MULTILINE):
            return match[1].strip()
    return sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()


def processor_flags(cpuinfo: Path = CPUINFO) -> frozenset[str] | None:
    """Return the names of the first processor's features, or None if the system does not list them, unlike Linux."""
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", _read(cpuinfo), re.MULTILINE)
    return frozenset(match[1].split()) if match else None


def processor_identity(cpuinfo: Path = CPUINFO) -> str | None:
    """Return the first processor's model and features in one line, or None if the system does not list them.

    Contains only what kernels depend on. Clock rate and microcode, which change while the layout stays, are left out.
    """
    first = _read(cpuinfo).strip().split("\n\n")[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in pairs if key.strip() in _IDENTITY_FIELDS}
    return "; ".join(f"{key} {fields[key]}" for key in sorted(fields)) if fields else None


def lacks_vnni(machine: str | None = None, cpuinfo: Path = CPUINFO) -> bool | None:
    """Return True on x86 processors without VNNI, where u8×s8 products with 8-bit weights can saturate.

    These processors add pairs of products in 16 bits, and 255·127 + 255·127 does not fit. Returns False on other
    architectures, and None if the system does not list the processor's features.

    Args:
        machine: architecture; that of this machine if None.
        cpuinfo: file with the processor's features.
    """
    if (machine or platform.machine()).lower() not in ("x86_64", "amd64", "i686", "i386"):
        return False
    flags = processor_flags(cpuinfo)
    return None if flags is None else not {"avx512_vnni", "avx_vnni"} & flags


def sysctl(name: str) -> str:
    """Return a value from macOS's ``sysctl``, or an empty string if the name is unknown or the system is another."""
    if platform.system() != "Darwin":
        return ""
    result = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, check=False)
    return result.stdout.strip()


def _read(cpuinfo: Path) -> str:
    """Return the file's text, or an empty string if it cannot be read, as on other systems than Linux."""
    try:
        return cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
