"""Recipes as data: ordered rules that say which node of which graph is quantized how. The first match wins.

A recipe is a TOML file::

    description = "what it is for"

    [bounds]                       # the gate refuses what is farther from the parent
    relative_error = { "*" = 0.1 } # by graph role, of the graph's outputs
    identical = 0.9                # least share of evaluation utterances with the parent's tokens
    error_rate = 0.02              # most that a language's error rate may rise, 0.01 is one point

    [[rules]]
    graph = "decoder"              # graph role; *, ? and [] as in file names
    kind = "head"                  # what the node is for, likewise: see KINDS below
    node = "/lm_head/*"            # node name, likewise
    operator = "*"                 # operator, likewise
    graph_share = 0.5              # only in a graph that has at most this share of the model's weights
    optional = false               # true where the rule need not meet a node
    method = "weight_only"
    bits = 4
    block = 64

    [cache]                        # keys and values; float32 without this
    bits = 8
    optional = false               # true where the model need not have any

Keys, methods and values are checked when the file is read, and a rule that no node meets is an error, unless it says
``optional = true``: a recipe that silently did less than it says would be worse than none. The recipes that ship speak
of kinds and not of names, so that one recipe is for all families, and what not every family has is optional in them.
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

#: Kinds by name, and what they are. The first eight carry weights.
KINDS = {
    "embedding": "rows that are looked up in a table",
    "head": "the product that scores tokens: it makes an output called `…logits` or `…log_probs`",
    "linear": "any other product with a matrix of weights",
    "convolution": "a convolution with all channels of several positions",
    "pointwise": "a convolution with all channels of single positions",
    "depthwise": "a convolution whose channels are in groups",
    "normalization": "layer and root-mean-square norms, those with a sum before them too",
    "softmax": "softmax and its logarithm",
    "sum": "the sum of two computed values: a residual, say",
    "other": "everything else",
}

Bits = Literal[4, 8]
Block = Literal[16, 32, 64, 128, 256]


class Smoothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Exponents that the search tries (see :mod:`quantize.smoothing`) beside leaving the input as it is."""

    alphas: tuple[float, ...] = (0.35, 0.5, 0.65, 0.8)


