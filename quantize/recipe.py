"""Recipe schema: ordered rules that select graph nodes and say how they are quantized. The first matching rule applies.

A recipe is a TOML file::

    description = "purpose of the recipe"
    from_quantized = false         # true to allow artifacts that are already quantized

    [bounds]                       # the gate rejects a result that exceeds one of these
    relative_error = { "*" = 0.1 } # largest relative error of a graph's outputs, by graph role; "*" is the default
    words_differ = 0.015           # largest share of words that differ from the parent's text
    error_rate = 0.002             # largest rise of the error rate of a language; 0.01 is one percentage point
    identical = 0.9                # least share of evaluation utterances with the parent's tokens, 0 to 1; optional

    [[rules]]
    graph = "decoder"              # graph role; *, ? and [] as in file names
    kind = "head"                  # node kind, a key of KINDS; same patterns
    node = "/lm_head/*"            # node name; same patterns
    operator = "*"                 # ONNX operator; same patterns
    graph_share = 0.5              # match only graphs with at most this share of the model's weights, 0 to 1
    cross_attention = true         # match only graphs with cross-attention; false: only graphs without it
    optional = false               # true to allow that the rule matches no node
    method = "weight_only"         # weight_only, w8a8, fp16 or keep; further keys depend on the method
    bits = 4
    block = 64

    [cache]                        # quantize keys and values; they stay float32 without this table
    bits = 8
    optional = false               # true to allow models without a cache

Keys, methods and values are checked when the file is read. A rule that matches no node is an error unless it has
``optional = true``, so that a recipe never does less than it states without notice. The bundled recipes select nodes by
kind, not by name, so that each fits all families; rules for kinds that some families lack are optional.
"""

from __future__ import annotations

import fnmatch
import importlib.resources
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import msgspec

from quantize.errors import RecipeError

#: Node kinds and their descriptions. The first five have weights that can be quantized.
KINDS = {
    "embedding": "a lookup of rows in a table",
    "head": "the product that scores tokens: it computes an output named `…logits` or `…log_probs`",
    "linear": "any other product with a weight matrix",
    "convolution": "a convolution without groups over several positions",
    "pointwise": "a convolution without groups over single positions",
    "depthwise": "a convolution with groups",
    "normalization": "layer and root-mean-square normalization, also fused with a preceding sum",
    "softmax": "softmax and its logarithm",
    "sum": "the sum of two computed values, such as a residual connection",
    "other": "everything else",
}

Bits = Literal[4, 8]
Block = Literal[16, 32, 64, 128, 256]


class Smoothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Exponents that the smoothing search tries (:mod:`quantize.smoothing`), each from 0 to 1."""

    alphas: tuple[float, ...] = (0.35, 0.5, 0.65, 0.8)


class Sensitive(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Higher precision for the ``share`` (0 to 1) of a rule's weights with the largest effect for their size."""

    share: float
    bits: Bits = 8
    block: Block = 32


class Candidate(NamedTuple):
    """A node to which rules are matched.

    ``graph_share`` is the share of its graph in all weights of the model, ``cross_attention`` whether the graph attends
    to keys and values that another graph computed.
    """

    role: str
    name: str
    operator: str
    kind: str = "other"
    graph_share: float = 1.0
    cross_attention: bool = False


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="method", kw_only=True):
    """Patterns that select nodes by graph role, kind, name and operator, and by properties of their graph.

    ``cross_attention`` selects only graphs with cross-attention (true) or only graphs without it (false): a decoder
    with cross-attention reads a few tokens at a time, any other also reads the audio of whole segments.
    """

    graph: str
    kind: str = "*"
    node: str = "*"
    operator: str = "*"
    graph_share: float = 1.0
    cross_attention: bool | None = None
    optional: bool = False

    #: Operators that the method can quantize.
    operators: ClassVar[frozenset[str]] = frozenset()

    def matches(self, node: Candidate) -> bool:
        """Return whether ``node`` matches all four patterns, and its graph both conditions."""
        pairs = (
            (node.role, self.graph),
            (node.kind, self.kind),
            (node.name, self.node),
            (node.operator, self.operator),
        )
        graph_matches = node.graph_share <= self.graph_share and self.cross_attention in (None, node.cross_attention)
        return graph_matches and all(fnmatch.fnmatchcase(value, pattern) for value, pattern in pairs)

    @property
    def selector(self) -> str:
        """The patterns that are set, for messages: ``graph 'decoder', kind 'head'``."""
        patterns = {"graph": self.graph, "kind": self.kind, "node": self.node, "operator": self.operator}
        parts = [f"{key} {pattern!r}" for key, pattern in patterns.items() if key == "graph" or pattern != "*"]
        parts += [f"graph_share {self.graph_share:g}"] if self.graph_share < 1 else []
        parts += [f"cross_attention {str(self.cross_attention).lower()}"] if self.cross_attention is not None else []
        return ", ".join(parts)


