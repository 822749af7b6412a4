"""Trace torch modules to ONNX graphs and write them to files."""

from __future__ import annotations

import ast
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from quantize.graph import save_graph
from runtime.model.manifest import GraphSpec

OPSET = 20
# Largest size of a graph's batch axis.
MAX_BATCH = 65_536


@torch.no_grad()
def trace(
    module: nn.Module,
    inputs: Mapping[str, torch.Tensor | Mapping[str, torch.Tensor]],
    outputs: list[str],
    dynamic_shapes: dict[str, Any],
) -> ir.Model:
    """Trace ``module`` with torch.export and translate it to ONNX.

    Args:
        module: in eval mode; called with ``inputs`` as keyword arguments in their order.
        inputs: example tensors by graph input name. An argument that is a mapping of tensors gives one graph input
            per entry, named by its key. Sizes of dynamic axes must differ from 0 and 1.
        outputs: graph output names in order.
        dynamic_shapes: per input, axis → :class:`torch.export.Dim`, as torch.export takes it.

    Returns:
        The model, its nodes named by module path.
    """
    names = [name for key, value in inputs.items() for name in (value if isinstance(value, Mapping) else [key])]
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's exporter warns about its own deprecated code
            program = torch.onnx.export(
                module.eval(),
                kwargs=dict(inputs),
                input_names=names,
                output_names=outputs,
                dynamic_shapes=dynamic_shapes,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    _name_by_module(program.model.graph)
    return program.model


def _name_by_module(graph: ir.Graph) -> None:
    """Name nodes ``/<module path>/<operator>``, the names that recipes match.

    torch's exporter names nodes ``node_MatMul_74`` and stores each node's module in metadata, together with stack
    traces that contain paths of the exporting machine. The metadata is removed.
    """
    count: dict[str, int] = {}
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        module = next((scope for scope in reversed(scopes[:-1]) if scope), "")
        name = "/".join(["", *module.split("."), node.op_type]) if module else f"/{node.op_type}"
        count[name] = count.get(name, -1) + 1
        node.name = f"{name}_{count[name]}" if count[name] else name
        node.metadata_props.clear()


def save_traced(graph: ir.Model, role: str, out: Path) -> GraphSpec:
    """Write a traced graph as ``<role>.onnx`` into the folder ``out``, and release its weights.

    torch's exporter keeps references to the graphs that it returned, and so to the module's weights. The graph cannot
    be used afterwards.
    """
    graph.graph.name = role
    spec = save_graph(graph, out / f"{role}.onnx")
    for value in graph.graph.initializers.values():
        value.const_value = None
    return spec
