"""From a checkpoint to an artifact folder that appears at once or not at all."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.checkpoints import Checkpoint, CheckpointFolder
from export.errors import OutputError
from export.families import load_family
from export.report import Report
from runtime.artifact import (
    MANIFEST,
    SCHEMA_VERSION,
    Artifact,
    FileSpec,
    Manifest,
    Source,
    encode_manifest,
    open_artifact,
    sha256_file,
)
from runtime.version import __version__

TOOLS = ("torch", "transformers", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "onnxruntime-genai")


def export_artifact(checkpoint: Checkpoint, folder: CheckpointFolder, out: Path, report: Report) -> Artifact:
    """Export ``folder`` as ``out``: graphs, tokenizer, parity checks, manifest.

    Everything is written to a hidden folder beside ``out`` and renamed at the end.

    Raises:
        OutputError: ``out`` exists, or cannot be written (the disk is full, say).
        CheckpointInvalidError, ParityError: see :mod:`export.errors`.
    """
    if out.exists():
        raise OutputError(f"{out}: exists already; remove it or give another --out DIR")
    family_class = load_family(checkpoint.family)
    report.expect(family_class.steps + 3)
    with report.step("reading the checkpoint"):
        family = family_class(folder)
    with _appearing(out) as work:
        graphs = family.write(work, report)
        parity = family.parity(work, graphs, report)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            family=checkpoint.family,
            name=checkpoint.name,
            source=Source(
                repo=folder.repo,
                revision=folder.revision,
                licence=checkpoint.licence,
                layout=family.layout,
                weights_sha256=_weights_hash(folder, report),
            ),
            graphs=graphs,
            files=_hash_files(work, report),
            tokenizer="tokenizer.json",
            languages=family.languages,
            front_end=family.front_end,
            parameters=family.parameters,
            parity=parity,
            tools={"asr-deploy": __version__} | {name: importlib.metadata.version(name) for name in TOOLS},
        )
        (work / MANIFEST).write_bytes(encode_manifest(manifest))
        open_artifact(work)  # what a reader will check must hold before anybody sees the folder
    return Artifact(out, manifest)


def _hash_files(folder: Path, report: Report) -> dict[str, FileSpec]:
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    with report.bytes("hashing the artifact", sum(path.stat().st_size for path in paths)) as advance:
        return {path.name: FileSpec(sha256_file(path, advance), path.stat().st_size) for path in paths}


def _weights_hash(folder: CheckpointFolder, report: Report) -> str:
    """One digest over the checkpoint's weight files: of the file itself when there is one."""
    import hashlib

    files = folder.weight_files()
    with report.bytes("hashing the weights", sum(file.stat().st_size for file in files)) as advance:
        digests = [sha256_file(file, advance) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A hidden folder that becomes ``out`` when the block ends, and vanishes when it raises."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.part-"))
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror})") from None
    try:
        yield work
        for path in work.iterdir():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        work.chmod(0o755)
        work.rename(out)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        if isinstance(error, OutputError) or error.errno is None:
            raise
        raise OutputError(f"{out}: cannot be written ({os.strerror(error.errno)})") from error
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
