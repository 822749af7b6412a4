"""The artifact: a folder of ONNX graphs and a tokenizer that one ``manifest.json`` describes completely.

The manifest is the contract between export and quantize, which write it, and the runtime, which reads it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from runtime.errors import ArtifactInvalidError, ArtifactNotFoundError, AsrError

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
_HASH_BLOCK = 4 * 2**20


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One graph input or output: numpy dtype name, and fixed sizes or the names of dynamic ones."""

    name: str
    dtype: str
    shape: list[int | str]


class GraphSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One graph: its file, its external data (if any), its interface."""

    file: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    data: str | None = None


class FileSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file of the artifact must be."""

    sha256: str
    size: int


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the weights came from. ``revision`` is a commit of ``repo``, or null for a folder.

    ``author`` is whom the licence asks to name, ``parameters`` how many numbers the weights are.
    """

    repo: str
    revision: str | None
    licence: str
    layout: str
    weights_sha256: str
    author: str | None = None
    parameters: int | None = None


class Language(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A language by the English name that the model knows and by its ISO 639 code."""

    name: str
    code: str


class Parity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Largest absolute difference of a graph from the reference implementation, over ``cases``."""

    max_abs_difference: float
    tolerance: float
    cases: list[str]


class FallbackNode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A node whose error in 8-bit activations stayed above the recipe's bound, and so has 8-bit weights alone."""

    node: str
    error: float


class GraphQuantization(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was done to one graph: weight-carrying nodes by method, smoothed inputs, nodes that fell back.

    ``caches`` counts the attention nodes whose keys and values are int8.
    """

    nodes: dict[str, int]
    smoothed: int
    fallbacks: list[FallbackNode]
    caches: int = 0


class ErrorRate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Error rate of a language, 0 to 1, of the parent and of this artifact, over ``utterances``."""

    language: str
    unit: str
    utterances: int
    parent: float
    quantized: float


class Gate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was measured against the parent before this artifact was kept.

    ``relative_error`` is that of each graph's outputs on the same inputs (Euclidean norm), ``same_choices`` the share
    of decoding steps, on the parent's own text, with the parent's choice. With evaluation audio, ``identical`` is the
    share of utterances whose tokens equal the parent's. ``exceeded`` names the bounds that were not kept: only a
    forced artifact has any.
    """

    evaluation: str
    relative_error: dict[str, float]
    same_choices: float | None
    utterances: int
    identical: float | None
    error_rates: list[ErrorRate]
    parent_bytes: int
    bytes: int
    exceeded: list[str]
    forced: bool


class Quantization(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an artifact was made from its parent: recipe with all its settings, results, and the gate's findings.

    ``parent`` is the sha256 of the parent's manifest, and ``before`` how that one was made, if it was quantized too.
    """

    recipe: str
    settings: dict[str, Any]
    parent: str
    calibration: str | None
    graphs: dict[str, GraphQuantization]
    gate: Gate
    before: Quantization | None = None

    @property
    def integer_products(self) -> bool:
        """Whether u8×s8 products run."""
        return any("w8a8" in graph.nodes for graph in self.graphs.values()) or bool(
            self.before and self.before.integer_products
        )

    @property
    def needs_vnni(self) -> bool:
        """Whether such products have 8-bit weights: those can saturate on x86 without VNNI, 7-bit ones cannot."""
        rules = [rule for rule in self.settings.get("rules", []) if rule.get("method") == "w8a8"]
        own = any("w8a8" in graph.nodes for graph in self.graphs.values())
        return (own and not all(rule.get("reduce_range") for rule in rules)) or bool(
            self.before and self.before.needs_vnni
        )


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything about an artifact. ``front_end`` and ``parameters`` are typed by the family that reads them."""

    schema_version: int
    family: str
    name: str
    source: Source
    graphs: dict[str, GraphSpec]
    files: dict[str, FileSpec]
    tokenizer: str
    languages: list[Language]
    front_end: dict[str, Any]
    parameters: dict[str, Any]
    parity: dict[str, Parity]
    tools: dict[str, str]
    quantization: Quantization | None = None


class _Versioned(msgspec.Struct):
    schema_version: int


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


def sha256_file(path: Path, progress: Callable[[int], object] | None = None) -> str:
    """Hex digest of a file; ``progress`` is told the bytes of each block."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_HASH_BLOCK):
            digest.update(block)
            if progress:
                progress(len(block))
    return digest.hexdigest()


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
    manifest = _read_manifest(manifest_path)
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


def _read_manifest(path: Path) -> Manifest:
    try:
        data = path.read_bytes()
        version = msgspec.json.decode(data, type=_Versioned).schema_version
        if version > SCHEMA_VERSION:
            raise ArtifactInvalidError(
                f"{path}: schema version {version} is newer than {SCHEMA_VERSION}, the newest this runtime reads; "
                "update asr-deploy"
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise ArtifactInvalidError(f"{path}: {error}; export the model again") from None
    graphs = manifest.graphs.values()
    used = [manifest.tokenizer, *(graph.file for graph in graphs), *(graph.data for graph in graphs if graph.data)]
    for name in (*manifest.files, *used):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ArtifactInvalidError(f"{path}: file name {name!r} points outside the model folder")
        if name not in manifest.files:
            raise ArtifactInvalidError(f"{path}: file {name!r} is used but has no entry under `files`")
    return manifest


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


def user_cache() -> Path | None:
    """The folder of asr-deploy in the user's cache; None for a user without a home, as in some containers."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "asr-deploy"
    except RuntimeError:
        return None


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


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` under a temporary name in the same folder, then rename: readers see the old file or the new."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(temporary).chmod(0o644)  # a temporary file is its owner's alone
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as indented JSON."""
    return json.dumps(msgspec.to_builtins(manifest), indent=2, ensure_ascii=False).encode() + b"\n"
