"""From a checkpoint to an artifact folder that appears at once or not at all."""

from __future__ import annotations

import gc
import importlib.metadata
import shutil
from pathlib import Path

import onnxruntime

from export.card import CARD, model_card
from export.checkpoints import Checkpoint, CheckpointFolder
from export.families import load_family
from quantize.errors import OutputError
from quantize.output_folder import appearing, hash_files, refuse_existing, scratch
from quantize.package import Plan, find_audio, quantize_artifact
from quantize.progress import Report
from runtime.host.files import sha256_file
from runtime.model.artifact import Artifact, open_artifact
from runtime.model.manifest import MANIFEST, SCHEMA_VERSION, Manifest, Source, encode_manifest
from runtime.version import __version__

TOOLS = ("torch", "transformers", "onnx", "onnxscript", "onnx-ir", "onnxruntime-genai")


def export_artifact(checkpoint: Checkpoint, folder: CheckpointFolder, out: Path, report: Report) -> Artifact:
    """Export ``folder`` as ``out``: graphs, tokenizer, parity checks, manifest.

    Everything is written to a hidden folder beside ``out`` and renamed at the end.

    Raises:
        OutputError: ``out`` exists, or cannot be written (the disk is full, say).
        CheckpointInvalidError, ParityError: see :mod:`export.errors`.
    """
    refuse_existing(out)
    family_class = load_family(checkpoint.family)
    report.expect(family_class.steps + 3)
    with report.step("reading the checkpoint"):
        family = family_class(folder)
    with appearing(out) as work:
        graphs = family.write(work, report)
        parity = family.parity(work, graphs, report)
        source = Source(
            repo=folder.repo,
            revision=folder.revision,
            licence=checkpoint.licence,
            layout=family.layout,
            weights_sha256=_weights_hash(folder, report),
            author=checkpoint.author or None if folder.repo == checkpoint.repo else None,
            parameters=folder.parameters(),
        )
        (work / CARD).write_text(model_card(checkpoint, source, family.languages), encoding="utf-8")
        for licence in folder.path.glob("LICENSE*"):
            shutil.copyfile(licence, work / licence.name)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            family=checkpoint.family,
            name=checkpoint.name,
            source=source,
            graphs=graphs,
            files=hash_files(work, report),
            tokenizer="tokenizer.json",
            languages=family.languages,
            front_end=family.front_end,
            parameters=family.parameters,
            parity=parity,
            tools={"asr-deploy": __version__, "onnxruntime": onnxruntime.__version__}
            | {name: importlib.metadata.version(name) for name in TOOLS},
        )
        (work / MANIFEST).write_bytes(encode_manifest(manifest))
        open_artifact(work)  # what a reader will check must hold before anybody sees the folder
    return Artifact(out, manifest)


def _weights_hash(folder: CheckpointFolder, report: Report) -> str:
    """One digest over the checkpoint's weight files: of the file itself when there is one."""
    import hashlib

    files = folder.weight_files()
    with report.bytes("hashing the weights", sum(file.stat().st_size for file in files)) as advance:
        digests = [sha256_file(file, advance) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def export_quantized(
    checkpoint: Checkpoint, folder: CheckpointFolder, plan: Plan, out: Path, report: Report
) -> Artifact:
    """Export and quantize in one go: the float32 artifact is made in a hidden folder beside ``out`` and not kept.

    Raises:
        Whatever :func:`export_artifact` and :func:`quantize.package.quantize_artifact` raise.
    """
    refuse_existing(out)
    find_audio(plan, checkpoint.name)  # what is wrong with it must not wait for the export
    with scratch(out) as work:
        inner = work / checkpoint.name
        try:
            parent = export_artifact(checkpoint, folder, inner, report)
        except OutputError as error:  # nobody asked for the hidden folder
            raise OutputError(str(error).replace(str(inner), str(out))) from None
        gc.collect()
        return quantize_artifact(parent, plan, out, report)
