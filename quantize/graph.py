"""Load, edit and save ONNX graphs, with external data for large weights, and describe their inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from runtime.model.manifest import GraphSpec, TensorSpec

# Larger weights are stored in a file beside the graph: a protobuf message holds less than 2 GiB, and ONNX Runtime maps
# external data instead of copying it.
INLINE_LIMIT_BYTES = 128 * 2**20

MICROSOFT = "com.microsoft"

# Matrices of this size or more get one initializer for each reader; see :func:`_split_shared_initializers`.
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
    """Return the size in bytes of all initializers of the main graph."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def load_graph(path: Path) -> ir.Model:
    """Load the graph in ``path`` without reading its weights.

    Initializers over the same bytes of external data are merged into the first one, which undoes
    :func:`_split_shared_initializers`.
    """
    model = ir.load(path)
    first: dict[tuple[str, int, int], ir.Value] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor) or tensor.offset is None or not tensor.length:
            continue
        original = first.setdefault((str(tensor.location), tensor.offset, tensor.length), value)
        if original is not value:
            ir.convenience.replace_all_uses_with(value, original)
            del model.graph.initializers[name]
    return model


def save_graph(model: ir.Model, path: Path, inline_limit: int = INLINE_LIMIT_BYTES) -> GraphSpec:
    """Write ``model`` to ``path``, with weights in ``<path>.data`` when they exceed ``inline_limit`` bytes.

    The write is not atomic: the caller provides a folder that is not yet visible under its final name.

    Args:
        model: The model; its nodes are sorted in place.
        path: File to write.
        inline_limit: Largest size of the weights, in bytes, that is stored in the graph file itself.

    Returns:
        The manifest's entry for the graph.
    """
    model.graph.sort()
    data = f"{path.name}.data" if weight_bytes(model) > inline_limit else None
    if data is None:
        for value in model.graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):  # otherwise it would still refer to its old file
                value.const_value = ir.tensor(np.array(value.const_value.numpy()), name=value.name)
    ir.save(model, path, external_data=data)
    if data:
        _split_shared_initializers(path)
    return interface(model, path.name, data)


def _split_shared_initializers(path: Path) -> None:
    """Give each node that reads a large matrix of a saved graph its own initializer over the same bytes.

    :func:`load_graph` undoes it.

    ONNX Runtime packs the matrix of a product and frees the original, unless another node reads the same initializer:
    then all of it stays mapped and counts as resident memory, even if an embedding looks up one row at a time.
    """
    model = ir.load(path)
    for name, value in list(model.graph.initializers.items()):
        tensor, uses = value.const_value, list(value.uses())
        if not isinstance(tensor, ir.ExternalTensor) or len(uses) < 2 or tensor.nbytes < _LARGE_BYTES:
            continue
        for number, use in enumerate(uses[1:], 1):
            alias = ir.ExternalTensor(
                tensor.location,
                tensor.offset,
                tensor.length,
                tensor.dtype,
                shape=tensor.shape,
                name=f"{name}/{number}",
                base_dir=tensor.base_dir,
            )
            initializer = ir.Value(
                name=alias.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=alias
            )
            model.graph.register_initializer(initializer)
            use.node.replace_input_with(use.idx, initializer)
    ir.save(model, path)


def interface(model: ir.Model, file: str, data: str | None = None) -> GraphSpec:
    """Return the manifest's entry for ``model`` stored as ``file``, with weights in ``data`` if given."""
    return GraphSpec(
        file=file,
        data=data,
        inputs=[_tensor_spec(value) for value in model.graph.inputs],
        outputs=[_tensor_spec(value) for value in model.graph.outputs],
    )


def read_interface(path: Path) -> GraphSpec:
    """Return the manifest's entry for a graph on disk without reading its weights."""
    data = path.with_name(f"{path.name}.data")
    return interface(ir.load(path), path.name, data.name if data.exists() else None)


def _tensor_spec(value: ir.Value) -> TensorSpec:
    if value.name is None or value.dtype is None or value.shape is None:
        raise ValueError(f"graph input or output {value.name!r} has no name, type or shape")
    shape: list[int | str] = [size if isinstance(size, int) else str(size.value) for size in value.shape]
    return TensorSpec(name=value.name, dtype=_DTYPES[value.dtype], shape=shape)


def array(value: ir.Value) -> npt.NDArray[Any]:
    """Return the contents of an initializer. External data are mapped, not copied.

    Raises:
        ValueError: ``value`` is not an initializer.
    """
    if value.const_value is None:
        raise ValueError(f"{value.name!r} is not an initializer")
    return value.const_value.numpy()


class Editor:
    """Add nodes and constants to a graph under a common name prefix. :func:`save_graph` sorts the nodes."""

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self.graph, self.prefix = graph, prefix
        self._last_index: dict[str, int] = {}

    def constant(self, name: str, value: npt.NDArray[Any]) -> ir.Value:
        """Return the initializer ``<prefix>/<name>``, which is added unless it exists with the same contents.

        Raises:
            ValueError: An initializer of this name has other contents.
        """
        full_name = f"{self.prefix}/{name}"
        value = np.ascontiguousarray(value).reshape(np.shape(value))
        if existing := self.graph.initializers.get(full_name):
            if existing.dtype == ir.DataType.from_numpy(value.dtype) and np.array_equal(array(existing), value):
                return existing
            raise ValueError(f"two different constants have the name {full_name!r}")
        initializer = ir.Value(
            name=full_name,
            shape=ir.Shape(value.shape),
            type=ir.TensorType(ir.DataType.from_numpy(value.dtype)),
            const_value=ir.tensor(value, name=full_name),
        )
        self.graph.register_initializer(initializer)
        return initializer

    def node(self, op: str, inputs: Sequence[ir.Value | None], *, domain: str = "", **attributes: Any) -> ir.Value:
        """Add a node ``<prefix>/<op>`` (``<prefix>/<op>_1`` if that exists, and so on) and return its only output."""
        index = self._last_index[op] = self._last_index.get(op, -1) + 1
        name = f"{self.prefix}/{op}_{index}" if index else f"{self.prefix}/{op}"
        attrs = [ir.convenience.convert_attribute(key, value) for key, value in attributes.items()]
        node = ir.Node(domain, op, inputs, attrs, name=name)
        node.outputs[0].name = f"{name}/output_0"
        self.graph.append(node)
        if domain:
            self.graph.opset_imports.setdefault(domain, 1)
        return node.outputs[0]


def replace_output(node: ir.Node, value: ir.Value) -> None:
    """Replace the only output of ``node`` by ``value`` everywhere, graph outputs included, and remove the node.

    Raises:
        ValueError: ``node`` is not in a graph.
    """
    output = node.outputs[0]
    value.shape, value.type = output.shape, output.type
    if output.is_graph_output():
        output.name, value.name = f"{output.name}/replaced", output.name
    ir.convenience.replace_all_uses_with(output, value, replace_graph_outputs=True)
    if node.graph is None:
        raise ValueError(f"{node.name!r} is not in a graph")
    node.graph.remove(node, safe=True)


def drop_unused_initializers(graph: ir.Graph) -> None:
    """Remove initializers that no node reads and that are not graph outputs."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
