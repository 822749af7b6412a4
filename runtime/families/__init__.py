"""The table of families: name → ``module:Class`` of the engine. ``export.families`` has the same names."""

from __future__ import annotations

import importlib
from typing import Any, Protocol

from runtime.engines import capabilities as checks
from runtime.engines.base import Engine, EngineOptions
from runtime.engines.capabilities import Capabilities
from runtime.errors import ArtifactInvalidError
from runtime.model.artifact import Artifact
from runtime.model.manifest import MANIFEST, Manifest

FAMILIES = {
    "qwen3-asr": "runtime.families.qwen3_asr.engine:Qwen3AsrEngine",
    "parakeet-tdt": "runtime.families.parakeet:ParakeetTdtEngine",
    "parakeet-ctc": "runtime.families.parakeet:ParakeetCtcEngine",
    "gigaam-ctc": "runtime.families.gigaam:GigaAMEngine",
    "whisper": "runtime.families.whisper.engine:WhisperEngine",
}


class Family(Protocol):
    """An engine's class. ``capabilities`` lists what at least one model of the family can do."""

    capabilities: Capabilities

    def __call__(self, artifact: Artifact, options: EngineOptions) -> Engine: ...

    def capabilities_of(self, artifact: Artifact) -> Capabilities:
        """Return what this model can do, from its manifest.

        Raises:
            ArtifactInvalidError: the manifest does not fit the family.
        """


def load_family(name: str) -> Family:
    """Import the class of a family of :data:`FAMILIES`."""
    module, _, attribute = FAMILIES[name].partition(":")
    family: Family = getattr(importlib.import_module(module), attribute)
    return family


def declared(family: str) -> Capabilities:
    """Return what at least one model of a family can do."""
    return load_family(family).capabilities


def families_that(capability: str) -> list[str]:
    """Return the families that declare a capability, by its field name in :class:`Capabilities`."""
    return [family for family in FAMILIES if getattr(declared(family), capability)]


def check_request(manifest: Manifest, capabilities: Capabilities, **request: Any) -> str | None:
    """Refuse a request that a model cannot fulfil: :func:`runtime.engines.capabilities.check_request` with this table.

    Raises:
        CapabilityError: the model cannot do something that was requested.
        OptionError: a language that the model does not know.
    """
    return checks.check_request(manifest, capabilities, families_that, **request)


def capabilities_of(artifact: Artifact) -> Capabilities:
    """Return what a model can do, without opening its graphs.

    Raises:
        ArtifactInvalidError: an unknown family, or parameters that do not fit the family.
    """
    return _family_of(artifact).capabilities_of(artifact)


def make_engine(artifact: Artifact, options: EngineOptions) -> Engine:
    """Open an artifact with its family's engine.

    Raises:
        ArtifactInvalidError: an unknown family, or a manifest that does not fit its graphs.
        OptionError: an option is out of range.
        ProviderError: a provider is missing, inactive, or refuses a graph.
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
