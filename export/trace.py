"""The one call of torch.onnx.export."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

OPSET = 20


@torch.no_grad()
def trace(
    module: nn.Module,
    inputs: dict[str, torch.Tensor],
    outputs: list[str],
    dynamic_shapes: dict[str, Any],
) -> ir.Model:
    """Trace ``module`` with torch.export and translate it to ONNX.

    Args:
        module: in eval mode; called with ``inputs`` as keyword arguments in their order.
        inputs: example tensors by graph input name. Sizes of dynamic axes must differ from 0 and 1.
        outputs: graph output names in order.
        dynamic_shapes: per input, axis → :class:`torch.export.Dim`, as torch.export takes it.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecation notes of the exporter about itself
            program = torch.onnx.export(
                module.eval(),
                kwargs=inputs,
                input_names=list(inputs),
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
    return program.model
