"""Families the exporter knows: name → ``module:Class``. ``runtime.families`` has the same names."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, ClassVar, Protocol

from export.checkpoints import CheckpointFolder
from export.errors import CheckpointInvalidError
from quantize.progress import Report
from runtime.model.manifest import GraphSpec, Language, Parity

FAMILIES = {
    "qwen3-asr": "export.families.qwen3_asr.exporter:Qwen3Asr",
    "parakeet-tdt": "export.families.parakeet.exporter:ParakeetTdt",
    "parakeet-ctc": "export.families.parakeet.exporter:ParakeetCtc",
    "gigaam-ctc": "export.families.gigaam.exporter:GigaAM",
    "whisper": "export.families.whisper.exporter:Whisper",
}


# By the ``model_type`` of a checkpoint's config.json, for those that no name of the command line stands for.
MODEL_TYPES = {
    "qwen3_asr": "qwen3-asr",
    "parakeet_tdt": "parakeet-tdt",
    "parakeet_ctc": "parakeet-ctc",
    "gigaam": "gigaam-ctc",
    "whisper": "whisper",
}


def family_of(folder: CheckpointFolder) -> str:
    """The family of any checkpoint.

    Raises:
        CheckpointInvalidError: none of :data:`FAMILIES`.
    """
    kind = folder.config().get("model_type")
    if kind not in MODEL_TYPES:
        raise CheckpointInvalidError(
            f"{folder.path / 'config.json'}: model_type is {kind!r}, and no family is known for it, only for "
            f"{', '.join(MODEL_TYPES)}"
        )
    return MODEL_TYPES[kind]


class Family(Protocol):
    """What a family does to turn a checkpoint into an artifact's parts. Made from a checkpoint's folder."""

    layout: str
    steps: ClassVar[int]  # that `write` and `parity` report

    def __init__(self, folder: CheckpointFolder) -> None: ...

    def write(self, out: Path, report: Report) -> dict[str, GraphSpec]:
        """Write graphs and every other file into ``out``; returns the graphs by role."""

    def parity(self, out: Path, graphs: dict[str, GraphSpec], report: Report) -> dict[str, Parity]:
        """Compare each written graph with the reference implementation; the loaded weights may be let go."""

    @property
    def languages(self) -> list[Language]: ...

    @property
    def front_end(self) -> dict[str, Any]: ...

    @property
    def parameters(self) -> dict[str, Any]: ...


def load_family(name: str) -> type[Family]:
    """The class of a family of :data:`FAMILIES`."""
    module, _, attribute = FAMILIES[name].partition(":")
    family: type[Family] = getattr(importlib.import_module(module), attribute)
    return family
