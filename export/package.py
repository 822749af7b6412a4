"""Export a checkpoint to an artifact folder, written completely or not at all."""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
import shutil
from pathlib import Path

import onnxruntime

from export.card import CARD, LICENCE, licence_text, model_card
from export.checkpoints import Checkpoint, CheckpointFolder
from export.families import load_family
from export.families.base import TOKENIZER
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
    """Export a checkpoint to the artifact folder ``out``: graphs, tokenizer, parity checks, model card, manifest.

    Everything is written to a hidden folder beside ``out``, which is renamed at the end.

    Args:
        checkpoint: name, family and licence for the manifest.
        folder: the checkpoint's files.
        out: the new folder.
        report: shows progress.

    Raises:
        quantize.errors.OutputError: ``out`` exists, or cannot be written (for example because the disk is full).
        CheckpointNotFoundError: a file of the checkpoint is missing.
        CheckpointInvalidError: a file of the checkpoint cannot be read, or the geometry is not supported.
        ParityError: a graph differs from the reference by more than its tolerance.
    """
    refuse_existing(out)
    family_class = load_family(checkpoint.family)
    report.expect(family_class.steps() + 3)
    with report.step("reading the checkpoint"):
        family = family_class(folder)
    with appearing(out) as work:
        graphs = family.write(work, report)
        parity = family.parity(work, graphs, report)
        digest = _weights_hash(folder, report)
        published = folder.repo == checkpoint.repo or digest in checkpoint.conversions
        source = Source(
            repo=checkpoint.repo if published else folder.repo,
            revision=folder.revision,
            licence=checkpoint.licence,
            layout=family.layout,
            weights_sha256=digest,
            author=checkpoint.author or None if published else None,
            parameters=folder.parameters(),
        )
        (work / CARD).write_text(model_card(checkpoint, source, family.languages), encoding="utf-8")
        for licence in folder.path.glob("LICENSE*"):
            shutil.copyfile(licence, work / licence.name)
        if not (work / LICENCE).exists() and (text := licence_text(checkpoint)):
            (work / LICENCE).write_text(text, encoding="utf-8")
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            family=checkpoint.family,
            name=checkpoint.name,
            source=source,
            graphs=graphs,
            files=hash_files(work, report),
            tokenizer=TOKENIZER,
            languages=family.languages,
            front_end=family.front_end,
            parameters=family.parameters,
            parity=parity,
            tools={"asr-deploy": __version__, "onnxruntime": onnxruntime.__version__}
            | {name: importlib.metadata.version(name) for name in TOOLS},
        )
        (work / MANIFEST).write_bytes(encode_manifest(manifest))
        open_artifact(work)  # run a reader's checks before the folder gets its name
    return Artifact(out, manifest)


def _weights_hash(folder: CheckpointFolder, report: Report) -> str:
    """SHA-256 of the checkpoint's weight file, or of the concatenated hex digests of several files."""
    files = folder.weight_files()
    with report.bytes("hashing the weights", sum(file.stat().st_size for file in files)) as advance:
        digests = [sha256_file(file, advance) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def export_quantized(
    checkpoint: Checkpoint, folder: CheckpointFolder, plan: Plan, out: Path, report: Report
) -> Artifact:
    """Export and quantize. The float32 artifact is written to a hidden folder beside ``out`` and removed at the end.

    Args:
        checkpoint: name, family and licence for the manifest.
        folder: the checkpoint's files.
        plan: recipe and options of the quantization.
        out: the new folder.
        report: shows progress.

    Raises:
        AsrError: any error of :func:`export_artifact` or :func:`quantize.package.quantize_artifact`.
    """
    refuse_existing(out)
    find_audio(plan, checkpoint.name)  # report errors before the export
    with scratch(out) as work:
        inner = work / checkpoint.name
        try:
            parent = export_artifact(checkpoint, folder, inner, report)
        except OutputError as error:  # name `out` and not the hidden folder
            raise OutputError(str(error).replace(str(inner), str(out))) from None
        gc.collect()
        return quantize_artifact(parent, plan, out, report)