class WeightOnly(Rule, frozen=True, tag="weight_only", kw_only=True):
    """Quantize weights to ``bits`` in blocks along the inner axis, with one scale a block; activations stay float32.

    ``arithmetic`` is that of the products. ``int8`` is the fast kernel for a few rows, which rounds its inputs to 8
    bits in blocks. ``twice_int8`` multiplies the rest of that rounding too: twice the work, a hundredth of the error.
    ``float32`` dequantizes the weights when the graph is loaded: exact and fast for many rows, with the memory of a
    float32 model.

    ``compensation`` rounds weights so that the error of their products on calibration audio is small
    (:mod:`quantize.compensation`).
    """

    bits: Bits
    block: Block
    symmetric: bool = False
    smoothing: Smoothing | None = None
    sensitive: Sensitive | None = None
    compensation: bool = False
    arithmetic: Literal["int8", "twice_int8", "float32"] = "int8"

    operators: ClassVar[frozenset[str]] = frozenset({"MatMul", "Gemm", "Conv", "Gather"})


class Fallback(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Weight-only quantization of a node whose error exceeds the rule's ``error_bound``."""

    bits: Bits = 8
    block: Block = 32


class W8A8(Rule, frozen=True, tag="w8a8", kw_only=True):
    """Compute with int8 weights (one scale a column) and uint8 activations (one scale a row).

    ``compensation`` is as in :class:`WeightOnly`. A product whose relative error on calibration audio exceeds
    ``error_bound`` is quantized by ``fallback``.
    """

    smoothing: Smoothing | None = Smoothing()
    error_bound: float
    fallback: Fallback = Fallback()
    reduce_range: bool = False
    compensation: bool = False

    operators: ClassVar[frozenset[str]] = frozenset({"MatMul", "Gemm", "Conv"})


class Float16(Rule, frozen=True, tag="fp16", kw_only=True):
    """Compute in float16."""


class Keep(Rule, frozen=True, tag="keep", kw_only=True):
    """Leave the node unchanged."""


AnyRule = WeightOnly | W8A8 | Float16 | Keep


class Cache(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Quantize the keys and values of attention; ``optional`` allows models without a cache."""

    bits: Literal[8]
    optional: bool = False


class Bounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds that the gate enforces. Shares and rates are from 0 to 1.

    ``quantize.gate`` says how ``words_differ`` and ``error_rate`` allow for the size of the evaluation set.
    """

    relative_error: dict[str, float]
    words_differ: float
    error_rate: float
    identical: float = 0.0

    def relative(self, role: str) -> float:
        """Return the bound on the relative error of graph ``role``: its own, that of ``*``, or infinity."""
        return self.relative_error.get(role, self.relative_error.get("*", float("inf")))


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A recipe file.

    Attributes:
        description: Purpose of the recipe.
        bounds: Bounds that the gate enforces.
        rules: Rules in order of precedence.
        cache: Quantization of keys and values; they stay float32 if None.
        name: File name without its suffix; not a key of the file.
        from_quantized: Allow artifacts that are already quantized.
    """

    description: str
    bounds: Bounds
    rules: tuple[AnyRule, ...]
    cache: Cache | None = None
    name: str = ""
    from_quantized: bool = False

    def with_reduced_range(self) -> Recipe:
        """Return the recipe with 7-bit weights in every ``w8a8`` rule.

        Raises:
            RecipeError: The recipe has no ``w8a8`` rule.
        """
        if not any(isinstance(rule, W8A8) for rule in self.rules):
            raise RecipeError(f"recipe {self.name!r}: --reduce-range is for w8a8 rules, and it has none")
        rules = tuple(
            msgspec.structs.replace(rule, reduce_range=True) if isinstance(rule, W8A8) else rule for rule in self.rules
        )
        return msgspec.structs.replace(self, rules=rules)

    @property
    def needs_calibration(self) -> bool:
        """Whether a rule or the cache needs activation statistics of real audio."""
        return self.cache is not None or any(
            isinstance(rule, W8A8)
            or (isinstance(rule, WeightOnly) and (rule.smoothing or rule.sensitive or rule.compensation))
            for rule in self.rules
        )

    def settings(self) -> dict[str, Any]:
        """Return the recipe as plain data for the manifest, without its name."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        return {key: value for key, value in data.items() if key != "name"}


def shipped() -> dict[str, Path]:
    """Return the paths of the bundled recipes by name."""
    folder = Path(str(importlib.resources.files("quantize") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_recipe(name: str) -> Recipe:
    """Load a bundled recipe by name, or a TOML file by path.

    Raises:
        RecipeError: ``name`` is neither a bundled recipe nor a path ending in ``.toml``.
        RecipeError: The file cannot be read or is not valid TOML.
        RecipeError: A key is unknown or missing, or a value has the wrong type or range; the message names both.
    """
    bundled = shipped()
    path = bundled.get(name) or Path(name)
    if name not in bundled and path.suffix != ".toml":
        raise RecipeError(
            f"unknown recipe {name!r}; use one of the bundled recipes ({', '.join(bundled)}) or a .toml file"
        )
    try:
        recipe = msgspec.toml.decode(path.read_bytes(), type=Recipe)
    except OSError as error:
        raise RecipeError(f"{path}: the recipe cannot be read ({error.strerror})") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # a ValidationError is a DecodeError
        raise RecipeError(f"{path}: {error}") from None
    if recipe.name:
        raise RecipeError(f"{path}: remove the key `name`: a recipe is named after its file")
    if not recipe.rules:
        raise RecipeError(f"{path}: the recipe has no rules")
    _check_values(path, recipe)
    return msgspec.structs.replace(recipe, name=path.stem)


def _check_values(path: Path, recipe: Recipe) -> None:
    checks: list[tuple[str, float, float, float]] = [
        ("bounds.words_differ", recipe.bounds.words_differ, 0.0, float("inf")),
        ("bounds.identical", recipe.bounds.identical, 0.0, 1.0),
        ("bounds.error_rate", recipe.bounds.error_rate, 0.0, float("inf")),
        *(
            (f"bounds.relative_error.{role}", bound, 0.0, float("inf"))
            for role, bound in recipe.bounds.relative_error.items()
        ),
    ]
    for index, rule in enumerate(recipe.rules):
        if not fnmatch.filter(KINDS, rule.kind):
            raise RecipeError(f"{path}: rules[{index}].kind is {rule.kind!r}; kinds are {', '.join(KINDS)}")
        checks.append((f"rules[{index}].graph_share", rule.graph_share, 0.0, 1.0))
        if isinstance(rule, W8A8):
            checks.append((f"rules[{index}].error_bound", rule.error_bound, 0.0, float("inf")))
        if isinstance(rule, WeightOnly) and rule.sensitive:
            checks.append((f"rules[{index}].sensitive.share", rule.sensitive.share, 0.0, 1.0))
        smoothing = rule.smoothing if isinstance(rule, W8A8 | WeightOnly) else None
        alphas = smoothing.alphas if smoothing else ()
        checks.extend((f"rules[{index}].smoothing.alphas", alpha, 0.0, 1.0) for alpha in alphas)
    for key, value, lower, upper in checks:
        if not lower <= value <= upper or math.isinf(value):  # NaN fails too; manifests are JSON, without infinity
            raise RecipeError(f"{path}: {key} is {value}, which is not between {lower:g} and {upper:g}")


def assign(recipe: Recipe, nodes: Iterable[Candidate]) -> dict[tuple[str, str], AnyRule]:
    """Match every node with the rules of ``recipe``.

    Returns:
        The first matching rule by (graph role, node name), without the nodes that no rule matches.

    Raises:
        RecipeError: A rule that is not optional is applied to no node.
        RecipeError: The method of a rule does not support the operator of a node it matches.
    """
    assigned: dict[tuple[str, str], AnyRule] = {}
    used: set[int] = set()
    for node in nodes:
        for index, rule in enumerate(recipe.rules):
            if rule.matches(node):
                if rule.operators and node.operator not in rule.operators:
                    raise RecipeError(
                        f"recipe {recipe.name!r}, rule {index + 1}: its method cannot quantize the {node.operator} "
                        f"{node.name!r} of graph {node.role!r}; add a rule with method 'keep' for this node before it"
                    )
                used.add(index)
                assigned[node.role, node.name] = rule
                break
    for index, rule in enumerate(recipe.rules):
        if index not in used and not rule.optional:
            raise RecipeError(
                f"recipe {recipe.name!r}, rule {index + 1} ({rule.selector}) matches no node, or only nodes that "
                "an earlier rule matches; correct its patterns or set optional = true"
            )
    return assigned
