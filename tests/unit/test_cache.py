"""Tests of the int8 cache on a tiny attention graph: exact float branch, identical cache contents, refused features."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from quantize.calibration import ActivationStatistics
from quantize.errors import RecipeError
from quantize.methods import cache
from quantize.numerics import Floats, relative_error
from quantize.products import Weights, find_products

HEADS, KV_HEADS, SIZE, ROWS, CAPACITY = 4, 2, 16, 2, 12
HIDDEN = KV_HEADS * SIZE

Prompt = tuple[Floats, Floats, Floats]


def build(attributes: str = "do_rotary = 1", values: str = "v") -> ir.Model:
    """Attention over queries, keys and values of the graph input; with ``values="p"`` a product computes the values."""
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


def statistics_of(rows: Floats) -> ActivationStatistics:
    statistics = ActivationStatistics()
    statistics.add(rows, np.abs(rows).max(-1, keepdims=True), len(rows))
    statistics.finish()
    return statistics


def quantized(prompt: Prompt, attributes: str = "do_rotary = 1") -> ir.Model:
    model, (_, keys, values) = build(attributes), prompt
    statistics = {"k": statistics_of(keys.reshape(-1, HIDDEN)), "v": statistics_of(values.reshape(-1, HIDDEN))}
    assert cache.quantize(model, cache.scales(model.graph, statistics, [], Weights())) == 1
    return model


class Buffers:
    """Runs a graph with buffers that are bound as both past and present."""

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
        binding, ort_values = self.session.io_binding(), []
        feeds: dict[str, Any] = dict(zip("qkv", prompt, strict=True))
        feeds |= {"last": np.array(lengths, np.int32) - 1, "total": np.array(total, np.int32)}
        for name, array in feeds.items():
            ort_values.append(ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)))
            binding.bind_ortvalue_input(name, ort_values[-1])
        for name, buffer in zip("kv", self.past, strict=True):
            ort_values.append(ort.OrtValue.ortvalue_from_numpy(buffer[rows]))
            binding.bind_ortvalue_input(f"{name}0", ort_values[-1])
            binding.bind_ortvalue_output(f"{name}1", ort_values[-1])
        out = np.empty_like(prompt[0])
        binding.bind_ortvalue_output("a", ort.OrtValue.ortvalue_from_numpy(out))
        self.session.run_with_iobinding(binding)
        return out


def cut(prompt: Prompt, rows: slice, positions: slice = slice(None)) -> Prompt:
    q, k, v = (array[rows, positions] for array in prompt)
    return q, k, v


@pytest.fixture
def prompt(rng: np.random.Generator) -> Prompt:
    """Queries, keys and values of two rows of seven positions; a few channels are much larger."""
    q, k, v = (rng.standard_normal((ROWS, 7, heads * SIZE)).astype(np.float32) for heads in (HEADS, KV_HEADS, KV_HEADS))
    k[..., 3] *= 20
    v[..., [1, 30]] *= 50
    return q, k, v


@pytest.mark.parametrize("attributes", ["do_rotary = 1", "do_rotary = 0"])
def test_first_pass_attends_to_float_keys_and_values(prompt: Prompt, attributes: str) -> None:
    """Its result equals that of the float graph; only the stored part of the buffer is written, rounded."""
    exact, rounded = Buffers(build(attributes)), Buffers(quantized(prompt, attributes))
    expected, actual = (buffers.run(prompt, [7, 7], 7) for buffers in (exact, rounded))
    np.testing.assert_allclose(actual, expected, atol=2e-5)
    for stored in rounded.past:
        assert (stored[:, :, 7:] == 3).all()
        assert np.abs(stored[:, :, :7]).max() > 64  # of 127: the scales use the range


def test_rows_of_different_lengths_equal_single_rows(prompt: Prompt) -> None:
    """Prompts of different lengths are padded on the right."""
    together = Buffers(quantized(prompt))
    actual = together.run(prompt, [7, 4], 7)
    for row, length in enumerate((7, 4)):
        alone = Buffers(quantized(prompt), rows=1)
        expected = alone.run(cut(prompt, slice(row, row + 1), slice(length)), [length], length)
        np.testing.assert_allclose(actual[row, :length], expected[0], atol=2e-6)
        for both, one in zip(together.past, alone.past, strict=True):
            np.testing.assert_array_equal(both[row, :, :length], one[0, :, :length])


def test_row_can_be_started_in_a_slice_of_shared_buffers(prompt: Prompt) -> None:
    shared, alone = Buffers(quantized(prompt)), Buffers(quantized(prompt), rows=1)
    second = cut(prompt, slice(1, None))
    np.testing.assert_array_equal(shared.run(second, [7], 7, slice(1, 2)), alone.run(second, [7], 7))
    for both, one in zip(shared.past, alone.past, strict=True):
        np.testing.assert_array_equal(both[1:], one)
        assert (both[0] == 3).all()


@pytest.mark.parametrize("attributes", ["do_rotary = 1", "do_rotary = 0"])
def test_both_branches_store_the_same(prompt: Prompt, attributes: str) -> None:
    """A single pass gives the same cache as a pass, steps and a later pass of several tokens that rewinds."""
    exact = Buffers(build(attributes))
    whole, pieces = (Buffers(quantized(prompt, attributes)) for _ in range(2))
    expected = exact.run(prompt, [7, 7], 7)
    whole.run(prompt, [7, 7], 7)

    def part(start: int, end: int) -> Floats:
        """Runs one row at a time if a later pass has several tokens, as the operator requires."""
        positions, total = slice(start, end), CAPACITY if start else end
        if not start or end - start == 1:
            return pieces.run(cut(prompt, slice(None), positions), [end] * ROWS, total)
        rows = [slice(row, row + 1) for row in range(ROWS)]
        return np.concatenate([pieces.run(cut(prompt, row, positions), [end], total, row) for row in rows])

    part(0, 3)
    steps = [part(index, index + 1) for index in range(3, 6)]
    # A pass that rewinds writes the same again.
    np.testing.assert_allclose(part(4, 6), np.concatenate(steps[1:], 1), atol=2e-5)
    last = part(6, 7)
    for one, other in zip(whole.past, pieces.past, strict=True):
        np.testing.assert_array_equal(one, other)
    assert relative_error(last, expected[:, 6:]) < 0.03
    assert relative_error(np.concatenate(steps, 1), expected[:, 3:6]) < 0.03


def test_empty_past_gives_new_present(prompt: Prompt) -> None:
    """Without a buffer, a plain run of the graph returns a longer cache."""
    rounded, exact = Buffers(quantized(prompt)), Buffers(build())
    feeds = dict(zip("qkv", prompt, strict=True)) | {"last": np.full(2, 6, np.int32), "total": np.array(7, np.int32)}
    outputs = []
    for buffers in (rounded, exact):
        empty = np.zeros((ROWS, KV_HEADS, 0, SIZE), buffers.dtype)
        outputs.append(buffers.session.run(None, feeds | {"k0": empty, "v0": empty}))
    actual, expected = outputs
    assert actual[1].shape == (ROWS, KV_HEADS, 7, SIZE)
    assert relative_error(actual[0], expected[0]) < 0.03


def test_scales_of_rotated_keys() -> None:
    """The two channels of a rotated pair share the scale of their largest norm."""
    keys = np.zeros((1, HIDDEN), np.float32)
    keys[0, [0, SIZE // 2]] = 3, 4
    model = build()
    statistics = {"k": statistics_of(keys), "v": statistics_of(keys)}
    scales = cache.scales(model.graph, statistics, [], Weights())["gqa"]
    assert scales.keys[0] == scales.keys[SIZE // 2] >= 5 / 127
    assert scales.values[0] >= 3 / 127
    assert (scales.keys > 0).all()  # also for channels that were always zero
    assert (scales.values > 0).all()


def test_scales_of_keys_that_are_not_rotated() -> None:
    keys = np.zeros((1, HIDDEN), np.float32)
    keys[0, [0, SIZE // 2]] = 3, 4
    statistics = {"k": statistics_of(keys), "v": statistics_of(keys)}
    scales = cache.scales(build("do_rotary = 0").graph, statistics, [], Weights())["gqa"]
    assert 4 / 127 > scales.keys[0] >= 3 / 127
    assert scales.keys[SIZE // 2] >= 4 / 127


def test_scales_follow_smoothing_of_the_values(rng: np.random.Generator) -> None:
    """Calibration statistics are those before a scale was folded into the columns that compute the values."""
    model = build(values="p")
    rows = rng.standard_normal((50, HIDDEN)).astype(np.float32)
    products, weights = find_products(model.graph), Weights()
    statistics = {"k": statistics_of(rows), "p": statistics_of(rows)}
    before = cache.scales(model.graph, statistics, products, weights)["gqa"].values
    folded = np.linspace(0.1, 2, HIDDEN).astype(np.float32)
    weights.scale_columns(products[0], folded)
    after = cache.scales(model.graph, statistics, products, weights)["gqa"].values
    np.testing.assert_allclose(after, before * folded, rtol=1e-6)


@pytest.mark.parametrize(
    "attributes",
    [
        "do_rotary = 1, local_window_size = 4",
        "do_rotary = 1, softcap = 30.0",
        "do_rotary = 1, smooth_softmax = 1",
    ],
)
def test_unsupported_attention_is_refused(attributes: str) -> None:
    model = build(attributes)
    with pytest.raises(RecipeError, match="node 'gqa': the cache of attention with a window"):
        cache.scales(model.graph, {}, [], Weights())
