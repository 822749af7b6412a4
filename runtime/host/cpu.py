"""What this machine's processor can do, as far as a model needs to know."""

from __future__ import annotations

import platform
import re
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def processor_flags(cpuinfo: Path = _CPUINFO) -> frozenset[str] | None:
    """Names of the first processor's features as Linux lists them; None where the system has no such file."""
    try:
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        return None
    return frozenset(found[1].split()) if found else None


def lacks_vnni(machine: str | None = None, cpuinfo: Path = _CPUINFO) -> bool | None:
    """Whether this is an x86 processor without VNNI, on which u8×s8 products with 8-bit weights can saturate.

    There, pairs of products are added in 16 bits: 255·127 + 255·127 does not fit. None when the system does not say
    (only Linux lists the processor's features in a file); False on every other architecture.

    Args:
        machine: architecture, this machine's by default.
        cpuinfo: the file that lists the features.
    """
    if (machine or platform.machine()).lower() not in ("x86_64", "amd64", "i686", "i386"):
        return False
    flags = processor_flags(cpuinfo)
    return None if flags is None else not {"avx512_vnni", "avx_vnni"} & flags
