"""ONNX graphs: reading, editing and saving them, the 2 GB rule of protobuf, external data, their interface."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from runtime.model.manifest import GraphSpec, TensorSpec

# protobuf cannot hold 2 GiB, and ONNX Runtime maps external data instead of copying it: beyond this size weights go
# beside the graph.
INLINE_LIMIT_BYTES = 128 * 2**20

MICROSOFT = "com.microsoft"

# Matrices from this size on are worth a second name; see :func:`_name_apart`.
_LARGE_BYTES = 16 * 2**20

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


def load_graph(path: Path) -> ir.Model:
    """The graph in ``path``; weights are not read yet, and one that has several names has one again."""
    model = ir.load(path)
    first: dict[tuple[str, int, int], ir.Value] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor) or tensor.offset is None or not tensor.length:
            continue
        known = first.setdefault((str(tensor.location), tensor.offset, tensor.length), value)
        if known is not value:
            ir.convenience.replace_all_uses_with(value, known)
            del model.graph.initializers[name]
    return model


def save_graph(model: ir.Model, path: Path, inline_limit: int = INLINE_LIMIT_BYTES) -> GraphSpec:
    """Write ``model`` to ``path``, with weights in ``<path>.data`` when they exceed ``inline_limit`` bytes.

    The caller provides a folder that is not yet visible under its final name: this function does not rename.

    Returns:
        The manifest's entry for the graph.
    """
    model.graph.sort()
    data = f"{path.name}.data" if weight_bytes(model) > inline_limit else None
    if data is None:
        for value in model.graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):  # it would go on pointing to where it was read from
                value.const_value = ir.tensor(np.array(value.const_value.numpy()), name=value.name)
    ir.save(model, path, external_data=data)
    if data:
        _name_apart(path)
    return interface(model, path.name, data)


def _name_apart(path: Path) -> None:
    """Give each node that reads a large matrix of a saved graph a name of its own for it, over the same bytes.

    :func:`load_graph` undoes it.

    ONNX Runtime packs the matrix of a product and lets the original go, unless another node reads it too: then all of
    it stays mapped and counts as resident, though an embedding looks up a row at a time.
    """
    model = ir.load(path)
    for name, value in list(model.graph.initializers.items()):
        tensor, uses = value.const_value, list(value.uses())
        if not isinstance(tensor, ir.ExternalTensor) or len(uses) < 2 or tensor.nbytes < _LARGE_BYTES:
            continue
        for number, use in enumerate(uses[1:], 1):
            again = ir.ExternalTensor(
                tensor.location,
                tensor.offset,
                tensor.length,
                tensor.dtype,
                shape=tensor.shape,
                name=f"{name}/{number}",
                base_dir=tensor.base_dir,
            )
            own = ir.Value(name=again.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=again)
            model.graph.register_initializer(own)
            use.node.replace_input_with(use.idx, own)
    ir.save(model, path)


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


def array(value: ir.Value) -> npt.NDArray[Any]:
    """The contents of an initializer; external data are mapped, not copied."""
    if value.const_value is None:
        raise ValueError(f"{value.name!r} is not an initializer")
    return value.const_value.numpy()


class Editor:
    """Adds nodes and constants to a graph under a common prefix. ``save_graph`` brings the nodes into order."""

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self.graph, self.prefix = graph, prefix
        self._count: dict[str, int] = {}

    def constant(self, name: str, value: npt.NDArray[Any]) -> ir.Value:
        """An initializer ``<prefix>/<name>``; the one that is there already when it has the same contents."""
        full = f"{self.prefix}/{name}"
        value = np.ascontiguousarray(value).reshape(np.shape(value))
        if known := self.graph.initializers.get(full):
            if known.dtype == ir.DataType.from_numpy(value.dtype) and np.array_equal(array(known), value):
                return known
            raise ValueError(f"two different constants are called {full!r}")
        const = ir.Value(
            name=full,
            shape=ir.Shape(value.shape),
            type=ir.TensorType(ir.DataType.from_numpy(value.dtype)),
            const_value=ir.tensor(value, name=full),
        )
        self.graph.register_initializer(const)
        return const

    def node(self, op: str, inputs: Sequence[ir.Value | None], *, domain: str = "", **attributes: Any) -> ir.Value:
        """A node with one output, which is returned."""
        index = self._count[op] = self._count.get(op, -1) + 1
        name = f"{self.prefix}/{op}_{index}" if index else f"{self.prefix}/{op}"
        attrs = [ir.convenience.convert_attribute(key, value) for key, value in attributes.items()]
        made = ir.Node(domain, op, inputs, attrs, name=name)
        made.outputs[0].name = f"{name}/output_0"
        self.graph.append(made)
        if domain:
            self.graph.opset_imports.setdefault(domain, 1)
        return made.outputs[0]


def replace_output(node: ir.Node, value: ir.Value) -> None:
    """Let everything that reads the only output of ``node`` read ``value``, and remove the node."""
    old = node.outputs[0]
    value.shape, value.type = old.shape, old.type
    if old.is_graph_output():
        old.name, value.name = f"{old.name}/replaced", old.name
    ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
    if node.graph is None:
        raise ValueError(f"{node.name!r} is in no graph")
    node.graph.remove(node, safe=True)


def drop_unused_initializers(graph: ir.Graph) -> None:
    """Remove initializers that no node reads and that are no output."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
