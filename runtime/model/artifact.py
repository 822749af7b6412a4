"""The artifact: a folder of ONNX graphs and a tokenizer that one ``manifest.json`` describes completely.

The manifest is the contract between export and quantize, which write it, and the runtime, which reads it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from runtime.errors import ArtifactInvalidError, ArtifactNotFoundError, AsrError
from runtime.host.files import sha256_file, user_cache, write_atomically
from runtime.model.manifest import MANIFEST, FileSpec, Manifest, read_manifest

log = logging.getLogger(__name__)


class Artifact(msgspec.Struct, frozen=True):
    """An opened artifact: its folder and its manifest, checked against each other."""

    path: Path
    manifest: Manifest

    def graph_path(self, role: str) -> Path:
        """Path of the graph with ``role``; :class:`ArtifactInvalidError` when the manifest has none."""
        try:
            return self.path / self.manifest.graphs[role].file
        except KeyError:
            have = ", ".join(self.manifest.graphs)
            raise ArtifactInvalidError(
                f"{self.path / MANIFEST}: no graph with the role {role!r} (it has {have}); export the model again"
            ) from None

    def role_size(self, role: str) -> int:
        """Bytes of the graph with ``role``, weights included."""
        graph = self.manifest.graphs[role]
        return sum(self.manifest.files[file].size for file in (graph.file, graph.data) if file)

    @property
    def size(self) -> int:
        """Bytes of all files the manifest lists."""
        return sum(spec.size for spec in self.manifest.files.values())


def open_artifact(path: str | Path, *, verify: bool = True) -> Artifact:
    """Read the manifest in ``path`` and check every file it lists.

    Sizes are always compared. With ``verify`` contents are hashed too; a file whose hash was found right before and
    that has kept inode, size, modification and change time since is not read again (see :class:`_Seen`).

    Raises:
        ArtifactNotFoundError: no such folder, no manifest in it, or a listed file is missing.
        ArtifactInvalidError: the manifest is malformed or of a newer schema, or a file differs from what it says.
    """
    folder = Path(path)
    try:
        return _open(folder, verify=verify)
    except OSError as error:
        if isinstance(error, AsrError) or error.errno is None:
            raise
        where = error.filename or folder
        raise ArtifactInvalidError(f"{where}: cannot be read ({os.strerror(error.errno)})") from None


def _open(folder: Path, *, verify: bool) -> Artifact:
    manifest_path = folder / MANIFEST
    if not folder.is_dir():
        kind = "is a file, not a model folder" if folder.exists() else "no such model folder"
        raise ArtifactNotFoundError(f"{folder}: {kind}; give the folder that `python -m export` wrote")
    if not manifest_path.is_file():
        raise ArtifactNotFoundError(
            f"{folder}: holds no {MANIFEST}, so it is not a model that `python -m export` wrote"
        )
    manifest = read_manifest(manifest_path)
    check_files(folder, manifest.files, verify=verify)
    return Artifact(folder, manifest)


def check_files(
    folder: Path, files: Mapping[str, FileSpec], *, verify: bool = True, remedy: str = "export the model again"
) -> None:
    """Compare files with what they must be, as :func:`open_artifact` does; errors end with ``remedy``.

    Raises:
        ArtifactNotFoundError: a file is missing.
        ArtifactInvalidError: a file differs.
    """
    seen = _Seen.load()
    for name, spec in files.items():
        _check_file(folder / name, spec, seen if verify else None, remedy)
    seen.save()


def _check_file(path: Path, spec: FileSpec, seen: _Seen | None, remedy: str) -> None:
    if not path.is_file():
        raise ArtifactNotFoundError(f"{path}: this file of the model is missing; {remedy}")
    size = path.stat().st_size
    if size != spec.size:
        raise ArtifactInvalidError(
            f"{path}: has {size} bytes where the manifest says {spec.size}; the file was altered or is incomplete, "
            f"{remedy}"
        )
    if seen is None or seen.knows(path, spec.sha256):
        return
    found = sha256_file(path)
    if found != spec.sha256:
        raise ArtifactInvalidError(
            f"{path}: sha256 is {found[:12]}… where the manifest says {spec.sha256[:12]}…; the file was altered, "
            f"{remedy}"
        )
    seen.remember(path, spec.sha256)


class _Seen:
    """Files whose hash was found right, by device, inode, size, modification and change time, in the user's cache.

    Hashing 3 GB at every start would cost more than loading it. Writing to a file moves its change time, which no
    program can set back, so an altered file is always hashed again. Small files are hashed every time: it costs
    nothing and keeps the cache out of small deployments.
    """

    SMALL = 64 * 2**20

    def __init__(self, path: Path | None, entries: dict[str, str]) -> None:
        self._path, self._entries, self._changed = path, entries, False

    @classmethod
    def load(cls) -> _Seen:
        cache = user_cache()
        if cache is None:  # nothing is remembered
            return cls(None, {})
        path = cache / "verified.json"
        try:
            return cls(path, msgspec.json.decode(path.read_bytes(), type=dict[str, str]))
        except (OSError, msgspec.DecodeError):
            return cls(path, {})

    @staticmethod
    def _key(path: Path) -> str:
        stat = path.stat()
        return f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"

    def knows(self, path: Path, sha256: str) -> bool:
        return path.stat().st_size > self.SMALL and self._entries.get(self._key(path)) == sha256

    def remember(self, path: Path, sha256: str) -> None:
        if path.stat().st_size > self.SMALL:
            self._entries[self._key(path)] = sha256
            self._changed = True

    def save(self) -> None:
        if not self._changed or self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, msgspec.json.encode(self._entries))
        except OSError as error:  # a read-only home costs the next start a hash, nothing more
            log.debug("cannot write %s: %s", self._path, error)
