"""The schema of ``manifest.json``: the contract between export and quantize, which write it, and the runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from runtime.errors import ArtifactInvalidError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One graph input or output: numpy dtype name, and fixed sizes or the names of dynamic ones."""

    name: str
    dtype: str
    shape: list[int | str]


class GraphSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One graph: its file, its external data (if any), its interface."""

    file: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    data: str | None = None


class FileSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file of the artifact must be."""

    sha256: str
    size: int


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the weights came from. ``revision`` is a commit of ``repo``, or null for a folder.

    ``author`` is whom the licence asks to name, ``parameters`` how many numbers the weights are.
    """

    repo: str
    revision: str | None
    licence: str
    layout: str
    weights_sha256: str
    author: str | None = None
    parameters: int | None = None


class Language(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A language by the English name that the model knows and by its ISO 639 code."""

    name: str
    code: str


class Parity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Largest absolute difference of a graph from the reference implementation, over ``cases``."""

    max_abs_difference: float
    tolerance: float
    cases: list[str]


class FallbackNode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A node whose error in 8-bit activations stayed above the recipe's bound, and so has 8-bit weights alone."""

    node: str
    error: float


class GraphQuantization(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was done to one graph: weight-carrying nodes by method, smoothed inputs, nodes that fell back.

    ``caches`` counts the attention nodes whose keys and values are int8.
    """

    nodes: dict[str, int]
    smoothed: int
    fallbacks: list[FallbackNode]
    caches: int = 0


class ErrorRate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Error rate of a language, 0 to 1, of the parent and of this artifact, over ``utterances``."""

    language: str
    unit: str
    utterances: int
    parent: float
    quantized: float


class Gate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was measured against the parent before this artifact was kept.

    ``relative_error`` is that of each graph's outputs on the same inputs (Euclidean norm), ``same_choices`` the share
    of decoding steps, on the parent's own text, with the parent's choice. With evaluation audio, ``identical`` is the
    share of utterances whose tokens equal the parent's. ``exceeded`` names the bounds that were not kept: only a
    forced artifact has any.
    """

    evaluation: str
    relative_error: dict[str, float]
    same_choices: float | None
    utterances: int
    identical: float | None
    error_rates: list[ErrorRate]
    parent_bytes: int
    bytes: int
    exceeded: list[str]
    forced: bool


class Quantization(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an artifact was made from its parent: recipe with all its settings, results, and the gate's findings.

    ``parent`` is the sha256 of the parent's manifest, and ``before`` how that one was made, if it was quantized too.
    """

    recipe: str
    settings: dict[str, Any]
    parent: str
    calibration: str | None
    graphs: dict[str, GraphQuantization]
    gate: Gate
    before: Quantization | None = None

    @property
    def integer_products(self) -> bool:
        """Whether u8×s8 products run."""
        return any("w8a8" in graph.nodes for graph in self.graphs.values()) or bool(
            self.before and self.before.integer_products
        )

    @property
    def needs_vnni(self) -> bool:
        """Whether such products have 8-bit weights: those can saturate on x86 without VNNI, 7-bit ones cannot."""
        rules = [rule for rule in self.settings.get("rules", []) if rule.get("method") == "w8a8"]
        own = any("w8a8" in graph.nodes for graph in self.graphs.values())
        return (own and not all(rule.get("reduce_range") for rule in rules)) or bool(
            self.before and self.before.needs_vnni
        )


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything about an artifact. ``front_end`` and ``parameters`` are typed by the family that reads them."""

    schema_version: int
    family: str
    name: str
    source: Source
    graphs: dict[str, GraphSpec]
    files: dict[str, FileSpec]
    tokenizer: str
    languages: list[Language]
    front_end: dict[str, Any]
    parameters: dict[str, Any]
    parity: dict[str, Parity]
    tools: dict[str, str]
    quantization: Quantization | None = None


class _Versioned(msgspec.Struct):
    schema_version: int


def read_manifest(path: Path) -> Manifest:
    """Read and validate a manifest.

    Raises:
        ArtifactInvalidError: not valid JSON of this schema, a newer schema version, a file name that points outside the
            folder, or a file that is used without an entry under ``files``.
        OSError: the file cannot be read.
    """
    try:
        data = path.read_bytes()
        version = msgspec.json.decode(data, type=_Versioned).schema_version
        if version > SCHEMA_VERSION:
            raise ArtifactInvalidError(
                f"{path}: schema version {version} is newer than {SCHEMA_VERSION}, the newest this runtime reads; "
                "update asr-deploy"
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise ArtifactInvalidError(f"{path}: {error}; export the model again") from None
    graphs = manifest.graphs.values()
    used = [manifest.tokenizer, *(graph.file for graph in graphs), *(graph.data for graph in graphs if graph.data)]
    for name in (*manifest.files, *used):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ArtifactInvalidError(f"{path}: file name {name!r} points outside the model folder")
        if name not in manifest.files:
            raise ArtifactInvalidError(f"{path}: file {name!r} is used but has no entry under `files`")
    return manifest


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as indented JSON."""
    return json.dumps(msgspec.to_builtins(manifest), indent=2, ensure_ascii=False).encode() + b"\n"
