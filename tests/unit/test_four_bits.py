"""Nodes of each part of the small Parakeet, and rises of error rates."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.four_bits import PARTS, errors, part_recipe, rise
from quantize.recipe import Candidate, WeightOnly, assign, load_recipe

NODES = [
    Candidate("encoder", "/subsampling/linear/MatMul", "MatMul", "linear", 0.8),
    Candidate("encoder", "/layers/0/feed_forward1/linear1/MatMul", "MatMul", "linear", 0.8),
    Candidate("encoder", "/layers/0/self_attn/q_proj/MatMul", "MatMul", "linear", 0.8),
    Candidate("encoder", "/layers/0/conv/pointwise_conv1/MatMul", "MatMul", "linear", 0.8),
    Candidate("encoder", "/head/MatMul", "MatMul", "linear", 0.8),
    Candidate("decoder_joint", "/embedding/Gather", "Gather", "embedding", 0.2),
    Candidate("decoder_joint", "/layers/0/Gemm", "Gemm", "linear", 0.2),
    Candidate("decoder_joint", "/decoder_projector/Gemm", "Gemm", "linear", 0.2),
    Candidate("decoder_joint", "/head/Gemm", "Gemm", "head", 0.2),
]


def bits(name: str) -> dict[str, int]:
    """Return the bits of weight-only nodes, by role and name."""
    recipe = part_recipe(name) if name in PARTS else load_recipe(name)
    rules = assign(recipe, NODES) if name in PARTS else {}
    rules = rules or {(n.role, n.name): next(rule for rule in recipe.rules if rule.matches(n)) for n in NODES}
    return {"".join(key): rule.bits for key, rule in rules.items() if isinstance(rule, WeightOnly)}


def test_each_node_is_in_exactly_one_part() -> None:
    nodes = [node for part in PARTS for node, each in bits(part).items() if each == 4]
    assert sorted(nodes) == sorted(node.role + node.name for node in NODES)


def test_int4_has_four_bits_only_in_the_layers_of_a_conformer() -> None:
    inner = [part for part in PARTS if part in ("feed forward", "attention", "convolution modules")]
    four = {node for node, each in bits("int4").items() if each == 4}
    assert four == {node for part in inner for node in bits(part)}


def test_errors_are_counted_in_words() -> None:
    assert errors("One, two three.", "one too three four") == (2, 3)


def test_rise_is_in_percentage_points_with_an_interval_over_utterances() -> None:
    before = np.array([[0, 10], [1, 10], [0, 10], [1, 10]])
    same = rise(before, before)
    assert same == (0.0, 0.0)
    points, half = rise(before, before + np.array([[2, 0], [0, 0], [2, 0], [0, 0]]))
    assert points == pytest.approx(10)
    assert half == pytest.approx(196 * 2 / 40)
