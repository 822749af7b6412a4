"""Measure the machine's memory bandwidth and matrix-product rates, and count a model's operations.

Products are timed through ONNX Runtime, with the kernels that a model uses. Operations are counted from ONNX Runtime's
profile of one pass over real features, which works for the graphs of every family.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort

from runtime.audio import load_audio
from runtime.bench.results import Configuration, Limits, Rates, Shares, Work
from runtime.engines.base import EngineOptions, SegmentOptions
from runtime.families import make_engine
from runtime.model.artifact import Artifact, open_artifact
from runtime.model.manifest import GraphSpec
from runtime.ort.threads import usable_cores

# 512 MiB, much more than a last-level cache holds.
_READ_BYTES = 1 << 29
# (M, K, N) of [M, K] × [K, N], as large as a product of a prefill: a rate that real products could reach.
_PRODUCT = (512, 1024, 4096)
_ROUNDS = 7
# Operators of matrix products, under the names that ONNX Runtime gives them after it has optimized a graph.
_PRODUCTS = frozenset(
    {"MatMul", "FusedMatMul", "Gemm", "MatMulNBits", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
)
_CONVOLUTIONS = frozenset({"Conv", "FusedConv", "NhwcFusedConv", "ConvInteger"})
_PAST = "past_key_values."

# Element types of onnx.TensorProto.
_FLOAT, _UINT8, _INT8, _INT32 = 1, 2, 3, 6


def measure_rates(threads: int) -> Rates:
    """Measure the rates of this machine with ``threads`` threads. Other load on it can only lower the result."""
    return Rates(
        memory_bytes=memory_bandwidth(threads),
        float_operations=product_rate(threads, integer=False),
        integer_operations=product_rate(threads, integer=True),
    )


def best_rates(rates: Sequence[Rates]) -> Rates:
    """Return the highest value of each rate."""
    return Rates(
        memory_bytes=max(each.memory_bytes for each in rates),
        float_operations=max(each.float_operations for each in rates),
        integer_operations=max(each.integer_operations for each in rates),
    )


def measure_work(model: str, clip: str) -> Work:
    """Count the operations of the encoder, and of the decoder if the model has one, on one segment of speech.

    The loop over frames of a CTC or transducer model has neither a prompt nor steps that are bound by reading weights,
    so it is not counted.

    Args:
        model: folder of the artifact.
        clip: path of the audio file.
    """
    artifact = open_artifact(model)
    rows, operations = _count_operations(artifact, clip)
    integer = artifact.manifest.quantization is not None
    encoder = operations["encoder"] / rows["encoder"]
    decoder = artifact.manifest.graphs.get("decoder")
    if decoder is None:
        return Work(integer_products=integer, encoder_operations=encoder)
    return Work(
        integer_products=integer,
        encoder_operations=encoder,
        decoder_operations=operations["decoder"] / rows["decoder"],
        weight_bytes=artifact.role_size("decoder"),
        cache_bytes=_cache_bytes(decoder),
    )


def memory_bandwidth(threads: int) -> float:
    """Measure the bytes a second that ``threads`` threads read; each takes the maximum of its part of 512 MiB."""
    parts = [np.ones(_READ_BYTES // 4 // threads, np.int32) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:  # numpy releases the GIL while it reduces
        return _READ_BYTES / _best(lambda: list(pool.map(np.max, parts)))


def product_rate(threads: int, *, integer: bool) -> float:
    """Measure the operations a second of a float32 product, or of uint8 by int8 if ``integer``: the best round."""
    m, k, n = _PRODUCT
    rng = np.random.default_rng(0)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    weights = rng.integers(-127, 127, (k, n), np.int8) if integer else rng.standard_normal((k, n), np.float32)
    left = rng.integers(0, 255, (m, k), np.uint8) if integer else rng.standard_normal((m, k), np.float32)
    session = ort.InferenceSession(_product_model(weights, integer=integer), options, ["CPUExecutionProvider"])
    return 2.0 * m * k * n / _best(lambda: session.run(None, {"a": left}))


def _best(call: Callable[[], object]) -> float:
    """Return the seconds of the fastest of several calls."""
    seconds = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _count_operations(artifact: Artifact, clip: str) -> tuple[dict[str, int], dict[str, float]]:
    """Count the operations of the encoder and the decoder on a clip.

    Other graphs, such as a transducer's joint, are left out. Operations are counted on the CPU whatever provider is
    measured, since they depend on the model alone.

    Returns:
        Rows by graph role (rows of audio for the encoder, prompt positions for the decoder), and operations by role.
    """
    engine = make_engine(artifact, EngineOptions())
    samples = load_audio(clip, engine.sample_rate)[: int(engine.segment_seconds * engine.sample_rate)]
    probes = engine.probes(samples, [], SegmentOptions())
    del engine
    rows: dict[str, int] = {}
    operations: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for index, probe in enumerate(probe for probe in probes if probe.role in ("encoder", "decoder")):
            options = ort.SessionOptions()
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / str(index))
            options.intra_op_num_threads = usable_cores()
            session = ort.InferenceSession(artifact.graph_path(probe.role), options, ["CPUExecutionProvider"])
            session.run(probe.outputs, probe.feeds)
            count = _operations(Path(session.end_profiling()))
            operations[probe.role] = operations.get(probe.role, 0.0) + count
            rows[probe.role] = rows.get(probe.role, 0) + probe.rows
    return rows, operations


class _Arguments(msgspec.Struct):
    op_name: str = ""
    input_type_shape: list[dict[str, list[int]]] = []
    output_type_shape: list[dict[str, list[int]]] = []


class _Event(msgspec.Struct):
    name: str = ""
    cat: str = ""
    args: _Arguments = msgspec.field(default_factory=_Arguments)


def _operations(profile: Path) -> float:
    """Count the multiplications and additions of matrix products and convolutions in a profile of ONNX Runtime."""
    total = 0.0
    for event in msgspec.json.decode(profile.read_bytes(), type=list[_Event]):
        if event.cat != "Node" or not event.name.endswith("_kernel_time"):
            continue
        operator = event.args.op_name
        inputs = [shape for each in event.args.input_type_shape for shape in each.values()]
        outputs = [shape for each in event.args.output_type_shape for shape in each.values()]
        if operator in _PRODUCTS:
            total += 2.0 * inputs[0][-1] * math.prod(outputs[0])
        elif operator in _CONVOLUTIONS:
            total += 2.0 * math.prod(inputs[1][1:]) * math.prod(outputs[0])
    return total


def _cache_bytes(decoder: GraphSpec) -> int:
    """Return the bytes of keys and values for one position of one row."""
    return sum(
        math.prod(size for size in tensor.shape if isinstance(size, int)) * np.dtype(tensor.dtype).itemsize
        for tensor in decoder.inputs
        if tensor.name.startswith(_PAST)
    )


def shares(limits: Limits, configuration: Configuration) -> Shares:
    """Divide the least possible time of each stage by its measured time.

    The least time of the encoder and of a prefill is operations / rate; for a quantized model the rate is the higher of
    the float32 and the 8-bit rate. The least time of a step is the larger of two: reading all weights and the keys and
    values of all active rows, and its operations / rate. A model without a decoder has only the encoder's share.
    """
    rates, work = limits.rates, limits.work
    rate = max(rates.float_operations, rates.integer_operations) if work.integer_products else rates.float_operations
    tokens = configuration.tokens
    encode = _share(tokens.audio * work.encoder_operations / rate, configuration.stages["encode"].median)
    if work.decoder_operations is None or work.weight_bytes is None or work.cache_bytes is None:
        return Shares(encode=encode, prefill=None, step=None)
    step = None
    if configuration.step:
        texts, rows = configuration.clips * configuration.segments, tokens.stepped / tokens.steps
        positions = (tokens.prompt + tokens.generated / 2) / texts
        read = work.weight_bytes + rows * positions * work.cache_bytes
        least = max(read / rates.memory_bytes, rows * work.decoder_operations / rate)
        step = least / configuration.step.median
    return Shares(
        encode=encode,
        prefill=_share(tokens.prompt * work.decoder_operations / rate, configuration.stages["prefill"].median),
        step=step,
    )


def _share(least: float, measured: float) -> float | None:
    return least / measured if least > 0 and measured > 0 else None


def _product_model(weights: np.ndarray[Any, Any], *, integer: bool) -> bytes:
    """Serialize an ONNX model of one product, ``a`` [M, K] by ``weights`` [K, N], in protobuf's wire format.

    Written by hand because the runtime does not depend on onnx. Field numbers are those of onnx.proto.
    """
    left, out = (_UINT8, _INT32) if integer else (_FLOAT, _FLOAT)
    tensor = b"".join(_varint(1, size) for size in weights.shape)
    tensor += _varint(2, _INT8 if integer else _FLOAT) + _bytes(8, b"b") + _bytes(9, weights.tobytes())
    node = _bytes(1, b"a") + _bytes(1, b"b") + _bytes(2, b"c") + _bytes(4, b"MatMulInteger" if integer else b"MatMul")
    graph = _bytes(1, node) + _bytes(2, b"product") + _bytes(5, tensor)
    graph += _bytes(11, _value(b"a", left)) + _bytes(12, _value(b"c", out))
    return _varint(1, 8) + _bytes(7, graph) + _bytes(8, _varint(2, 17))


def _value(name: bytes, element_type: int) -> bytes:
    """Serialize a ValueInfoProto of a matrix of any size."""
    matrix = _bytes(1, _bytes(2, b"rows")) + _bytes(1, _bytes(2, b"columns" + name))
    return _bytes(1, name) + _bytes(2, _bytes(1, _varint(1, element_type) + _bytes(2, matrix)))


def _varint(field: int, value: int) -> bytes:
    return _number(field << 3) + _number(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _number(field << 3 | 2) + _number(len(value)) + value


def _number(value: int) -> bytes:
    coded = bytearray()
    while value > 0x7F:
        coded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*coded, value])
