"""An int8 cache on a tiny attention: the float branch is exact, both write the same, and what cannot be is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from quantize.calibration import Inputs
from quantize.errors import RecipeError
from quantize.methods import cache
from quantize.numerics import Floats, relative_error
from quantize.products import Weights, find_products

HEADS, KV_HEADS, SIZE, ROWS, CAPACITY = 4, 2, 16, 2, 12
HIDDEN = KV_HEADS * SIZE

Prompt = tuple[Floats, Floats, Floats]


def build(attributes: str = "do_rotary = 1", values: str = "v") -> ir.Model:
    """Attention over given queries and keys; ``values`` may be made by a product."""
    names = "<ir_version: 10, opset_import: ['': 21, 'com.microsoft': 1]>".replace("'", '"')
    product = "p = MatMul(v, w)" if values == "p" else ""
    rotary = "" if "do_rotary = 0" in attributes else ", cos, sin"
    text = f"""{names} tiny (
        float[B, S, {HEADS * SIZE}] q, float[B, S, {HIDDEN}] k, float[B, S, {HIDDEN}] v,
        float[B, {KV_HEADS}, P, {SIZE}] k0, float[B, {KV_HEADS}, P, {SIZE}] v0, int32[B] last, int32 total
    ) => (float[B, S, {HEADS * SIZE}] a, float[B, {KV_HEADS}, T, {SIZE}] k1, float[B, {KV_HEADS}, T, {SIZE}] v1) {{
        {product}
        [gqa] a, k1, v1 = com.microsoft.GroupQueryAttention
            <num_heads = {HEADS}, kv_num_heads = {KV_HEADS}, {attributes}>
            (q, k, {values}, k0, v0, last, total{rotary})
    }}"""
    proto = onnx.parser.parse_model(text)
    angles = np.arange(64)[:, None] / 100 ** (np.arange(SIZE // 2) / (SIZE // 2))
    for name, table in (("cos", np.cos(angles)), ("sin", np.sin(angles)), ("w", np.eye(HIDDEN))):
        if (values == "p") if name == "w" else rotary:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(table.astype(np.float32), name))
    return ir.from_proto(proto)


def statistics(rows: Floats) -> Inputs:
    made = Inputs()
    made.add(rows, np.abs(rows).max(-1, keepdims=True), len(rows))
    made.finish()
    return made


def quantized(prompt: Prompt, attributes: str = "do_rotary = 1") -> ir.Model:
    model, (_, keys, values) = build(attributes), prompt
    inputs = {"k": statistics(keys.reshape(-1, HIDDEN)), "v": statistics(values.reshape(-1, HIDDEN))}
    assert cache.quantize(model, cache.scales(model.graph, inputs, [], Weights())) == 1
    return model


class Buffers:
    """A graph run over buffers that are its past and its present in one."""

    def __init__(self, model: ir.Model, rows: int = ROWS) -> None:
        model.graph.sort()
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        data = ir.to_proto(model).SerializeToString()
        self.session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self.dtype = np.int8 if "int8" in self.session.get_inputs()[3].type else np.float32
        self.past = [np.full((rows, KV_HEADS, CAPACITY, SIZE), 3, self.dtype) for _ in range(2)]

    def run(self, prompt: Prompt, lengths: list[int], total: int, rows: slice = slice(None)) -> Floats:
        binding, kept = self.session.io_binding(), []
        feeds: dict[str, Any] = dict(zip("qkv", prompt, strict=True))
        feeds |= {"last": np.array(lengths, np.int32) - 1, "total": np.array(total, np.int32)}
        for name, array in feeds.items():
            kept.append(ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)))
            binding.bind_ortvalue_input(name, kept[-1])
        for name, buffer in zip("kv", self.past, strict=True):
            kept.append(ort.OrtValue.ortvalue_from_numpy(buffer[rows]))
            binding.bind_ortvalue_input(f"{name}0", kept[-1])
            binding.bind_ortvalue_output(f"{name}1", kept[-1])
        out = np.empty_like(prompt[0])
        binding.bind_ortvalue_output("a", ort.OrtValue.ortvalue_from_numpy(out))
        self.session.run_with_iobinding(binding)
        return out


def cut(prompt: Prompt, rows: slice, positions: slice = slice(None)) -> Prompt:
    q, k, v = (each[rows, positions] for each in prompt)
    return q, k, v


@pytest.fixture
def prompt(rng: np.random.Generator) -> Prompt:
    """Queries, keys and values of two rows of seven positions; a few channels are much larger."""
    q, k, v = (rng.standard_normal((ROWS, 7, heads * SIZE)).astype(np.float32) for heads in (HEADS, KV_HEADS, KV_HEADS))
    k[..., 3] *= 20
    v[..., [1, 30]] *= 50
    return q, k, v


@pytest.mark.parametrize("attributes", ["do_rotary = 1", "do_rotary = 0"])
def test_a_first_pass_attends_to_floats(prompt: Prompt, attributes: str) -> None:
    """Its result is that of the float graph; only what is stored is rounded, and nothing beyond it is touched."""
    exact, rounded = Buffers(build(attributes)), Buffers(quantized(prompt, attributes))
    expected, found = (each.run(prompt, [7, 7], 7) for each in (exact, rounded))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    for stored in rounded.past:
        assert (stored[:, :, 7:] == 3).all()
        assert np.abs(stored[:, :, :7]).max() > 64  # of 127: no scale is wasted


def test_rows_of_different_lengths(prompt: Prompt) -> None:
    """Padded on the right, as prompts of different lengths are: each row is what it is alone."""
    together = Buffers(quantized(prompt))
    found = together.run(prompt, [7, 4], 7)
    for row, length in enumerate((7, 4)):
        alone = Buffers(quantized(prompt), rows=1)
        expected = alone.run(cut(prompt, slice(row, row + 1), slice(length)), [length], length)
        np.testing.assert_allclose(found[row, :length], expected[0], atol=2e-6)
        for both, one in zip(together.past, alone.past, strict=True):
            np.testing.assert_array_equal(both[row, :, :length], one[0, :, :length])


def test_a_row_is_begun_in_a_slice_of_shared_buffers(prompt: Prompt) -> None:
    shared, alone = Buffers(quantized(prompt)), Buffers(quantized(prompt), rows=1)
    second = cut(prompt, slice(1, None))
    np.testing.assert_array_equal(shared.run(second, [7], 7, slice(1, 2)), alone.run(second, [7], 7))
    for both, one in zip(shared.past, alone.past, strict=True):
        np.testing.assert_array_equal(both[1:], one)
        assert (both[0] == 3).all()


@pytest.mark.parametrize("attributes", ["do_rotary = 1", "do_rotary = 0"])
def test_both_branches_store_the_same(prompt: Prompt, attributes: str) -> None:
    """One pass, or a pass, steps and a later pass of several tokens that rewinds: the same cache."""
    exact = Buffers(build(attributes))
    whole, pieces = (Buffers(quantized(prompt, attributes)) for _ in range(2))
    expected = exact.run(prompt, [7, 7], 7)
    whole.run(prompt, [7, 7], 7)

    def part(start: int, end: int) -> Floats:
        """A later pass of several tokens is for one row at a time, which is the operator's rule."""
        positions, total = slice(start, end), CAPACITY if start else end
        if not start or end - start == 1:
            return pieces.run(cut(prompt, slice(None), positions), [end] * ROWS, total)
        rows = [slice(row, row + 1) for row in range(ROWS)]
        return np.concatenate([pieces.run(cut(prompt, row, positions), [end], total, row) for row in rows])

    part(0, 3)
    steps = [part(index, index + 1) for index in range(3, 6)]
    np.testing.assert_allclose(
        part(4, 6), np.concatenate(steps[1:], 1), atol=2e-5
    )  # rewinds, and writes the same again
    last = part(6, 7)
    for one, other in zip(whole.past, pieces.past, strict=True):
        np.testing.assert_array_equal(one, other)
    assert relative_error(last, expected[:, 6:]) < 0.03
    assert relative_error(np.concatenate(steps, 1), expected[:, 3:6]) < 0.03