class Sensitive(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``share`` of a rule's weights, the nodes that move the model's output most for their size, get these bits."""

    share: float
    bits: Bits = 8
    block: Block = 32


class Candidate(NamedTuple):
    """A node that rules are tried on; ``graph_share`` is that of its graph in all weights of the model."""

    role: str
    name: str
    operator: str
    kind: str = "other"
    graph_share: float = 1.0


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="method", kw_only=True):
    """Which nodes: patterns over graph role, kind, node name and operator, in graphs that are not too large a part."""

    graph: str
    kind: str = "*"
    node: str = "*"
    operator: str = "*"
    graph_share: float = 1.0
    optional: bool = False

    #: Operators that the method can quantize.
    operators: ClassVar[frozenset[str]] = frozenset()
    #: Whether the method can follow a per-channel scale folded into its weights.
    smooth: ClassVar[Smoothing | None] = None

    def matches(self, node: Candidate) -> bool:
        """Whether a node meets the four patterns, and its graph the bound."""
        pairs = (
            (node.role, self.graph),
            (node.kind, self.kind),
            (node.name, self.node),
            (node.operator, self.operator),
        )
        return node.graph_share <= self.graph_share and all(
            fnmatch.fnmatchcase(value, pattern) for value, pattern in pairs
        )

    @property
    def where(self) -> str:
        """What it asks for, for messages."""
        patterns = {"graph": self.graph, "kind": self.kind, "node": self.node, "operator": self.operator}
        said = [f"{key} {pattern!r}" for key, pattern in patterns.items() if key == "graph" or pattern != "*"]
        return ", ".join([*said, *([f"graph_share {self.graph_share:g}"] if self.graph_share < 1 else [])])


class WeightOnly(Rule, frozen=True, tag="weight_only", kw_only=True):
    """Weights of ``bits`` in blocks along the inner axis, one scale a block; activations are floats between nodes."""

    bits: Bits
    block: Block
    symmetric: bool = False
    smoothing: Smoothing | None = None
    sensitive: Sensitive | None = None

    operators: ClassVar[frozenset[str]] = frozenset({"MatMul", "Gemm", "Conv", "Gather"})


class Fallback(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a node gets whose error stays above the bound."""

    bits: Bits = 8
    block: Block = 32


class W8A8(Rule, frozen=True, tag="w8a8", kw_only=True):
    """int8 weights with a scale a column, uint8 activations with a scale a row (see :mod:`quantize.methods.w8a8`)."""

    smoothing: Smoothing | None = Smoothing()
    error_bound: float
    fallback: Fallback = Fallback()
    reduce_range: bool = False

    operators: ClassVar[frozenset[str]] = frozenset({"MatMul", "Gemm", "Conv"})


class Float16(Rule, frozen=True, tag="fp16", kw_only=True):
    """Computed in half precision."""


class Keep(Rule, frozen=True, tag="keep", kw_only=True):
    """Left as it is."""


AnyRule = WeightOnly | W8A8 | Float16 | Keep


class Cache(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bits of keys and values (see :mod:`quantize.methods.cache`), of a model that has to have some or need not."""

    bits: Literal[8]
    optional: bool = False


class Bounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the gate lets pass. Shares and rates from 0 to 1."""

    relative_error: dict[str, float]
    identical: float
    error_rate: float

    def relative(self, role: str) -> float:
        """The bound for a graph: by its role, or the one for ``*``."""
        return self.relative_error.get(role, self.relative_error.get("*", float("inf")))


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A recipe; ``name`` is the file's."""

    description: str
    bounds: Bounds
    rules: tuple[AnyRule, ...]
    cache: Cache | None = None  # float32 keys and values without it
    name: str = ""
    from_quantized: bool = False  # whether it may be applied to an artifact that is quantized already

    def with_reduced_range(self) -> Recipe:
        """The recipe with 7-bit weights for every ``w8a8`` rule.

        Raises:
            RecipeError: it has none.
        """
        if not any(isinstance(rule, W8A8) for rule in self.rules):
            raise RecipeError(f"recipe {self.name!r}: --reduce-range is for w8a8 rules, and it has none")
        rules = tuple(
            msgspec.structs.replace(rule, reduce_range=True) if isinstance(rule, W8A8) else rule for rule in self.rules
        )
        return msgspec.structs.replace(self, rules=rules)

    @property
    def calibrates(self) -> bool:
        """Whether a rule or the cache needs activations of real audio."""
        return self.cache is not None or any(
            isinstance(rule, W8A8) or (isinstance(rule, WeightOnly) and (rule.smoothing or rule.sensitive))
            for rule in self.rules
        )

    def settings(self) -> dict[str, Any]:
        """The recipe as plain data, for the manifest."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        return {key: value for key, value in data.items() if key != "name"}


def shipped() -> dict[str, Path]:
    """The recipes that come along, by name."""
    folder = Path(str(importlib.resources.files("quantize") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_recipe(name: str) -> Recipe:
    """A shipped recipe by name, or a TOML file by path.

    Raises:
        RecipeError: no such recipe, or something in it is wrong (file, key and value are named).
    """
    known = shipped()
    path = known.get(name) or Path(name)
    if name not in known and path.suffix != ".toml":
        raise RecipeError(f"unknown recipe {name!r}; shipped are {', '.join(known)}, or give a .toml file")
    try:
        recipe = msgspec.toml.decode(path.read_bytes(), type=Recipe)
    except OSError as error:
        raise RecipeError(f"{path}: the recipe cannot be read ({error.strerror})") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # a ValidationError is a DecodeError
        raise RecipeError(f"{path}: {error}") from None
    if recipe.name:
        raise RecipeError(f"{path}: the key `name` is not for recipes: the file's name is the recipe's")
    if not recipe.rules:
        raise RecipeError(f"{path}: the recipe has no rules")
    _check_values(path, recipe)
    return msgspec.structs.replace(recipe, name=path.stem)


def _check_values(path: Path, recipe: Recipe) -> None:
    checks: list[tuple[str, float, float, float]] = [
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
    for key, value, least, most in checks:
        if not least <= value <= most or math.isinf(value):  # also when it is NaN; JSON has no infinity
            raise RecipeError(f"{path}: {key} is {value}, which is not between {least:g} and {most:g}")


def assign(recipe: Recipe, nodes: Iterable[Candidate]) -> dict[tuple[str, str], AnyRule]:
    """For every node, by role and name, that a rule matches the first one that does.

    Raises:
        RecipeError: a rule matches nothing, or its method cannot do an operator that it matches.
    """
    chosen: dict[tuple[str, str], AnyRule] = {}
    used: set[int] = set()
    for node in nodes:
        for index, rule in enumerate(recipe.rules):
            if rule.matches(node):
                if rule.operators and node.operator not in rule.operators:
                    raise RecipeError(
                        f"recipe {recipe.name!r}, rule {index + 1}: its method cannot quantize the {node.operator} "
                        f"{node.name!r} of graph {node.role!r}; put a rule with method 'keep' for it before this one"
                    )
                used.add(index)
                chosen[node.role, node.name] = rule
                break
    for index, rule in enumerate(recipe.rules):
        if index not in used and not rule.optional:
            raise RecipeError(
                f"recipe {recipe.name!r}, rule {index + 1} ({rule.where}) matches no node that an earlier rule has not "
                "taken; correct its patterns or say optional = true"
            )
    return chosen
