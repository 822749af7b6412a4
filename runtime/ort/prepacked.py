"""Graphs prepared for this machine: optimized, and with their weights already in the layout that its kernels read.

Loading a graph packs its weights anew: seconds, and memory of its own for every process. A prepared graph is mapped
from its file instead, and processes share the pages. It takes about twice the model's size on the disk and fits only
the processor and the ONNX Runtime that made it, so it is made on request (``python -m runtime prepare``), and one that
was made for anything else is never used.
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
from runtime.host.files import sha256_file, user_cache
from runtime.model.artifact import Artifact, check_files
from runtime.model.manifest import FileSpec
from runtime.ort.providers import ProviderSpec
from runtime.ort.session import save_prepacked

log = logging.getLogger(__name__)

# Names the folder of prepared graphs where the user's cache is not it, as in a container image.
FOLDER_VARIABLE = "ASR_DEPLOY_PREPARED"
_FORMAT = 2  # in 1, small packed weights lay where kernels read them wrong
_RECORD = "prepared.json"
_GRAPH = "graph.onnx"
_CPUINFO = Path("/proc/cpuinfo")
# What tells processors apart whose kernels or layouts could differ: x86's names, then Arm's.
_CPU_FIELDS = frozenset(
    (
        *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),
        *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features"),
    )
)
_REMEDY = "run `python -m runtime prepare` again, or with --remove"


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a prepared graph was made from and for. It is used only where all of this is the same."""

    format: int
    graph_sha256: str
    data_sha256: str | None
    onnxruntime: str
    system: str
    cpu: str


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``prepared.json``: the origin, and the files beside it."""

    origin: Origin
    files: dict[str, FileSpec]


class PrepackedGraph(msgspec.Struct, frozen=True):
    """A prepared graph: whose, where, its bytes, and whether it was made now."""

    role: str
    path: Path
    size: int
    new: bool


def prepacked_folder() -> Path | None:
    """Where prepared graphs are looked for: the environment's ``ASR_DEPLOY_PREPARED``, else the user's cache.

    None where there is neither, as for a container's user without a home.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named)
    cache = user_cache()
    return cache / "prepared" if cache else None


def describe_cpu(cpuinfo: Path = _CPUINFO) -> str | None:
    """The processor's model and features in one line, or None where the system does not list them (only Linux does).

    Only what kernels depend on: clock and microcode change while the layout stays.
    """
    try:
        first = cpuinfo.read_text(encoding="utf-8", errors="replace").strip().split("\n\n")[0]
    except OSError:
        return None
    fields = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    known = {key.strip(): value.strip() for key, value in fields if key.strip() in _CPU_FIELDS}
    return "; ".join(f"{key} {known[key]}" for key in sorted(known)) if known else None


def prepacked_graph(
    artifact: Artifact,
    role: str,
    providers: Sequence[ProviderSpec],
    folder: Path | None = None,
    cpuinfo: Path = _CPUINFO,
) -> Path | None:
    """The prepared graph with ``role`` for this machine, or None where there is none.

    Args:
        artifact: an opened artifact.
        role: of the graph.
        providers: of the graph; only the plain CPU provider reads packed weights.
        folder: of prepared graphs; :func:`prepacked_folder` when None.
        cpuinfo: the file that describes the processor.

    Raises:
        ArtifactInvalidError: there is one, but its files are not those that were written.
    """
    folder = folder or prepacked_folder()
    origin = _origin(artifact, role, cpuinfo)
    if tuple(providers) != (ProviderSpec(),) or folder is None or origin is None:
        return None
    home = folder / _name(origin)
    if not os.path.isdir(home):  # noqa: PTH112 (Path.is_dir raises where the folder above is not ours to read)
        return None
    record = _read(home)
    if record is None or record.origin != origin:
        raise ArtifactInvalidError(f"{home / _RECORD}: is not what was written; {_REMEDY}")
    check_files(home, record.files, remedy=_REMEDY)
    return home / _GRAPH


