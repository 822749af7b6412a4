"""Parts of Whisper that are quantized alone, and the loss of a model against its parent."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.parts import METHODS, PARTS, TABLE, loss, part_recipe
from quantize.recipe import Candidate, Keep, assign

_LINEAR = ("self_attn/q_proj", "self_attn/k_proj", "self_attn/v_proj", "self_attn/out_proj", "fc1", "fc2")
NODES = [
    *(Candidate("encoder", f"/encoder/{name}/Conv", "Conv", "convolution") for name in ("conv1", "conv2")),
    *(Candidate("encoder", f"/encoder/layers/0/{name}/MatMul", "MatMul", "linear") for name in _LINEAR),
    *(Candidate("encoder", f"/decoder/layers/0/encoder_attn/{each}_proj/MatMul", "MatMul", "linear") for each in "kv"),
    *(Candidate("decoder", f"/model/layers/0/{name}/MatMul", "MatMul", "linear") for name in _LINEAR),
    *(
        Candidate("decoder", f"/model/layers/0/encoder_attn/{name}/MatMul", "MatMul", "linear")
        for name in ("q_proj", "out_proj")
    ),
    Candidate("decoder", "/model/embed_tokens/Gather", "Gather", "embedding"),
    Candidate("decoder", "/lm_head/Gemm", "Gemm", "head"),
]


def quantized(part: str, method: str) -> set[str]:
    rules = assign(part_recipe(part, method), NODES)
    return {role + name for (role, name), rule in rules.items() if not isinstance(rule, Keep)}


def test_every_product_is_in_a_part() -> None:
    found = {part: quantized(part, "4 bits") for part in PARTS}
    assert all(found.values())
    assert set().union(*found.values()) == {node.role + node.name for node in NODES}
    assert not any("decoder/" in name for name in found["encoder: all"])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_fits_every_part_but_lookups(method: str) -> None:
    assert all(quantized(part, method) for part in PARTS if part != TABLE or "bits" in method)


def test_loss_is_the_mean_divergence_and_the_share_of_other_decisions() -> None:
    parent = [np.log([[0.5, 0.5], [0.9, 0.1]]), np.log([[0.2, 0.8]])]
    assert loss(parent, iter(parent)) == pytest.approx((0.0, 0.0))
    child = iter([np.log([[0.25, 0.75], [0.9, 0.1]]), np.log([[0.8, 0.2]])])
    expected = (0.5 * np.log(2.0) + 0.5 * np.log(2.0 / 3.0)) + (0.2 * np.log(0.25) + 0.8 * np.log(4.0))
    assert loss(parent, child) == pytest.approx((expected / 3, 2 / 3))
