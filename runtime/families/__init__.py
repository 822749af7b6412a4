"""Families the runtime knows: name → ``module:Class``. ``export.families`` has the same names."""

from __future__ import annotations

import importlib

from runtime.artifact import MANIFEST, Artifact
from runtime.engine import Engine, EngineOptions
from runtime.errors import ArtifactInvalidError

FAMILIES = {
    "qwen3-asr": "runtime.families.qwen3_asr:Qwen3AsrEngine",
    "parakeet-tdt": "runtime.families.parakeet:ParakeetTdtEngine",
    "parakeet-ctc": "runtime.families.parakeet:ParakeetCtcEngine",
    "gigaam-ctc": "runtime.families.gigaam:GigaAMEngine",
    "whisper": "runtime.families.whisper:WhisperEngine",
}


def make_engine(artifact: Artifact, options: EngineOptions) -> Engine:
    """The engine of an artifact's family.

    Raises:
        ArtifactInvalidError: a family this runtime does not know.
    """
    family = artifact.manifest.family
    if family not in FAMILIES:
        raise ArtifactInvalidError(
            f"{artifact.path / MANIFEST}: family {family!r} is unknown to this runtime, which has "
            f"{', '.join(FAMILIES)}; update asr-deploy"
        )
    module, _, attribute = FAMILIES[family].partition(":")
    engine: Engine = getattr(importlib.import_module(module), attribute)(artifact, options)
    return engine
