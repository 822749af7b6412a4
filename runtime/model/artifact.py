"""Open an artifact, a folder with ONNX graphs, a tokenizer and ``manifest.json``, and verify its files."""

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
    """An opened artifact: its folder, and its manifest, whose files were checked."""

    path: Path
    manifest: Manifest

    def graph_path(self, role: str) -> Path:
        """Return the path of the graph with ``role``.

        Raises:
            ArtifactInvalidError: the manifest has no such graph.
        """
        try:
            return self.path / self.manifest.graphs[role].file
        except KeyError:
            roles = ", ".join(self.manifest.graphs)
            raise ArtifactInvalidError(
                f"{self.path / MANIFEST}: no graph with the role {role!r} (it has {roles}); export the model again"
            ) from None

    def role_size(self, role: str) -> int:
        """Return the size in bytes of the graph with ``role``, weights included."""
        graph = self.manifest.graphs[role]
        return sum(self.manifest.files[file].size for file in (graph.file, graph.data) if file)

    @property
    def size(self) -> int:
        """Size in bytes of all files that the manifest lists."""
        return sum(spec.size for spec in self.manifest.files.values())


def open_artifact(path: str | Path, *, verify: bool = True) -> Artifact:
    """Read the manifest in ``path`` and check every file that it lists.

    Args:
        path: the artifact's folder.
        verify: compare hashes too, not only sizes. A large file that was verified before is not read again while its
            inode, size, modification time and change time stay the same.

    Raises:
        ArtifactNotFoundError: the folder or its manifest does not exist.
        ArtifactNotFoundError: a listed file is missing.
        ArtifactInvalidError: the manifest is malformed, or its schema is newer than this runtime supports.
        ArtifactInvalidError: a file differs from the manifest.
        ArtifactInvalidError: the system cannot read a file.
    """
    folder = Path(path)
    try:
        return _open(folder, verify=verify)
    except OSError as error:
        if isinstance(error, AsrError) or error.errno is None:
            raise
        culprit = error.filename or folder
        raise ArtifactInvalidError(f"{culprit}: cannot be read ({os.strerror(error.errno)})") from None


def _open(folder: Path, *, verify: bool) -> Artifact:
    manifest_path = folder / MANIFEST
    if not folder.is_dir():
        problem = "is a file, not a model folder" if folder.exists() else "no such model folder"
        raise ArtifactNotFoundError(f"{folder}: {problem}; give the folder that `python -m export` wrote")
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
    """Compare files with their expected sizes and hashes.

    Args:
        folder: folder of the files.
        files: expected size and hash by file name.
        verify: compare hashes too, not only sizes.
        remedy: what error messages tell the user to do.

    Raises:
        ArtifactNotFoundError: a file is missing.
        ArtifactInvalidError: a file has another size or hash.
    """
    verified = VerifiedFiles.load()
    for name, spec in files.items():
        _check_file(folder / name, spec, verified if verify else None, remedy)
    verified.save()


def _check_file(path: Path, spec: FileSpec, verified: VerifiedFiles | None, remedy: str) -> None:
    """Check one file; its hash only if ``verified`` is given."""
    if not path.is_file():
        raise ArtifactNotFoundError(f"{path}: file of the model is missing; {remedy}")
    size = path.stat().st_size
    if size != spec.size:
        raise ArtifactInvalidError(
            f"{path}: has {size} bytes, expected {spec.size}; the file was altered or is incomplete, {remedy}"
        )
    if verified is None or verified.contains(path, spec.sha256):
        return
    digest = sha256_file(path)
    if digest != spec.sha256:
        raise ArtifactInvalidError(
            f"{path}: sha256 is {digest[:12]}…, expected {spec.sha256[:12]}…; the file was altered, {remedy}"
        )
    verified.add(path, spec.sha256)


class VerifiedFiles:
    """Record of files whose hash was correct, in the user's cache, by device, inode, size and times.

    Hashing 3 GB at every start would take longer than loading it. Writing to a file updates its change time, which no
    program can set back, so that an altered file is always hashed again. Small files are hashed every time: that takes
    next to no time and keeps the cache out of small deployments.
    """

    MIN_BYTES = 64 * 2**20
    """Files up to this size are not recorded."""

    def __init__(self, path: Path | None, entries: dict[str, str]) -> None:
        self._path, self._entries, self._changed = path, entries, False

    @classmethod
    def load(cls) -> VerifiedFiles:
        """Read the record; an empty one if it cannot be read. A user without a home has no record."""
        cache = user_cache()
        if cache is None:
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

    def contains(self, path: Path, sha256: str) -> bool:
        """Whether the file had this hash and was not changed since."""
        return path.stat().st_size > self.MIN_BYTES and self._entries.get(self._key(path)) == sha256

    def add(self, path: Path, sha256: str) -> None:
        """Record that the file has this hash."""
        if path.stat().st_size > self.MIN_BYTES:
            self._entries[self._key(path)] = sha256
            self._changed = True

    def save(self) -> None:
        """Write the record if it changed. If it cannot be written, the next start hashes the files again."""
        if not self._changed or self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, msgspec.json.encode(self._entries))
        except OSError as error:
            log.debug("cannot write %s: %s", self._path, error)
