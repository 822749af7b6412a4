"""Recipes: what ships fits the small model, what is wrong in a file is one sentence, and the first match wins."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from quantize.errors import RecipeError
from quantize.recipe import W8A8, Bounds, Candidate, Float16, Keep, Recipe, WeightOnly, assign, load_recipe, shipped
from runtime.model.artifact import open_artifact
from runtime.model.manifest import Gate, Manifest, Quantization, encode_manifest
from tests.conftest import ARTIFACT

HEAD = """
description = "for a test"
[bounds]
relative_error = { "*" = 0.1 }
identical = 0.9
error_rate = 0.01
"""
KEEP = '[[rules]]\ngraph = "*"\nmethod = "keep"\n'
WEIGHTS = '[[rules]]\ngraph = "*"\nmethod = "weight_only"\nbits = 4\nblock = 64\n'
INTEGERS = '[[rules]]\ngraph = "*"\nmethod = "w8a8"\nerror_bound = 0.05\n'

NODES = [
    Candidate("encoder", "/conv1/Conv", "Conv", "convolution", 0.3),
    Candidate("encoder", "/layers.0/fc1/MatMul", "MatMul", "linear", 0.3),
    Candidate("decoder", "/embed/Gather", "Gather", "embedding", 0.7),
    Candidate("decoder", "/layers.0/q/MatMul", "MatMul", "linear", 0.7),
    Candidate("decoder", "/layers.1/q/MatMul", "MatMul", "linear", 0.7),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "own.toml"


def read(file: Path, text: str) -> Recipe:
    file.write_text(text, encoding="utf-8")
    return load_recipe(str(file))


def recipe_of(*rules: W8A8 | WeightOnly | Float16 | Keep) -> Recipe:
    return Recipe("for a test", Bounds({"*": 0.1}, 0.9, 0.01), rules, name="own")


def in_manifest(recipe: Recipe) -> Recipe:
    """``recipe`` written into a manifest and read from it again."""
    gate = Gate("nothing", {}, None, 0, None, [], 0, 0, [], False)
    quantization = Quantization(recipe.name, recipe.settings(), "", None, {}, gate)
    manifest = msgspec.structs.replace(open_artifact(ARTIFACT).manifest, quantization=quantization)
    found = msgspec.json.decode(encode_manifest(manifest), type=Manifest).quantization
    assert found is not None
    return msgspec.structs.replace(msgspec.convert(found.settings, Recipe), name=found.recipe)


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_is_whole_and_survives_the_manifest(name: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.name, recipe.from_quantized) == (name, False)
    assert recipe.description
    assert all(0 < recipe.bounds.relative(role) < 1 for role in ("encoder", "decoder"))
    assert 0 < recipe.bounds.identical <= 1
    assert 0 <= recipe.bounds.error_rate < 0.1
    assert in_manifest(recipe) == recipe


def test_the_recipes_that_documentation_names_are_there() -> None:
    assert set(shipped()) == {"fp16", "int4", "int4-small", "int8", "mixed", "q8"}


def test_the_first_match_wins() -> None:
    first = Keep(graph="decoder", node="/layers.[0]/*")
    second = W8A8(graph="decoder", operator="MatMul", error_bound=0.1)
    third = WeightOnly(graph="?ecoder", bits=8, block=32)
    chosen = assign(recipe_of(first, second, third), NODES)
    assert chosen == {
        ("decoder", "/embed/Gather"): third,
        ("decoder", "/layers.0/q/MatMul"): first,
        ("decoder", "/layers.1/q/MatMul"): second,
    }


def test_patterns_mind_the_case_and_the_whole_name() -> None:
    conv, product = NODES[:2]
    assert Keep(graph="*", node="/conv?/*").matches(conv)
    assert not Keep(graph="*", node="/Conv?/*").matches(conv)
    assert not Keep(graph="*", node="/conv?").matches(conv)
    assert not Keep(graph="*", operator="MatMul").matches(conv)
    assert Keep(graph="*", kind="[ce]*").matches(conv)
    assert not Keep(graph="*", kind="[ce]*").matches(product)


def test_a_rule_for_small_graphs_leaves_large_ones_to_the_next() -> None:
    """An encoder with a third of the weights meets it, a decoder with the rest does not."""
    small, rest = W8A8(graph="*", kind="linear", graph_share=0.5, error_bound=0.1), Keep(graph="*")
    chosen = assign(recipe_of(small, rest), NODES)
    assert {role for (role, _), rule in chosen.items() if rule is small} == {"encoder"}
    assert small.matches(NODES[1]._replace(graph_share=0.5))
    assert not small.matches(NODES[1]._replace(graph_share=0.51))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([Keep(graph="joiner"), Keep(graph="*")], r"rule 1 \(graph 'joiner'\) matches no"),
        (
            [Keep(graph="*", kind="head", operator="Gemm", graph_share=0.25), Keep(graph="*")],
            r"rule 1 \(graph '\*', kind 'head', operator 'Gemm', graph_share 0.25\) matches no",
        ),
        ([Keep(graph="*"), Keep(graph="decoder")], r"rule 2 .* matches no node that an earlier rule has not taken"),
        (
            [Keep(graph="encoder"), W8A8(graph="*", error_bound=0.1)],
            r"rule 2: its method cannot quantize the Gather '/embed/Gather' of graph 'decoder'; put a .*'keep'",
        ),
    ],
)
def test_rules_that_do_not_fit(rules: list[W8A8 | Keep], message: str) -> None:
    with pytest.raises(RecipeError, match=f"recipe 'own', {message}") as caught:
        assign(recipe_of(*rules), NODES)
    assert "\n" not in str(caught.value)


def test_rules_that_fit_after_all() -> None:
    """An optional one may match nothing, and an operator that a method cannot do may be kept before it."""
    integers = W8A8(graph="decoder", error_bound=0.1)
    recipe = recipe_of(Keep(graph="joiner", optional=True), Keep(graph="*", operator="Gather"), integers)
    assert assign(recipe, NODES)["decoder", "/layers.0/q/MatMul"] is integers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "missing required field `description`"),
        ("rules = [", "Invalid value"),
        (HEAD + "rules = 3\n" + KEEP, "rules"),
        (f"rules = []\n{HEAD}", "has no rules"),
        ("name = 'other'\n" + HEAD + KEEP, "the key `name` is not for recipes"),
        ("colour = 1\n" + HEAD + KEEP, "unknown field `colour`"),
        (HEAD + "speed = 1\n" + KEEP, "unknown field `speed`"),
        (HEAD + KEEP + "bits = 8\n", "unknown field `bits`"),
        (HEAD + WEIGHTS + "smoothing = { alpha = 0.5 }\n", "unknown field `alpha`"),
        (HEAD + KEEP.replace("keep", "kept"), "Invalid value 'kept'"),
        (HEAD + '[[rules]]\ngraph = "*"\n', "missing required field `method`"),
        (HEAD + KEEP.replace("graph", "node"), "missing required field `graph`"),
        (HEAD + WEIGHTS.replace("4", "5", 1), "Invalid enum value 5"),
        (HEAD + WEIGHTS.replace("64", "48"), "Invalid enum value 48"),
        (HEAD + INTEGERS.replace("error_bound = 0.05\n", ""), "missing required field `error_bound`"),
        (HEAD.replace("0.9", "true") + KEEP, "Expected `float`, got `bool`"),
        (HEAD.replace("0.9", "nan") + KEEP, "bounds.identical is nan, which is not between 0 and 1"),
        (HEAD.replace("0.9", "90.0") + KEEP, "bounds.identical is 90.0, which is not between 0 and 1"),
        (HEAD.replace("0.01", "nan") + KEEP, "bounds.error_rate is nan"),
        (HEAD.replace("0.01", "-0.01") + KEEP, "bounds.error_rate is -0.01"),
        (HEAD.replace("0.1", "nan") + KEEP, "bounds.relative_error.* is nan"),
        (HEAD.replace("0.1", "-1.0") + KEEP, "bounds.relative_error.* is -1.0"),
        (HEAD + KEEP + INTEGERS.replace("0.05", "nan"), "rules[1].error_bound is nan"),
        (HEAD + KEEP + "kind = 'lm_head'\n", "rules[0].kind is 'lm_head'; kinds are embedding, head, linear, "),
        (HEAD + KEEP + "graph_share = 50\n", "rules[0].graph_share is 50.0, which is not between 0 and 1"),
        (HEAD + WEIGHTS + "sensitive = { share = 2 }\n", "rules[0].sensitive.share is 2.0"),
        (HEAD + WEIGHTS + "sensitive = { share = nan }\n", "rules[0].sensitive.share is nan"),
        (HEAD + WEIGHTS + "smoothing = { alphas = [0.5, 1.5] }\n", "rules[0].smoothing.alphas is 1.5"),
        (HEAD + INTEGERS + "smoothing = { alphas = [-0.5] }\n", "rules[0].smoothing.alphas is -0.5"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_sentence(file: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(file, text)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_recipe_file(file: Path, tmp_path: Path) -> None:
    file.write_bytes(b"description = '\xff'")
    with pytest.raises(RecipeError, match=r"own\.toml: .*can't decode byte 0xff"):
        load_recipe(str(file))
    (tmp_path / "folder.toml").mkdir()
    for name, reason in (("folder.toml", "Is a directory"), ("absent.toml", "No such file or directory")):
        with pytest.raises(RecipeError, match=rf"{name}: the recipe cannot be read \({reason}\)"):
            load_recipe(str(tmp_path / name))
    with pytest.raises(RecipeError, match=r"unknown recipe 'int9'; shipped are fp16, int4-small, .*, or give a \.toml"):
        load_recipe("int9")


def test_an_own_recipe_is_called_like_its_file(file: Path) -> None:
    recipe = read(file, HEAD + INTEGERS + WEIGHTS + "optional = true\nsensitive = { share = 0.25 }\n")
    assert recipe.name == "own"
    first, second = recipe.rules
    assert isinstance(first, W8A8)
    assert (first.smoothing is not None, first.fallback.bits, first.reduce_range) == (True, 8, False)
    assert isinstance(second, WeightOnly)
    assert second.optional
    assert second.sensitive is not None
    assert (second.sensitive.share, second.sensitive.bits, second.smoothing) == (0.25, 8, None)
    assert in_manifest(recipe) == recipe


@pytest.mark.parametrize("text", [HEAD.replace("0.1", "inf") + KEEP, HEAD + INTEGERS.replace("0.05", "inf")])
def test_a_bound_without_end_is_refused(file: Path, text: str) -> None:
    """A manifest is JSON, which has no infinity: the artifact could not be opened."""
    with pytest.raises(RecipeError, match=" is inf"):
        read(file, text)


def test_bounds_by_role() -> None:
    bounds = Bounds({"encoder": 0.2, "*": 0.1}, 0.9, 0.01)
    assert (bounds.relative("encoder"), bounds.relative("decoder")) == (0.2, 0.1)


def test_reduced_range_is_for_integer_products(file: Path) -> None:
    recipe = load_recipe("int4").with_reduced_range()
    assert recipe.name == "int4"
    for rule, before in zip(recipe.rules, load_recipe("int4").rules, strict=True):
        expected = msgspec.structs.replace(before, reduce_range=True) if isinstance(before, W8A8) else before
        assert rule == expected
    assert sum(isinstance(rule, W8A8) and rule.reduce_range for rule in recipe.rules) == 3
    assert json.dumps(recipe.settings()).count('"reduce_range": true') == 3
    for name in ("q8", "fp16"):
        with pytest.raises(RecipeError, match=f"recipe '{name}': --reduce-range is for w8a8 rules, and it has none"):
            load_recipe(name).with_reduced_range()


def test_only_recipes_that_look_at_activations_calibrate(file: Path) -> None:
    assert {name for name in shipped() if not load_recipe(name).calibrates} == {"fp16"}
    assert not read(file, HEAD + WEIGHTS).calibrates
    for more in ("smoothing = {}\n", "sensitive = { share = 0.1 }\n"):
        assert read(file, HEAD + WEIGHTS + more).calibrates
    assert read(file, HEAD + INTEGERS).calibrates
