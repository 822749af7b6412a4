"""Tests of recipes: bundled recipes, errors in recipe files, and matching of rules."""

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
words_differ = 0.02
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
    return Recipe("for a test", Bounds({"*": 0.1}, 0.1, 0.01), rules, name="own")


def through_manifest(recipe: Recipe) -> Recipe:
    """``recipe`` written to a manifest and read back."""
    gate = Gate("nothing", {}, None, 0, None, [], 0, 0, [], False)
    quantization = Quantization(recipe.name, recipe.settings(), "", None, {}, gate)
    manifest = msgspec.structs.replace(open_artifact(ARTIFACT).manifest, quantization=quantization)
    decoded = msgspec.json.decode(encode_manifest(manifest), type=Manifest).quantization
    assert decoded is not None
    return msgspec.structs.replace(msgspec.convert(decoded.settings, Recipe), name=decoded.recipe)


@pytest.mark.parametrize("name", shipped())
def test_bundled_recipe_is_complete_and_survives_the_manifest(name: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.name, recipe.from_quantized) == (name, False)
    assert recipe.description
    assert all(0 < recipe.bounds.relative(role) < 1 for role in ("encoder", "decoder"))
    assert 0 < recipe.bounds.words_differ < 0.1
    assert 0 <= recipe.bounds.error_rate < 0.1
    assert through_manifest(recipe) == recipe


def test_documented_recipes_are_bundled() -> None:
    assert set(shipped()) == {"fp16", "int4", "int4-small", "int8", "mixed", "q8"}


def test_first_matching_rule_applies() -> None:
    first = Keep(graph="decoder", node="/layers.[0]/*")
    second = W8A8(graph="decoder", operator="MatMul", error_bound=0.1)
    third = WeightOnly(graph="?ecoder", bits=8, block=32)
    rules = assign(recipe_of(first, second, third), NODES)
    assert rules == {
        ("decoder", "/embed/Gather"): third,
        ("decoder", "/layers.0/q/MatMul"): first,
        ("decoder", "/layers.1/q/MatMul"): second,
    }


def test_patterns_match_case_and_the_whole_name() -> None:
    conv, product = NODES[:2]
    assert Keep(graph="*", node="/conv?/*").matches(conv)
    assert not Keep(graph="*", node="/Conv?/*").matches(conv)
    assert not Keep(graph="*", node="/conv?").matches(conv)
    assert not Keep(graph="*", operator="MatMul").matches(conv)
    assert Keep(graph="*", kind="[ce]*").matches(conv)
    assert not Keep(graph="*", kind="[ce]*").matches(product)


def test_graph_share_limits_a_rule_to_small_graphs() -> None:
    """An encoder with a third of the weights matches; a decoder with the rest does not."""
    small, rest = W8A8(graph="*", kind="linear", graph_share=0.5, error_bound=0.1), Keep(graph="*")
    rules = assign(recipe_of(small, rest), NODES)
    assert {role for (role, _), rule in rules.items() if rule is small} == {"encoder"}
    assert small.matches(NODES[1]._replace(graph_share=0.5))
    assert not small.matches(NODES[1]._replace(graph_share=0.51))


def test_cross_attention_selects_graphs_with_it_or_without() -> None:
    """A rule without the key matches both."""
    node = Candidate("decoder", "/fc1/MatMul", "MatMul", "linear")
    for key, expected in ((True, [False, True]), (False, [True, False]), (None, [True, True])):
        rule = Keep(graph="*", cross_attention=key)
        assert [rule.matches(node._replace(cross_attention=has)) for has in (False, True)] == expected
    with pytest.raises(RecipeError, match=r"graph '\*', cross_attention true\) matches no node"):
        assign(recipe_of(Keep(graph="*", cross_attention=True), Keep(graph="*")), NODES)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([Keep(graph="joiner"), Keep(graph="*")], r"rule 1 \(graph 'joiner'\) matches no node"),
        (
            [Keep(graph="*", kind="head", operator="Gemm", graph_share=0.25), Keep(graph="*")],
            r"rule 1 \(graph '\*', kind 'head', operator 'Gemm', graph_share 0.25\) matches no node",
        ),
        ([Keep(graph="*"), Keep(graph="decoder")], r"rule 2 .* matches no node.*earlier rule.* optional = true"),
        (
            [Keep(graph="encoder"), W8A8(graph="*", error_bound=0.1)],
            r"rule 2: .* the Gather '/embed/Gather' of graph 'decoder'; .*'keep'",
        ),
    ],
)
def test_rules_that_do_not_fit_the_graphs(rules: list[W8A8 | Keep], message: str) -> None:
    with pytest.raises(RecipeError, match=f"recipe 'own', {message}") as error:
        assign(recipe_of(*rules), NODES)
    assert "\n" not in str(error.value)


