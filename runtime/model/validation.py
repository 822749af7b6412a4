"""Convert the family-specific fields of a manifest to typed values and compare them with the graphs."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from runtime.errors import ArtifactInvalidError
from runtime.model.artifact import Artifact
from runtime.model.manifest import MANIFEST, GraphSpec

Typed = TypeVar("Typed")


def contradiction(artifact: Artifact, problem: str) -> ArtifactInvalidError:
    """Return the error for a manifest that contradicts its graphs; ``problem`` names the key and the values."""
    return ArtifactInvalidError(f"{artifact.path / MANIFEST}: {problem}; export the model again")


def typed(artifact: Artifact, fields: dict[str, Any], kind: type[Typed]) -> Typed:
    """Convert ``fields`` of the manifest to ``kind``.

    Args:
        artifact: the artifact, for error messages.
        fields: ``front_end`` or ``parameters`` of its manifest.
        kind: a ``msgspec.Struct`` class.

    Raises:
        ArtifactInvalidError: a field is missing, unknown or of another type.
    """
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise contradiction(artifact, str(error)) from None


def tensor_size(graph: GraphSpec, name: str, axis: int = -1) -> int | str | None:
    """Return the size of an input or output along ``axis``, or the name of a dynamic axis.

    Returns None if the graph has no tensor ``name``.
    """
    return next((tensor.shape[axis] for tensor in (*graph.inputs, *graph.outputs) if tensor.name == name), None)