def prepack(
    artifact: Artifact,
    folder: Path | None = None,
    on_progress: Callable[[str], object] | None = None,
    cpuinfo: Path = _CPUINFO,
) -> list[PrepackedGraph]:
    """Prepare every graph of ``artifact`` that is not prepared yet; each appears whole or not at all.

    Args:
        artifact: an opened artifact.
        folder: where to; :func:`prepacked_folder` when None.
        on_progress: told the role of each graph before the work on it begins.
        cpuinfo: the file that describes the processor.

    Raises:
        OptionError: no folder to write to, no room in it, or a system that does not say what processor it has.
        ArtifactInvalidError: ONNX Runtime cannot load a graph.
    """
    folder = folder or prepacked_folder()
    if folder is None:
        raise OptionError(f"there is no cache folder; say where prepared graphs go, in {FOLDER_VARIABLE} or by --out")
    made = []
    for role in artifact.manifest.graphs:
        origin = _origin(artifact, role, cpuinfo)
        if origin is None:
            raise OptionError("this system does not say what processor it has, so nothing can be prepared for it")
        home = folder / _name(origin)
        record, new = (_read(home) if _is_whole(home, origin) else None), False
        if record is None:
            if on_progress:
                on_progress(role)
            record, new = _write(artifact, role, origin, home), True
        made.append(PrepackedGraph(role, home / _GRAPH, sum(spec.size for spec in record.files.values()), new))
    return made


def remove_prepacked(artifact: Artifact, folder: Path | None = None, cpuinfo: Path = _CPUINFO) -> int:
    """Delete what was prepared of ``artifact``, for whatever machine; returns the bytes that this freed.

    What a killed ``prepare`` left halfway on this machine goes too.

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
        ours = record and (record.origin.graph_sha256, record.origin.data_sha256) in graphs
        if ours or home.name.startswith(unfinished):
            freed += sum(file.stat().st_size for file in home.iterdir())
            try:
                shutil.rmtree(home)
            except OSError as error:
                raise OptionError(f"{home}: cannot be deleted ({error.strerror})") from None
    return freed


def _hashes(artifact: Artifact, role: str) -> tuple[str, str | None]:
    artifact.graph_path(role)  # says so where there is none
    graph, files = artifact.manifest.graphs[role], artifact.manifest.files
    return files[graph.file].sha256, files[graph.data].sha256 if graph.data else None


def _origin(artifact: Artifact, role: str, cpuinfo: Path) -> Origin | None:
    graph, data = _hashes(artifact, role)
    cpu = describe_cpu(cpuinfo)
    if cpu is None:
        return None
    return Origin(_FORMAT, graph, data, onnxruntime.__version__, f"{platform.system()} {platform.machine()}", cpu)


def _name(origin: Origin) -> str:
    return hashlib.sha256(msgspec.json.encode(origin)).hexdigest()[:32]


def _read(home: Path) -> _Record | None:
    """The record in a folder, or None where there is none that can be read."""
    try:
        return msgspec.json.decode((home / _RECORD).read_bytes(), type=_Record)
    except (OSError, msgspec.DecodeError):
        return None


def _is_whole(home: Path, origin: Origin) -> bool:
    record = _read(home)
    if record is None or record.origin != origin:
        return False
    try:
        check_files(home, record.files, remedy=_REMEDY)
    except AsrError as error:
        log.info("prepared again: %s", error)
        return False
    return True


def _write(artifact: Artifact, role: str, origin: Origin, home: Path) -> _Record:
    """Make a prepared graph under a temporary name, then rename its folder."""
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        _check_room(artifact, role, home.parent)
        temporary = Path(tempfile.mkdtemp(dir=home.parent, prefix=f".{home.name}."))
        try:
            save_prepacked(artifact.graph_path(role), temporary / _GRAPH)
            files = {file.name: FileSpec(sha256_file(file), file.stat().st_size) for file in temporary.iterdir()}
            record = _Record(origin, files)
            (temporary / _RECORD).write_bytes(msgspec.json.encode(record))
            temporary.chmod(0o755)  # a temporary folder is its owner's alone
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
    check_files(home, record.files, remedy=_REMEDY)  # remembered, so that the first start need not read them
    return record


def _check_room(artifact: Artifact, role: str, folder: Path) -> None:
    """Packed weights are written beside the plain ones, which some nodes read too."""
    graph, files = artifact.manifest.graphs[role], artifact.manifest.files
    needed = 2 * sum(files[name].size for name in (graph.file, graph.data) if name) + 2**26
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OptionError(
            f"{folder}: has {free / 1e9:.1f} GB free, and preparing the {role} takes {needed / 1e9:.1f} GB; "
            "make room or give another folder with --out"
        )