def test_optional_rule_and_earlier_keep_rule() -> None:
    """An optional rule may match nothing; an earlier rule may keep an operator that a method does not support."""
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
        ("name = 'other'\n" + HEAD + KEEP, "the key `name`"),
        ("colour = 1\n" + HEAD + KEEP, "unknown field `colour`"),
        (HEAD + "speed = 1\n" + KEEP, "unknown field `speed`"),
        (HEAD + KEEP + "bits = 8\n", "unknown field `bits`"),
        (HEAD + WEIGHTS + "smoothing = { alpha = 0.5 }\n", "unknown field `alpha`"),
        (HEAD + KEEP.replace("keep", "drop"), "Invalid value 'drop'"),
        (HEAD + '[[rules]]\ngraph = "*"\n', "missing required field `method`"),
        (HEAD + KEEP.replace("graph", "node"), "missing required field `graph`"),
        (HEAD + WEIGHTS.replace("4", "5", 1), "Invalid enum value 5"),
        (HEAD + WEIGHTS.replace("64", "48"), "Invalid enum value 48"),
        (HEAD + INTEGERS.replace("error_bound = 0.05\n", ""), "missing required field `error_bound`"),
        (HEAD.replace("0.9", "true") + KEEP, "Expected `float`, got `bool`"),
        (HEAD.replace("0.9", "nan") + KEEP, "bounds.identical is nan, which is not between 0 and 1"),
        (HEAD.replace("0.9", "90.0") + KEEP, "bounds.identical is 90.0, which is not between 0 and 1"),
        (HEAD.replace("0.02", "nan") + KEEP, "bounds.words_differ is nan"),
        (HEAD.replace("0.02", "-0.02") + KEEP, "bounds.words_differ is -0.02"),
        (HEAD.replace("words_differ = 0.02\n", "") + KEEP, "missing required field `words_differ`"),
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
def test_error_in_a_file_is_one_sentence_with_its_path(file: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        read(file, text)
    assert str(error.value).startswith(f"{file}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unreadable_recipe_file(file: Path, tmp_path: Path) -> None:
    file.write_bytes(b"description = '\xff'")
    with pytest.raises(RecipeError, match=r"own\.toml: .*can't decode byte 0xff"):
        load_recipe(str(file))
    (tmp_path / "folder.toml").mkdir()
    for name, reason in (("folder.toml", "Is a directory"), ("absent.toml", "No such file or directory")):
        with pytest.raises(RecipeError, match=rf"{name}: .*\({reason}\)"):
            load_recipe(str(tmp_path / name))
    with pytest.raises(RecipeError, match=r"'int9'.*fp16, int4-small, .*\.toml"):
        load_recipe("int9")


def test_recipe_is_named_after_its_file(file: Path) -> None:
    recipe = read(file, HEAD + INTEGERS + WEIGHTS + "optional = true\nsensitive = { share = 0.25 }\n")
    assert recipe.name == "own"
    first, second = recipe.rules
    assert isinstance(first, W8A8)
    assert (first.smoothing is not None, first.fallback.bits, first.reduce_range) == (True, 8, False)
    assert isinstance(second, WeightOnly)
    assert second.optional
    assert second.sensitive is not None
    assert (second.sensitive.share, second.sensitive.bits, second.smoothing) == (0.25, 8, None)
    assert through_manifest(recipe) == recipe


@pytest.mark.parametrize("text", [HEAD.replace("0.1", "inf") + KEEP, HEAD + INTEGERS.replace("0.05", "inf")])
def test_infinite_bound_is_refused(file: Path, text: str) -> None:
    """A manifest is JSON, which has no infinity."""
    with pytest.raises(RecipeError, match=" is inf"):
        read(file, text)


def test_bounds_by_role() -> None:
    bounds = Bounds({"encoder": 0.2, "*": 0.1}, 0.1, 0.01)
    assert (bounds.relative("encoder"), bounds.relative("decoder")) == (0.2, 0.1)


def test_reduced_range_applies_to_w8a8_rules(file: Path) -> None:
    recipe = load_recipe("int4").with_reduced_range()
    assert recipe.name == "int4"
    for rule, before in zip(recipe.rules, load_recipe("int4").rules, strict=True):
        expected = msgspec.structs.replace(before, reduce_range=True) if isinstance(before, W8A8) else before
        assert rule == expected
    assert sum(isinstance(rule, W8A8) and rule.reduce_range for rule in recipe.rules) == 3
    assert json.dumps(recipe.settings()).count('"reduce_range": true') == 3
    for name in ("q8", "fp16"):
        with pytest.raises(RecipeError, match=f"recipe '{name}': --reduce-range .*w8a8"):
            load_recipe(name).with_reduced_range()


def test_only_recipes_that_use_activations_need_calibration(file: Path) -> None:
    assert {name for name in shipped() if not load_recipe(name).needs_calibration} == {"fp16"}
    assert not read(file, HEAD + WEIGHTS).needs_calibration
    for more in ("smoothing = {}\n", "sensitive = { share = 0.1 }\n"):
        assert read(file, HEAD + WEIGHTS + more).needs_calibration
    assert read(file, HEAD + INTEGERS).needs_calibration
