"""Write and find prepacked graphs: optimized for this machine, with weights in the layout that its kernels read.

ONNX Runtime packs the weights each time it loads a graph, which takes seconds, and separate memory in every process. A
prepacked graph is mapped from its file instead, and processes share the pages. It takes about twice the model's size on
disk and works only with the processor and the version of ONNX Runtime that wrote it. Therefore it is written on request
(``python -m runtime prepare``), and one that was written for another machine is never used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import onnxruntime

from runtime.errors import ArtifactInvalidError, AsrError, OptionError
from runtime.host.cpu import CPUINFO, processor_identity
from runtime.host.files import sha256_file, user_cache
from runtime.model.artifact import Artifact, check_files
from runtime.model.manifest import FileSpec
from runtime.ort.providers import ProviderSpec
from runtime.ort.session import save_prepacked

log = logging.getLogger(__name__)

# Environment variable with the folder of prepacked graphs, for example in a container image.
FOLDER_VARIABLE = "ASR_DEPLOY_PREPARED"
_FORMAT = 2  # in 1, small packed weights could be at offsets where kernels misread them
_RECORD = "prepared.json"
_GRAPH = "graph.onnx"
_REMEDY = "run `python -m runtime prepare` again, or with --remove"


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Graph and machine that a prepacked graph was written for. It is used only if all fields are equal.

    Attributes:
        format: version of this module's files.
        graph_sha256: hash of the graph's file.
        data_sha256: hash of its external data; None without external data.
        onnxruntime: version.
        system: operating system and architecture.
        cpu: :func:`runtime.host.cpu.processor_identity`.
    """

    format: int
    graph_sha256: str
    data_sha256: str | None
    onnxruntime: str
    system: str
    cpu: str


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of ``prepared.json``: the origin, and the files in the same folder."""

    origin: Origin
    files: dict[str, FileSpec]


class PrepackedGraph(msgspec.Struct, frozen=True):
    """A prepacked graph.

    Attributes:
        role: of the graph.
        path: its ``.onnx`` file.
        size: bytes of all its files.
        new: whether it was written by this call.
    """

    role: str
    path: Path
    size: int
    new: bool


def prepacked_folder() -> Path | None:
    """Return the folder of prepacked graphs: the value of ``ASR_DEPLOY_PREPARED``, or a folder in the user's cache.

    Returns None if there is neither, as for a container's user without a home.
    """
    variable = os.environ.get(FOLDER_VARIABLE)
    if variable:
        return Path(variable)
    cache = user_cache()
    return cache / "prepared" if cache else None


def prepacked_graph(
    artifact: Artifact,
    role: str,
    providers: Sequence[ProviderSpec],
    folder: Path | None = None,
    cpuinfo: Path = CPUINFO,
) -> Path | None:
    """Return the path of the prepacked graph with ``role`` for this machine, or None if there is none.

    Args:
        artifact: an opened artifact.
        role: role of the graph.
        providers: providers of the graph; only the CPU provider without options reads packed weights.
        folder: folder of prepacked graphs; :func:`prepacked_folder` if None.
        cpuinfo: file that describes the processor.

    Raises:
        ArtifactInvalidError: the artifact has no graph with this role.
        ArtifactInvalidError: the files of the prepacked graph are damaged.
        ArtifactNotFoundError: a file of the prepacked graph is missing.
    """
    folder = folder or prepacked_folder()
    origin = _origin(artifact, role, cpuinfo)
    if tuple(providers) != (ProviderSpec(),) or folder is None or origin is None:
        return None
    home = folder / _name(origin)
    if not os.path.isdir(home):  # noqa: PTH112 (Path.is_dir raises if the parent cannot be read)
        return None
    record = _read(home)
    if record is None or record.origin != origin:
        raise ArtifactInvalidError(f"{home / _RECORD}: was altered; {_REMEDY}")
    check_files(home, record.files, remedy=_REMEDY)
    return home / _GRAPH


def prepack(
    artifact: Artifact,
    folder: Path | None = None,
    on_progress: Callable[[str], object] | None = None,
    cpuinfo: Path = CPUINFO,
) -> list[PrepackedGraph]:
    """Write prepacked graphs for every graph of ``artifact`` that has none yet. Each appears complete or not at all.

    Args:
        artifact: an opened artifact.
        folder: folder to write to; :func:`prepacked_folder` if None.
        on_progress: called with the role of each graph before it is prepacked.
        cpuinfo: file that describes the processor.

    Returns:
        All prepacked graphs of the artifact, those that existed before included.

    Raises:
        OptionError: there is no folder to write to.
        OptionError: the folder cannot be written or has too little free space.
        OptionError: the system does not describe its processor.
        ArtifactInvalidError: ONNX Runtime cannot load a graph.
    """
    folder = folder or prepacked_folder()
    if folder is None:
        raise OptionError(f"there is no cache folder for prepacked graphs; give one in {FOLDER_VARIABLE} or with --out")
    graphs = []
    for role in artifact.manifest.graphs:
        origin = _origin(artifact, role, cpuinfo)
        if origin is None:
            raise OptionError("this system does not describe its processor, so graphs cannot be prepacked for it")
        home = folder / _name(origin)
        record, new = (_read(home) if _is_intact(home, origin) else None), False
        if record is None:
            if on_progress:
                on_progress(role)
            record, new = _write(artifact, role, origin, home), True
        graphs.append(PrepackedGraph(role, home / _GRAPH, sum(spec.size for spec in record.files.values()), new))
    return graphs


def remove_prepacked(artifact: Artifact, folder: Path | None = None, cpuinfo: Path = CPUINFO) -> int:
    """Delete the prepacked graphs of ``artifact`` for all machines, and incomplete ones of this machine.

    Args:
        artifact: an opened artifact.
        folder: folder of prepacked graphs; :func:`prepacked_folder` if None.
        cpuinfo: file that describes the processor.

    Returns:
        Number of bytes that were freed.

    Raises:
        OptionError: a folder cannot be deleted.
    """
    folder = folder or prepacked_folder()
    roles = artifact.manifest.graphs
    graphs = {_hashes(artifact, role) for role in roles}
    unfinished = tuple(f".{_name(origin)}." for role in roles if (origin := _origin(artifact, role, cpuinfo)))
    freed = 0
    for home in sorted(folder.iterdir()) if folder and folder.is_dir() else ():
        record = _read(home)
        matches = record and (record.origin.graph_sha256, record.origin.data_sha256) in graphs
        if matches or home.name.startswith(unfinished):
            freed += sum(file.stat().st_size for file in home.iterdir())
            try:
                shutil.rmtree(home)
            except OSError as error:
                raise OptionError(f"{home}: cannot be deleted ({error.strerror})") from None
    return freed


def _hashes(artifact: Artifact, role: str) -> tuple[str, str | None]:
    """Return the hashes of a graph and of its external data, which is None if it has none."""
    artifact.graph_path(role)  # raises ArtifactInvalidError if there is no such graph
    graph, files = artifact.manifest.graphs[role], artifact.manifest.files
    return files[graph.file].sha256, files[graph.data].sha256 if graph.data else None


def _origin(artifact: Artifact, role: str, cpuinfo: Path) -> Origin | None:
    """Return the origin of a graph prepacked on this machine, or None if the system does not describe its processor."""
    graph, data = _hashes(artifact, role)
    cpu = processor_identity(cpuinfo)
    if cpu is None:
        return None
    return Origin(_FORMAT, graph, data, onnxruntime.__version__, f"{platform.system()} {platform.machine()}", cpu)


def _name(origin: Origin) -> str:
    """Return the name of the folder for a prepacked graph."""
    return hashlib.sha256(msgspec.json.encode(origin)).hexdigest()[:32]


def _read(home: Path) -> _Record | None:
    """Return the record in a folder, or None if it cannot be read."""
    try:
        return msgspec.json.decode((home / _RECORD).read_bytes(), type=_Record)
    except (OSError, msgspec.DecodeError):
        return None


def _is_intact(home: Path, origin: Origin) -> bool:
    """Whether the folder has a prepacked graph with this origin and undamaged files."""
    record = _read(home)
    if record is None or record.origin != origin:
        return False
    try:
        check_files(home, record.files, remedy=_REMEDY)
    except AsrError as error:
        log.info("prepacking again: %s", error)
        return False
    return True


def _write(artifact: Artifact, role: str, origin: Origin, home: Path) -> _Record:
    """Write a prepacked graph to a temporary folder, then rename the folder."""
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        _check_room(artifact, role, home.parent)
        temporary = Path(tempfile.mkdtemp(dir=home.parent, prefix=f".{home.name}."))
        try:
            save_prepacked(artifact.graph_path(role), temporary / _GRAPH)
            files = {file.name: FileSpec(sha256_file(file), file.stat().st_size) for file in temporary.iterdir()}
            record = _Record(origin, files)
            (temporary / _RECORD).write_bytes(msgspec.json.encode(record))
            temporary.chmod(0o755)  # mkdtemp gives access to the owner only
            if home.exists():
                shutil.rmtree(home)
            os.replace(temporary, home)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        if isinstance(error, AsrError):
            raise
        raise OptionError(
            f"{error.filename or home.parent}: cannot be written ({error.strerror}); give another folder with --out"
        ) from None
    check_files(home, record.files, remedy=_REMEDY)  # records the hashes, so that the next start skips them
    return record


def _check_room(artifact: Artifact, role: str, folder: Path) -> None:
    """Check the free space: packed weights are written in addition to plain ones, which some nodes read too."""
    graph, files = artifact.manifest.graphs[role], artifact.manifest.files
    needed = 2 * sum(files[name].size for name in (graph.file, graph.data) if name) + 2**26
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OptionError(
            f"{folder}: has {free / 1e9:.1f} GB free, and preparing the {role} takes {needed / 1e9:.1f} GB; "
            "free some space or give another folder with --out"
        )
