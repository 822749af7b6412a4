"""Time and error of single kernels that recipes use, by operator and block size, at the sizes of the 0.6B."""

from __future__ import annotations

import logging
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from quantize.graph import MICROSOFT, Editor
from quantize.methods import per_element, w8a8, weight_only
from quantize.numerics import quantize_blocks, quantize_columns, relative_error
from quantize.products import Weights, find_products
from quantize.recipe import Bits, Block, WeightOnly
from runtime.ort.threads import usable_cores

log = logging.getLogger("benchmarks")

Floats = npt.NDArray[np.float32]

CHANNELS, CHUNKS = 480, 16
INNER, OUTER = 1024, 3072
BLOCKS: tuple[Block, ...] = (16, 32, 64, 128, 256)
ROUNDS = 9


def measure(_work: Path) -> dict[str, Any]:
    """Return median milliseconds and errors of forms of the convolution stem, and of products by bits and block."""
    rng = np.random.default_rng(0)
    return {"stem": _stem(rng), "blocks": _blocks(rng)}


def _session(graph: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.log_severity_level = 3
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _graph(shape: list[int | str]) -> tuple[ir.Model, ir.Value]:
    x = ir.Value(name="x", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 21, MICROSOFT: 1})
    return ir.Model(graph, ir_version=10), x


def _finish(model: ir.Model, output: ir.Value) -> bytes:
    output.type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(output)
    model.graph.sort()
    return bytes(ir.to_proto(model).SerializeToString())


def _medians(graphs: dict[str, bytes], x: Floats, calls: int = 1) -> dict[str, float]:
    """Return the median milliseconds of a call. One session exists at a time, since idle ones have spinning threads."""
    taken: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(ROUNDS):
        for name, graph in graphs.items():
            session = _session(graph)
            session.run(None, {"x": x})
            began = time.perf_counter()
            for _ in range(calls):
                session.run(None, {"x": x})
            taken[name].append(1000 * (time.perf_counter() - began) / calls)
    return {name: statistics.median(values) for name, values in taken.items()}


def _stem(rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """Three convolutions of 480 channels over 16 s of audio: float, ``ConvInteger``, patches, patches by element."""
    weights = [
        (rng.standard_normal((CHANNELS, into, 3, 3)) / np.sqrt(9 * into)).astype(np.float32)
        for into in (1, CHANNELS, CHANNELS)
    ]
    x = rng.standard_normal((CHUNKS, 1, 128, 100)).astype(np.float32)
    graphs = {
        "Conv, float32": _floats(weights),
        "ConvInteger": _conv_integer(weights),
        "patches": _patches(weights, x, alone=False),
        "patches, element by element": _patches(weights, x, alone=True),
    }
    outputs = {name: _session(graph).run(None, {"x": x})[0] for name, graph in graphs.items()}
    medians = _medians(graphs, x)
    return {
        name: {"ms": medians[name], "relative_error": relative_error(output, outputs["Conv, float32"])}
        for name, output in outputs.items()
    }


_CONV: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}


def _float_stem(weights: list[Floats]) -> tuple[ir.Model, ir.Value]:
    model, value = _graph(["batch", 1, 128, 100])
    for index, weight in enumerate(weights):
        edit = Editor(model.graph, f"conv{index}")
        value = edit.node("Gelu", [edit.node("Conv", [value, edit.constant("weight", weight)], **_CONV)])
    return model, value


def _floats(weights: list[Floats]) -> bytes:
    model, value = _float_stem(weights)
    return _finish(model, value)


def _conv_integer(weights: list[Floats]) -> bytes:
    model, value = _graph(["batch", 1, 128, 100])
    for index, weight in enumerate(weights):
        edit = Editor(model.graph, f"conv{index}")
        if index == 0:
            value = edit.node("Gelu", [edit.node("Conv", [value, edit.constant("weight", weight)], **_CONV)])
            continue
        scale = np.abs(weight).max((1, 2, 3), keepdims=True) / 127
        rounded = ir.Node("", "DynamicQuantizeLinear", [value], num_outputs=3, name=f"round{index}")
        for number, output in enumerate(rounded.outputs):
            output.name = f"round{index}/{number}"
        model.graph.append(rounded)
        kernel = edit.constant("weight", np.rint(weight / scale).astype(np.int8))
        product = edit.node("ConvInteger", [rounded.outputs[0], kernel, rounded.outputs[2]], **_CONV)
        scales = edit.constant("scale", scale.reshape(1, -1, 1, 1).astype(np.float32))
        both = edit.node("Mul", [rounded.outputs[1], scales])
        floats = edit.node("Mul", [edit.node("Cast", [product], to=ir.DataType.FLOAT), both])
        value = edit.node("Gelu", [floats])
    return _finish(model, value)


def _patches(weights: list[Floats], x: Floats, *, alone: bool) -> bytes:
    """The stem as the int8 recipe writes it, with the whole batch at once or element by element."""
    model, value = _float_stem(weights)
    edit = Editor(model.graph, "end")
    end = edit.node("Identity", [edit.node("Transpose", [value], perm=[0, 3, 1, 2])])
    back = edit.node("Transpose", [end], perm=[0, 2, 3, 1])
    rounding = w8a8.ActivationRounding(model.graph)
    for product in find_products(model.graph):
        if product.patch <= w8a8.FLOAT_PATCH:
            w8a8.quantize_float(model.graph, rounding, product, Weights())
        else:
            w8a8.quantize(model.graph, rounding, product, quantize_columns(Weights().matrix(product)), 128)
    w8a8.cancel_transposes(model.graph)
    model.graph.sort()
    if alone and not per_element.wrap(model.graph, model.graph.inputs[0], "each"):
        raise RuntimeError("the stem cannot be split by batch element")
    return _finish(model, back)


def _blocks(rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """Products [M, 1024] × [1024, 3072] with Gaussian weights: errors of weights and kernel, time by rows."""
    matrix = (rng.standard_normal((INNER, OUTER)) / np.sqrt(INNER)).astype(np.float32)
    rows = {count: rng.standard_normal((count, INNER)).astype(np.float32) for count in (8, 400)}
    graphs: dict[str, bytes] = {}
    results: dict[str, dict[str, float]] = {}
    exact = rows[8] @ matrix
    bits: Bits
    for bits in (8, 4):
        for block in BLOCKS:
            for symmetric in (True, False):
                name = f"{bits} bits, blocks of {block}{'' if symmetric else ', zero points'}"
                model, x = _graph(["rows", INNER])
                edit = Editor(model.graph, "product")
                weight = edit.constant("weight", matrix)
                value = edit.node("MatMul", [x, weight])
                model.graph.outputs.append(value)
                (product,) = find_products(model.graph)
                rule = WeightOnly(graph="*", bits=bits, block=block, symmetric=symmetric)
                weight_only.quantize(model.graph, [product], Weights(), rule, weight_only.InputParts(model.graph))
                model.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
                model.graph.sort()
                graphs[name] = bytes(ir.to_proto(model).SerializeToString())
                dequantized = quantize_blocks(matrix, bits, block, symmetric=symmetric).dequantized()
                output = _session(graphs[name]).run(None, {"x": rows[8]})[0]
                results[name] = {
                    "weights": relative_error(rows[8] @ dequantized, exact),
                    "kernel": relative_error(output, rows[8] @ dequantized),
                }
    for count, some in rows.items():
        for name, milliseconds in _medians(graphs, some, 4).items():
            results[name][f"ms_{count}"] = milliseconds
    return results
