"""ONNX graphs on disk: the 2 GB rule of protobuf, external data, and what a graph's interface is."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from runtime.artifact import GraphSpec, TensorSpec

# protobuf cannot hold 2 GiB, and ONNX Runtime maps external data instead of copying it: beyond this size weights go
# beside the graph.
INLINE_LIMIT_BYTES = 128 * 2**20

_DTYPES = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.INT64: "int64",
    ir.DataType.INT32: "int32",
    ir.DataType.INT8: "int8",
    ir.DataType.UINT8: "uint8",
    ir.DataType.BOOL: "bool",
}


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers of the main graph."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def save_graph(model: ir.Model, path: Path, inline_limit: int = INLINE_LIMIT_BYTES) -> GraphSpec:
    """Write ``model`` to ``path``, with weights in ``<path>.data`` when they exceed ``inline_limit`` bytes.

    The caller provides a folder that is not yet visible under its final name: this function does not rename.

    Returns:
        The manifest's entry for the graph.
    """
    model.graph.sort()
    data = f"{path.name}.data" if weight_bytes(model) > inline_limit else None
    ir.save(model, path, external_data=data)
    return interface(model, path.name, data)


def interface(model: ir.Model, file: str, data: str | None = None) -> GraphSpec:
    """The manifest's entry for ``model`` stored as ``file``."""
    return GraphSpec(
        file=file,
        data=data,
        inputs=[_tensor(value) for value in model.graph.inputs],
        outputs=[_tensor(value) for value in model.graph.outputs],
    )


def read_interface(path: Path) -> GraphSpec:
    """The manifest's entry for a graph on disk; weights are not read."""
    data = path.with_name(f"{path.name}.data")
    return interface(ir.load(path), path.name, data.name if data.exists() else None)


def _tensor(value: ir.Value) -> TensorSpec:
    if value.name is None or value.dtype is None or value.shape is None:
        raise ValueError(f"graph input or output {value.name!r} has no name, type or shape")
    shape: list[int | str] = [d if isinstance(d, int) else str(d.value) for d in value.shape]
    return TensorSpec(name=value.name, dtype=_DTYPES[value.dtype], shape=shape)
