"""The one call of torch.onnx.export, and what it made as a file."""

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
        inputs: example tensors by graph input name; an argument that is a mapping of tensors gives as many inputs by
            its own names. Sizes of dynamic axes must differ from 0 and 1.
        outputs: graph output names in order.
        dynamic_shapes: per input, axis → :class:`torch.export.Dim`, as torch.export takes it.
    """
    names = [name for key, value in inputs.items() for name in (value if isinstance(value, Mapping) else [key])]
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecation notes of the exporter about itself
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
    """Name nodes ``/<module path>/<operator>`` as the model's own code does, so that recipes can speak of them.

    The exporter leaves ``node_MatMul_74`` and, as metadata, the module that each node came from; with it, stack traces
    with the paths of the exporting machine, which do not belong into a model.
    """
    count: dict[str, int] = {}
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        module = next((scope for scope in reversed(scopes[:-1]) if scope), "")
        name = "/".join(["", *module.split("."), node.op_type]) if module else f"/{node.op_type}"
        count[name] = count.get(name, -1) + 1
        node.name = f"{name}_{count[name]}" if count[name] else name
        node.metadata_props.clear()


def save_traced(graph: ir.Model, path: Path) -> GraphSpec:
    """Write a traced graph, and let go of the weights in it.

    torch's exporter holds on to the graphs that it made, and so to the module's weights.
    """
    spec = save_graph(graph, path)
    for value in graph.graph.initializers.values():
        value.const_value = None
    return spec
