"""Tests of matrices with several readers: stored once, saved with one initializer a reader, merged when loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from quantize import graph as graphs
from quantize.graph import Editor, load_graph, save_graph


@pytest.fixture
def tied(rng: np.random.Generator) -> ir.Model:
    """A graph that looks up rows of a table and multiplies them with the same table."""
    ids = ir.Value(name="ids", shape=ir.Shape(["n"]), type=ir.TensorType(ir.DataType.INT64))
    graph = ir.Graph([ids], [], nodes=[], opset_imports={"": 21})
    edit = Editor(graph, "model")
    table = edit.constant("table", rng.standard_normal((50, 8)).astype(np.float32))
    small = edit.constant("small", np.ones(8, np.float32))
    rows = edit.node("Add", [edit.node("Gather", [table, ids]), small])
    scores = edit.node("Gemm", [edit.node("Mul", [rows, small]), table], transB=1)
    scores.name, scores.shape, scores.type = "scores", ir.Shape(["n", 50]), ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(scores)
    return ir.Model(graph, ir_version=10)


def run(path: Path) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    scores: np.ndarray = session.run(None, {"ids": np.array([3, 7])})[0]
    return scores


def test_each_reader_of_a_large_matrix_gets_its_own_initializer(
    tied: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_graph(tied, tmp_path / "whole.onnx")
    monkeypatch.setattr(graphs, "_LARGE_BYTES", 1000)
    assert save_graph(tied, tmp_path / "split.onnx", inline_limit=0).data == "split.onnx.data"
    assert (tmp_path / "split.onnx.data").stat().st_size < 2 * 50 * 8 * 4
    saved = ir.load(tmp_path / "split.onnx").graph
    names = [node.inputs[index].name for node, index in zip(saved, (0, 1, 1, 1), strict=True) if node.inputs[index]]  # type: ignore[union-attr]
    assert names[0] != names[-1]
    offsets = [saved.initializers[str(name)].const_value.offset for name in (names[0], names[-1])]  # type: ignore[union-attr]
    assert offsets[0] == offsets[1]
    assert names[1] == names[2]  # small initializers stay shared
    np.testing.assert_array_equal(run(tmp_path / "split.onnx"), run(tmp_path / "whole.onnx"))


def test_loading_merges_initializers_over_the_same_bytes(
    tied: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "_LARGE_BYTES", 1000)
    save_graph(tied, tmp_path / "split.onnx", inline_limit=0)
    loaded = load_graph(tmp_path / "split.onnx")
    assert len(loaded.graph.initializers) == 2
    gather, *_, gemm = loaded.graph
    assert gather.inputs[0] is gemm.inputs[1]
    save_graph(loaded, tmp_path / "again.onnx")
    np.testing.assert_array_equal(run(tmp_path / "again.onnx"), run(tmp_path / "split.onnx"))
