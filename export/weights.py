"""Read a checkpoint's tensors, and load them into a torch module strictly by name and shape, in float32."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from export.ctranslate2_file import CTranslate2File
from export.errors import CheckpointInvalidError
from export.file_names import CTRANSLATE2, PICKLED, PT

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


# Key of the tensors in files that hold more than tensors, such as OpenAI's.
STATE_DICT = "model_state_dict"


def load_pickled(file: Path) -> Any:
    """Load a file that ``torch.save`` wrote. Other objects than tensors and plain values are rejected, so no code runs.

    Raises:
        CheckpointInvalidError: the file cannot be read, or contains other objects.
    """
    try:
        # Memory-mapped: only the float32 copies take memory. Files from before torch 1.6 are rejected.
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except _UNREADABLE as error:
        # The first sentence only: for a truncated file torch adds guesses about the cause.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise CheckpointInvalidError(f"{file}: not a readable file of tensors only ({reason})") from None


def read_pickled(file: Path) -> dict[str, Tensor]:
    """Read tensors by name from a file that ``torch.save`` wrote, or those under ``model_state_dict`` in it.

    Raises:
        CheckpointInvalidError: the file cannot be read, or contains other objects than tensors by name.
    """
    value = load_pickled(file)
    if isinstance(value, dict) and STATE_DICT in value:
        value = value[STATE_DICT]
    if not isinstance(value, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    ):
        raise CheckpointInvalidError(f"{file}: contains other objects than tensors by name")
    return value


def read_tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a weight file with their names in it, one at a time.

    Args:
        file: safetensors, CTranslate2's ``model.bin`` (8-bit weights as float32), or a file of ``torch.save``.

    Raises:
        CheckpointInvalidError: the file cannot be read.
    """
    if file.name == CTRANSLATE2:
        yield from CTranslate2File(file).tensors()
    elif file.name == PICKLED or file.suffix == PT:
        yield from read_pickled(file).items()
    else:
        try:
            with safe_open(file, framework="pt", device="cpu") as handle:
                for name in handle.keys():  # noqa: SIM118  (safe_open is not a mapping)
                    yield name, handle.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointInvalidError(f"{file}: not a readable safetensors file ({error})") from None


def count_values(file: Path) -> int:
    """Number of floating-point values in a weight file, by its headers alone where the format has them.

    Raises:
        CheckpointInvalidError: the file cannot be read.
    """
    if file.name == CTRANSLATE2:
        return CTranslate2File(file).value_count()
    if file.name == PICKLED or file.suffix == PT:
        return sum(each.numel() for each in read_pickled(file).values() if each.is_floating_point())
    try:
        with safe_open(file, framework="pt", device="cpu") as handle:
            slices = map(handle.get_slice, handle.keys())
            return sum(math.prod(each.get_shape()) for each in slices if "F" in each.get_dtype())
    except SafetensorError as error:
        raise CheckpointInvalidError(f"{file}: not a readable safetensors file ({error})") from None


def fill(
    parameters: Mapping[str, Tensor], tensors: Iterable[NamedTensor], folder: Path, described_by: str = "config.json"
) -> None:
    """Set every parameter and buffer to the checkpoint's tensor, converted to float32.

    Args:
        parameters: parameters and buffers by their name in the module.
        tensors: name in the file, name in the module, contents.
        folder: the checkpoint, for messages.
        described_by: what the parameters' shapes were read from, for messages.

    Raises:
        CheckpointInvalidError: a tensor is missing, unexpected, of the wrong shape, or not a floating-point tensor.
    """
    missing = set(parameters)
    for stored_name, name, tensor in tensors:
        if name not in parameters:
            raise CheckpointInvalidError(
                f"{folder}: tensor {stored_name!r} is unexpected: the model that {described_by} describes has no "
                "such tensor"
            )
        shape = parameters[name].shape
        if tensor.shape != shape:
            raise CheckpointInvalidError(
                f"{folder}: tensor {stored_name!r} has shape {list(tensor.shape)}, but {described_by} requires "
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
    parameters: Mapping[str, Tensor],
    tensors: Iterable[NamedTensor],
    folder: Path,
    *,
    head: str,
    embedding: str,
    described_by: str = "config.json",
) -> None:
    """Fill a model whose output head shares the embedding matrix. The caller ties the two afterwards.

    Args:
        parameters: parameters and buffers by their name in the module.
        tensors: name in the file, name in the module, contents.
        folder: the checkpoint, for messages.
        head: name of the head's weight in the module. The checkpoint may have it or not.
        embedding: name of the embedding's weight in the module.
        described_by: what the parameters' shapes were read from, for messages.

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

    fill(
        {name: parameter for name, parameter in parameters.items() if name != head},
        without_head(),
        folder,
        described_by,
    )
    if head_copy is not None and not torch.equal(head_copy.to(torch.float32), parameters[embedding].data):
        raise CheckpointInvalidError(
            f"{folder}: {described_by} ties the output head to the embedding, but tensor {head!r} differs from it"
        )
