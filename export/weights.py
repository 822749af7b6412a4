"""A checkpoint's tensors into a module's parameters: strictly by name and shape, in float32."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from export.errors import CheckpointInvalidError


def fill(wanted: Mapping[str, nn.Parameter], given: Iterable[tuple[str, str, Tensor]], where: Path) -> None:
    """Let every parameter be what the checkpoint has for it.

    Args:
        wanted: parameters by the name that the module has for them.
        given: tensors: name in the file, name in the module, contents.
        where: the checkpoint, for messages.

    Raises:
        CheckpointInvalidError: a tensor is missing, left over, of the wrong shape, or not a floating-point tensor.
    """
    missing = set(wanted)
    for name, ours, tensor in given:
        if ours not in wanted:
            raise CheckpointInvalidError(
                f"{where}: tensor {name!r} is left over: what config.json describes has no such part"
            )
        if tensor.shape != wanted[ours].shape:
            raise CheckpointInvalidError(
                f"{where}: tensor {name!r} has shape {list(tensor.shape)} where config.json asks for "
                f"{list(wanted[ours].shape)}"
            )
        if not tensor.is_floating_point():
            raise CheckpointInvalidError(
                f"{where}: tensor {name!r} is {tensor.dtype}: quantized checkpoints cannot be exported"
            )
        wanted[ours].data = tensor.to(torch.float32)
        missing.discard(ours)
    if missing:
        first, more = min(missing), len(missing) - 1
        raise CheckpointInvalidError(f"{where}: tensor {first!r} is missing" + (f" (and {more} more)" if more else ""))
