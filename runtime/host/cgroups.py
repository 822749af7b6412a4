"""Control groups: the folders in which Linux says what limits this process, version 2 and version 1."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROC = Path("/proc/self")


def group_folders(controller: str, proc: Path = PROC) -> Iterator[tuple[int, Path]]:
    """Version and folder of this process's control group and of all above it, for a controller such as ``cpu``.

    None where nothing limits this process, on other systems, or where the groups are not mounted.

    Args:
        controller: of version 1; version 2 has one tree for all.
        proc: what the kernel says of this process (``cgroup`` and ``mountinfo`` are read).
    """
    groups = {}
    for line in read_lines(proc / "cgroup"):  # hierarchy:controllers:path
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):  # version 2 names none: ""
            groups[name] = path
    for line in read_lines(proc / "mountinfo"):  # id parent device root mount-point options … - type source options
        mount, _, kind = line.partition(" - ")
        root, point = (_unescape(field) for field in mount.split()[3:5])
        kind, *_, settings = kind.split()
        if kind == "cgroup2" and "" in groups:
            version, path = 2, groups[""]
        elif kind == "cgroup" and controller in settings.split(",") and controller in groups:
            version, path = 1, groups[controller]
        else:
            continue
        for folder in _upwards(Path(point), root, path):
            yield version, folder


def _upwards(point: Path, root: str, path: str) -> Iterator[Path]:
    """Folders of the cgroup ``path`` and those above it, up to the mount ``point``, which shows ``root`` and below.

    A container may see its host's path with only its own part mounted: what is not below the mount is left out, and the
    mount point itself is always the last.
    """
    try:
        below = PurePosixPath(path).relative_to(root)
    except ValueError:
        below = PurePosixPath()
    parts = () if ".." in below.parts else below.parts
    for count in range(len(parts), -1, -1):
        yield point.joinpath(*parts[:count])


def read_lines(path: Path) -> list[str]:
    """A file's lines; none where it cannot be read, as on other systems."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []


def _unescape(field: str) -> str:
    """The kernel writes blanks and backslashes in paths as octal numbers."""
    for octal, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(octal, character)
    return field
