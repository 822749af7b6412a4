"""Tests of node kinds, which depend on operators and connections but not on names."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from quantize.node_kinds import find_node_kinds, has_cross_attention
from quantize.recipe import KINDS
from tests.unit.test_methods import build

WEIGHTS: Mapping[str, tuple[int, ...]] = {
    "table": (30, 16),
    "square": (16, 16),
    "wide": (16, 30),
    "bias": (30,),
    "gain": (16,),
    "stem": (16, 1, 3, 3),
    "point": (16, 16, 1, 1),
    "strided": (16, 16, 1, 1),
    "groups": (16, 1, 3),
    "time": (16, 16, 3),
}


def kinds(text: str) -> dict[str, str]:
    """Kinds by node name, of a graph with the weights it reads."""
    weights = {name: np.ones(shape, np.float32) for name, shape in WEIGHTS.items() if name in text}
    return {node.name or "": kind for node, kind in find_node_kinds(build(text, **weights).graph).items()}


def test_every_kind_is_found() -> None:
    sequence = kinds("""(int64[B, S] ids, float[B, S, 16] x) => (float[B, S, 30] logits)
        { [look] e = Gather(table, ids) [sum] s = Add(e, x) [norm] n = LayerNormalization(s, gain)
          [product] p = MatMul(n, square) [shift] q = Add(p, gain) [soft] a = Softmax(q) [act] g = Gelu(a)
          [head] h = MatMul(g, wide) [bias] logits = Add(h, bias) }""")
    assert sequence == {
        "look": "embedding",
        "sum": "sum",
        "norm": "normalization",
        "product": "linear",
        "shift": "other",
        "soft": "softmax",
        "act": "other",
        "head": "head",
        "bias": "other",
    }
    images = kinds("""(float[B, 1, H, W] x) => (float[B, 16, H2, W2] y)
        { [stem] a = Conv<strides = [2, 2]>(x, stem) [point] b = Conv(a, point)
          [strided] y = Conv<strides = [2, 2]>(b, strided) }""")
    assert images == {"stem": "convolution", "point": "pointwise", "strided": "convolution"}
    times = kinds("""(float[B, 16, T] x) => (float[B, 16, T2] y)
        { [groups] a = Conv<group = 16>(x, groups) [time] y = Conv(a, time) }""")
    assert times == {"groups": "depthwise", "time": "convolution"}
    assert {*sequence.values(), *images.values(), *times.values()} == set(KINDS)


@pytest.mark.parametrize(
    "tail",
    [
        "logits = MatMul(x, wide)",
        "[b] h = MatMul(x, wide) [l] log_probs = LogSoftmax(h)",
        "[b] h = Gemm<transB = 1>(x, table, bias) [s] token_logits, duration_logits = Split<axis = -1>(h, parts)",
        "[b] h = MatMul(x, wide) [s] s = Shape(x) [r] logits = Reshape(h, s)",
    ],
)
def test_head_computes_token_scores(tail: str) -> None:
    """Biases, logarithms, splits and reshapes may follow the head."""
    outputs = [name for name in ("token_logits", "duration_logits") if name in tail] or [
        "log_probs" if "log_probs" in tail else "logits"
    ]
    named = tail if tail.startswith("[") else f"[b] {tail}"
    output_types = ", ".join(f"float[M, N{index}] {name}" for index, name in enumerate(outputs))
    parts = "int64[2] parts, " if "parts" in tail else ""
    assert kinds(f"({parts}float[M, 16] x) => ({output_types}) {{ {named} }}")["b"] == "head"


def test_product_without_scores_is_not_a_head() -> None:
    embeds = "(float[M, 16] x) => (float[M, 16] audio_embeds) { [p] audio_embeds = MatMul(x, square) }"
    assert kinds(embeds) == {"p": "linear"}
    two = """(float[M, 16] x, float[M, 30] y) => (float[M, 30] logits)
        { [p] p = MatMul(x, wide) [sum] logits = Add(p, y) }"""
    assert kinds(two) == {"p": "linear", "sum": "sum"}


@pytest.mark.parametrize(("keys", "expected"), [("k, v", True), ("x, x", False), ("l, r", False)])
def test_cross_attention_reads_keys_and_values_that_are_inputs(keys: str, expected: bool) -> None:
    """Not those that the graph computes, nor an input that has keys, values and queries in one."""
    attention = f"com.microsoft.MultiHeadAttention<num_heads = 2>(x, {keys})"
    graph = build(
        f"""(float[B, S, 16] q, float[B, T, 16] k, float[B, T, 16] v) => (float[B, S, 16] y)
        {{ x = Identity(q) l = Identity(k) r = Identity(v) y = {attention} }}"""
    ).graph
    assert has_cross_attention(graph) is expected
