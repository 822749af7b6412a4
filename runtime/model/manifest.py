"""Schema of ``manifest.json``, which export and quantize write and the runtime reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from runtime.errors import ArtifactInvalidError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Input or output of a graph.

    Attributes:
        name: its name in the graph.
        dtype: name of the numpy dtype.
        shape: sizes of its axes, or the names of dynamic axes.
    """

    name: str
    dtype: str
    shape: list[int | str]


class GraphSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """ONNX graph of an artifact.

    Attributes:
        file: name of the ``.onnx`` file in the artifact's folder.
        inputs: in the graph's order.
        outputs: in the graph's order.
        data: name of the file with external data, or None.
    """

    file: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    data: str | None = None


class FileSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Expected SHA-256 (hex) and size (bytes) of a file of the artifact."""

    sha256: str
    size: int


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Origin of the weights.

    Attributes:
        repo: repository on Hugging Face, or a folder.
        revision: commit of the repository; None for a folder.
        licence: license of the weights.
        layout: layout of the checkpoint's files and tensor names.
        weights_sha256: SHA-256 of the weights (hex).
        author: attribution that the license requires.
        parameters: number of weights.
    """

    repo: str
    revision: str | None
    licence: str
    layout: str
    weights_sha256: str
    author: str | None = None
    parameters: int | None = None


class Language(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Language: its English name as the model uses it, and its ISO 639 code."""

    name: str
    code: str


class Parity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Largest differences between a graph and the reference implementation.

    Attributes:
        max_abs_difference: largest absolute difference of an output.
        tolerance: bound of ``max_relative_difference``; of ``max_abs_difference`` where that is None.
        cases: names of the inputs that were compared.
        max_relative_difference: largest absolute difference of an output divided by the output's largest value; None in
            artifacts of versions that compared absolute differences.
    """

    max_abs_difference: float
    tolerance: float
    cases: list[str]
    max_relative_difference: float | None = None

    @property
    def summary(self) -> str:
        """The differences in words: absolute, and relative if recorded."""
        relative = self.max_relative_difference
        share = "" if relative is None else f" ({relative:.1e} of the largest value)"
        return f"at most {self.max_abs_difference:.1e} from the reference{share}"


class FallbackNode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Node with 8-bit weights only, because its error with 8-bit activations exceeded the recipe's bound."""

    node: str
    error: float


class GraphQuantization(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Changes that quantization made to one graph.

    Attributes:
        nodes: number of nodes with weights by quantization method.
        smoothed: number of smoothed inputs.
        fallbacks: nodes that have 8-bit weights only instead of 8-bit products.
        caches: number of attention nodes whose keys and values are int8.
    """

    nodes: dict[str, int]
    smoothed: int
    fallbacks: list[FallbackNode]
    caches: int = 0


class ErrorRate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Error rates of one language.

    Attributes:
        language: its English name.
        unit: what is counted, words or characters.
        utterances: number of utterances.
        parent: error rate of the parent, 0..1 (above 1 with many insertions).
        quantized: error rate of this artifact.
        parent_units: number of units of the parent's texts; None in artifacts of older versions.
        differing: units of this artifact's texts that differ from the parent's; None in artifacts of older versions.
        rise_low: lower bound of the paired 95 % bootstrap interval of quantized - parent; None if it was not computed.
        rise_high: upper bound of that interval.
    """

    language: str
    unit: str
    utterances: int
    parent: float
    quantized: float
    parent_units: int | None = None
    differing: int | None = None
    rise_low: float | None = None
    rise_high: float | None = None


class TextDifference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Difference of all texts from the parent's, after normalization.

    Attributes:
        unit: what is counted: words, characters, or both for languages of both kinds.
        parent_units: number of units of the parent's texts.
        differing: units that differ: substituted, deleted or inserted.
        low: lower bound of the 95 % bootstrap interval of the share; None if the parent's texts are empty.
        high: upper bound of that interval.
    """

    unit: str
    parent_units: int
    differing: int
    low: float | None
    high: float | None

    @property
    def share(self) -> float | None:
        """Differing units divided by the parent's, 0 and above; None if the parent's texts are empty."""
        return self.differing / self.parent_units if self.parent_units else None

    @property
    def summary(self) -> str:
        """The difference in words: counts, share and interval."""
        counts = f"{self.differing} of {self.parent_units} {self.unit}"
        if self.share is None or self.low is None or self.high is None:
            return counts
        return f"{counts}, {self.share:.2%} (95 % interval {self.low:.2%} to {self.high:.2%})"


class Gate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Comparison with the parent that this artifact had to pass.

    Attributes:
        evaluation: the evaluation audio.
        relative_error: of each graph's outputs on the same inputs (Euclidean norm), by graph role.
        same_choices: share of decoding steps on the parent's text where the choice equals the parent's, 0..1.
        utterances: number of utterances of the evaluation audio.
        identical: share of utterances whose tokens equal the parent's, 0..1; None without evaluation audio.
        error_rates: by language.
        parent_bytes: size of the parent.
        bytes: size of this artifact.
        exceeded: bounds that were exceeded; only a forced artifact has any.
        forced: whether the artifact was written in spite of exceeded bounds.
        words_differ: words that differ from the parent's texts; None without evaluation audio and in artifacts of
            older versions.
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
    words_differ: TextDifference | None = None


class Quantization(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an artifact was quantized.

    Attributes:
        recipe: name of the recipe.
        settings: all settings of the recipe.
        parent: SHA-256 (hex) of the parent's manifest.
        calibration: the calibration audio; None for recipes without calibration.
        graphs: changes by graph role.
        gate: comparison with the parent.
        before: quantization of the parent, if it was quantized too.
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
        """Whether any graph computes u8×s8 products, counting earlier quantizations."""
        return any("w8a8" in graph.nodes for graph in self.graphs.values()) or bool(
            self.before and self.before.integer_products
        )

    @property
    def needs_vnni(self) -> bool:
        """Whether u8×s8 products have 8-bit weights, which can saturate on x86 without VNNI; 7-bit weights cannot."""
        rules = [rule for rule in self.settings.get("rules", []) if rule.get("method") == "w8a8"]
        own = any("w8a8" in graph.nodes for graph in self.graphs.values())
        return (own and not all(rule.get("reduce_range") for rule in rules)) or bool(
            self.before and self.before.needs_vnni
        )


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Complete description of an artifact.

    Attributes:
        schema_version: :data:`SCHEMA_VERSION` of the writer.
        family: family of models whose code runs the artifact.
        name: name of the model.
        source: origin of the weights.
        graphs: by graph role.
        files: size and hash by file name, of all files except the manifest.
        tokenizer: name of the tokenizer's file.
        languages: languages of the model.
        front_end: settings of the feature extraction, typed by the family.
        parameters: settings of the family, typed by the family.
        parity: comparison with the reference implementation by graph role.
        tools: versions of the packages that wrote the artifact.
        quantization: how the artifact was quantized; None for float32.
    """

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
        ArtifactInvalidError: the file is not JSON of this schema.
        ArtifactInvalidError: the schema version is newer than this runtime supports.
        ArtifactInvalidError: a file name points outside the folder.
        ArtifactInvalidError: a file is used without an entry under ``files``.
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
    """Return the manifest as indented UTF-8 JSON."""
    return json.dumps(msgspec.to_builtins(manifest), indent=2, ensure_ascii=False).encode() + b"\n"
