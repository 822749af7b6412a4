"""Read a checkpoint's tensors, and load them into a torch module strictly by name and shape, in float32."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from export.errors import CheckpointInvalidError

# Errors of torch.load for files that are truncated, altered, or contain other objects than tensors.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    OSError,
)
# Name in the file, name in the module, contents.
NamedTensor = tuple[str, str, Tensor]


def read_pickled(file: Path) -> dict[str, Tensor]:
    """Read tensors by name from a file that ``torch.save`` wrote. Other objects are rejected, so no code of it runs.

    Raises:
        CheckpointInvalidError: the file cannot be read, or contains other objects than tensors by name.
    """
    try:
        # Memory-mapped: only the float32 copies take memory. Files from before torch 1.6 are rejected.
        value = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except _UNREADABLE as error:
        # The first sentence only: for a truncated file torch adds guesses about the cause.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise CheckpointInvalidError(f"{file}: not a readable file of tensors only ({reason})") from None
    if not isinstance(value, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    ):
        raise CheckpointInvalidError(f"{file}: contains other objects than tensors by name")
    return value


def fill(parameters: Mapping[str, Tensor], tensors: Iterable[NamedTensor], folder: Path) -> None:
    """Set every parameter and buffer to the checkpoint's tensor, converted to float32.

    Args:
        parameters: parameters and buffers by their name in the module.
        tensors: name in the file, name in the module, contents.
        folder: the checkpoint, for messages.

    Raises:
        CheckpointInvalidError: a tensor is missing, unexpected, of the wrong shape, or not a floating-point tensor.
    """
    missing = set(parameters)
    for stored_name, name, tensor in tensors:
        if name not in parameters:
            raise CheckpointInvalidError(
                f"{folder}: tensor {stored_name!r} is unexpected: the model that config.json describes has no such "
                "tensor"
            )
        shape = parameters[name].shape
        if tensor.shape != shape:
            raise CheckpointInvalidError(
                f"{folder}: tensor {stored_name!r} has shape {list(tensor.shape)}, but config.json requires "
                f"{list(shape)}"
            )
        if not tensor.is_floating_point():
            raise CheckpointInvalidError(
                f"{folder}: tensor {stored_name!r} is {tensor.dtype}: quantized checkpoints cannot be exported"
            )
        parameters[name].data = tensor.to(torch.float32)
        missing.discard(name)
    if missing:
        first, more = min(missing), len(missing) - 1
        raise CheckpointInvalidError(f"{folder}: tensor {first!r} is missing" + (f" (and {more} more)" if more else ""))


def fill_tied(
    parameters: Mapping[str, Tensor], tensors: Iterable[NamedTensor], folder: Path, *, head: str, embedding: str
) -> None:
    """Fill a model whose output head shares the embedding matrix. The caller ties the two afterwards.

    Args:
        parameters: parameters and buffers by their name in the module.
        tensors: name in the file, name in the module, contents.
        folder: the checkpoint, for messages.
        head: name of the head's weight in the module. The checkpoint may have it or not.
        embedding: name of the embedding's weight in the module.

    Raises:
        CheckpointInvalidError: the checkpoint has a head that differs from the embedding.
        CheckpointInvalidError: a tensor is missing, unexpected, of the wrong shape, or not a floating-point tensor.
    """
    head_copy: Tensor | None = None

    def without_head() -> Iterator[NamedTensor]:
        nonlocal head_copy
        for stored_name, name, tensor in tensors:
            if name == head:
                head_copy = tensor
            else:
                yield stored_name, name, tensor

    fill({name: parameter for name, parameter in parameters.items() if name != head}, without_head(), folder)
    if head_copy is not None and not torch.equal(head_copy.to(torch.float32), parameters[embedding].data):
        raise CheckpointInvalidError(
            f"{folder}: config.json ties the output head to the embedding, but tensor {head!r} differs from it"
        )
