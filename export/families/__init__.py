"""Families that the exporter supports: one row each in :data:`FAMILIES`. ``runtime.families`` has the same names."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from export.checkpoints import CheckpointFolder
from export.errors import CheckpointInvalidError
from export.families.base import FamilyExporter


@dataclass(frozen=True, slots=True)
class FamilyRow:
    """Where a family's exporter is, and which checkpoints belong to the family.

    Attributes:
        exporter: ``module:Class`` of a :class:`export.families.base.FamilyExporter`, imported when it is needed.
        model_types: values of ``model_type`` in config.json. They give the family of checkpoints that are exported by
            their repo id.
        recognizes: ``module:function`` that says whether a :class:`export.checkpoints.CheckpointFolder` without
            ``model_type`` belongs to the family; None if all checkpoints of the family have one.
    """

    exporter: str
    model_types: tuple[str, ...]
    recognizes: str | None = None


FAMILIES = {
    "qwen3-asr": FamilyRow("export.families.qwen3_asr.exporter:Qwen3Asr", ("qwen3_asr",)),
    "parakeet-tdt": FamilyRow("export.families.parakeet.exporter:ParakeetTdt", ("parakeet_tdt",)),
    "parakeet-ctc": FamilyRow("export.families.parakeet.exporter:ParakeetCtc", ("parakeet_ctc",)),
    "gigaam-ctc": FamilyRow("export.families.gigaam.exporter:GigaAM", ("gigaam",)),
    "whisper": FamilyRow(
        "export.families.whisper.exporter:Whisper", ("whisper",), "export.families.whisper.layouts:recognizes"
    ),
}


def family_of(folder: CheckpointFolder) -> str:
    """Find the family of a checkpoint by ``model_type`` in its config.json, else by the families' ``recognizes``.

    Raises:
        CheckpointNotFoundError: there is no config.json, and no family recognizes the folder.
        CheckpointInvalidError: config.json cannot be read, or no family of :data:`FAMILIES` has its model type.
    """
    has_config = folder.file is None and (folder.path / "config.json").exists()
    if not has_config or "model_type" not in folder.config():
        for name, row in FAMILIES.items():
            if row.recognizes is not None and _import(row.recognizes)(folder):
                return name
    model_type = folder.config().get("model_type")
    by_model_type = {each: name for name, row in FAMILIES.items() for each in row.model_types}
    if not isinstance(model_type, str) or model_type not in by_model_type:
        raise CheckpointInvalidError(
            f"{folder.path / 'config.json'}: model_type is {model_type!r}, which no family supports; supported are "
            f"{', '.join(by_model_type)}"
        )
    return by_model_type[model_type]


def load_family(name: str) -> type[FamilyExporter]:
    """Import the exporter class of a family of :data:`FAMILIES`."""
    family: type[FamilyExporter] = _import(FAMILIES[name].exporter)
    return family


def _import(target: str) -> Any:
    """Import ``module:attribute``."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