def test_without_buffers(prompt: Prompt) -> None:
    """An empty past makes a new present, as a plain run of the graph does."""
    made, exact = Buffers(quantized(prompt)), Buffers(build())
    feeds = dict(zip("qkv", prompt, strict=True)) | {"last": np.full(2, 6, np.int32), "total": np.array(7, np.int32)}
    found, expected = (
        each.session.run(None, feeds | {name: np.zeros((ROWS, KV_HEADS, 0, SIZE), each.dtype) for name in ("k0", "v0")})
        for each in (made, exact)
    )
    assert found[1].shape == (ROWS, KV_HEADS, 7, SIZE)
    assert relative_error(found[0], expected[0]) < 0.03


def test_keys_fit_however_they_are_rotated() -> None:
    """The two channels of a pair have one scale: what their longest vector can become."""
    keys = np.zeros((1, HIDDEN), np.float32)
    keys[0, [0, SIZE // 2]] = 3, 4
    model = build()
    inputs = {"k": statistics(keys), "v": statistics(keys)}
    found = cache.scales(model.graph, inputs, [], Weights())["gqa"]
    assert found.keys[0] == found.keys[SIZE // 2] >= 5 / 127
    assert found.values[0] >= 3 / 127
    assert (found.keys > 0).all()  # also where calibration saw nothing but zeros
    assert (found.values > 0).all()


def test_keys_that_are_not_rotated_have_their_own_scales() -> None:
    keys = np.zeros((1, HIDDEN), np.float32)
    keys[0, [0, SIZE // 2]] = 3, 4
    inputs = {"k": statistics(keys), "v": statistics(keys)}
    found = cache.scales(build("do_rotary = 0").graph, inputs, [], Weights())["gqa"]
    assert 4 / 127 > found.keys[0] >= 3 / 127
    assert found.keys[SIZE // 2] >= 4 / 127


def test_values_that_smoothing_scaled(rng: np.random.Generator) -> None:
    """Calibration saw them before a scale was folded into the columns that make them."""
    model = build(values="p")
    rows = rng.standard_normal((50, HIDDEN)).astype(np.float32)
    products, weights = find_products(model.graph), Weights()
    inputs = {"k": statistics(rows), "p": statistics(rows)}
    before = cache.scales(model.graph, inputs, products, weights)["gqa"].values
    folded = np.linspace(0.1, 2, HIDDEN).astype(np.float32)
    weights.scale_columns(products[0], folded)
    after = cache.scales(model.graph, inputs, products, weights)["gqa"].values
    np.testing.assert_allclose(after, before * folded, rtol=1e-6)


@pytest.mark.parametrize(
    "attributes",
    [
        "do_rotary = 1, local_window_size = 4",
        "do_rotary = 1, softcap = 30.0",
        "do_rotary = 1, smooth_softmax = 1",
    ],
)
def test_attention_of_another_kind_is_refused(attributes: str) -> None:
    model = build(attributes)
    with pytest.raises(RecipeError, match="node 'gqa': the cache of attention with a window"):
        cache.scales(model.graph, {}, [], Weights())
