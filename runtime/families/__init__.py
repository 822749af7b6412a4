"""Families the runtime knows: name → ``module:Class``. ``export.families`` has the same names."""

from __future__ import annotations

import importlib
from typing import Protocol

from runtime.artifact import MANIFEST, Artifact
from runtime.engine import Capabilities, Engine, EngineOptions
from runtime.errors import ArtifactInvalidError

FAMILIES = {
    "qwen3-asr": "runtime.families.qwen3_asr:Qwen3AsrEngine",
    "parakeet-tdt": "runtime.families.parakeet:ParakeetTdtEngine",
    "parakeet-ctc": "runtime.families.parakeet:ParakeetCtcEngine",
    "gigaam-ctc": "runtime.families.gigaam:GigaAMEngine",
    "whisper": "runtime.families.whisper:WhisperEngine",
}


class Family(Protocol):
    """An engine's class. ``capabilities`` are what models of the family can do, each of them or some."""

    capabilities: Capabilities

    def __call__(self, artifact: Artifact, options: EngineOptions) -> Engine: ...

    def capabilities_of(self, artifact: Artifact) -> Capabilities:
        """What this model can do, known from its manifest.

        Raises:
            ArtifactInvalidError: the manifest is not one of the family's.
        """


def load_family(name: str) -> Family:
    """The class of a family of :data:`FAMILIES`."""
    module, _, attribute = FAMILIES[name].partition(":")
    family: Family = getattr(importlib.import_module(module), attribute)
    return family


def declared(family: str) -> Capabilities:
    """What models of a family can do, each of them or some."""
    return load_family(family).capabilities


def families_that(capability: str) -> list[str]:
    """Families that have declared the capability of this name."""
    return [family for family in FAMILIES if getattr(declared(family), capability)]


def capabilities_of(artifact: Artifact) -> Capabilities:
    """What a model can do, without opening its graphs.

    Raises:
        ArtifactInvalidError: a family this runtime does not know, or parameters that are not those of its family.
    """
    return _family_of(artifact).capabilities_of(artifact)


def make_engine(artifact: Artifact, options: EngineOptions) -> Engine:
    """The engine of an artifact's family.

    Raises:
        ArtifactInvalidError: a family this runtime does not know.
    """
    return _family_of(artifact)(artifact, options)


def _family_of(artifact: Artifact) -> Family:
    family = artifact.manifest.family
    if family not in FAMILIES:
        raise ArtifactInvalidError(
            f"{artifact.path / MANIFEST}: family {family!r} is unknown to this runtime, which has "
            f"{', '.join(FAMILIES)}; update asr-deploy"
        )
    return load_family(family)
