"""What a manifest says of a model, typed and compared with the model's graphs."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from runtime.errors import ArtifactInvalidError
from runtime.model.artifact import Artifact
from runtime.model.manifest import MANIFEST, GraphSpec

Typed = TypeVar("Typed")


def contradiction(artifact: Artifact, what: str) -> ArtifactInvalidError:
    """The error of a manifest that cannot be right."""
    return ArtifactInvalidError(f"{artifact.path / MANIFEST}: {what}; export the model again")


def typed(artifact: Artifact, fields: dict[str, Any], kind: type[Typed]) -> Typed:
    """The manifest's ``fields`` as ``kind``.

    Raises:
        ArtifactInvalidError: they are not.
    """
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise contradiction(artifact, str(error)) from None


def tensor_size(graph: GraphSpec, name: str, axis: int = -1) -> int | str | None:
    """A size of an input or output: a number, or a dynamic axis's name; None when there is no such tensor."""
    return next((tensor.shape[axis] for tensor in (*graph.inputs, *graph.outputs) if tensor.name == name), None)
