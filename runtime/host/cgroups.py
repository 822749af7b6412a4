"""Find this process's Linux control groups, versions 1 and 2, which limit its CPU time and memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROC = Path("/proc/self")


def group_folders(controller: str, proc: Path = PROC) -> Iterator[tuple[int, Path]]:
    """Yield version and folder of this process's control group and of each of its ancestors.

    Yields nothing where the process is in no group, the groups are not mounted, or the system is not Linux.

    Args:
        controller: name of a version 1 controller such as ``cpu``; version 2 has one tree for all controllers.
        proc: the kernel's folder about this process; ``cgroup`` and ``mountinfo`` are read from it.
    """
    groups = {}
    for line in read_lines(proc / "cgroup"):  # hierarchy:controllers:path
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):  # version 2 has an empty list: ""
            groups[name] = path
    for line in read_lines(proc / "mountinfo"):  # id parent device root mount-point options … - type source options
        mount, _, filesystem = line.partition(" - ")
        root, point = (_unescape(field) for field in mount.split()[3:5])
        kind, *_, settings = filesystem.split()
        if kind == "cgroup2" and "" in groups:
            version, path = 2, groups[""]
        elif kind == "cgroup" and controller in settings.split(",") and controller in groups:
            version, path = 1, groups[controller]
        else:
            continue
        for folder in _ancestors(Path(point), root, path):
            yield version, folder


def _ancestors(point: Path, root: str, path: str) -> Iterator[Path]:
    """Yield the folder of the cgroup ``path`` and its parents, up to the mount point ``point``, which shows ``root``.

    A container may see the path that its host has, with only its own part mounted. Folders that are not below the mount
    are left out; the mount point itself always comes last.
    """
    try:
        below = PurePosixPath(path).relative_to(root)
    except ValueError:
        below = PurePosixPath()
    parts = () if ".." in below.parts else below.parts
    for count in range(len(parts), -1, -1):
        yield point.joinpath(*parts[:count])


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file, or an empty list if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []


def _unescape(field: str) -> str:
    """Decode white space and backslashes, which the kernel writes as octal numbers in paths."""
    for octal, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(octal, character)
    return field
