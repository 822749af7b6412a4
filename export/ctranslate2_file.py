"""Read `model.bin`, the weight file of CTranslate2, without loading it whole.

Source: CTranslate2's ``python/ctranslate2/specs/model_spec.py``, which writes the file. All numbers are little-endian.
A string is its length as u16, including a final zero byte, and then its bytes. The file is: the format's version (u32),
the name of the model's specification (string), the specification's revision (u32), the number of variables (u32), the
variables, the number of aliases (u32), the aliases. A variable is its name (string), rank (u8), dimensions (u32 each),
type (u8), size in bytes (u32) and data. An alias is two strings: another name, and a variable's name.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from export.errors import CheckpointInvalidError

VERSION = 6
# Type's number in the file → numpy dtype and name. bfloat16 is the upper half of a float32.
_TYPES: dict[int, tuple[np.dtype[Any], str]] = {
    0: (np.dtype("<f4"), "float32"),
    1: (np.dtype("i1"), "int8"),
    2: (np.dtype("<i2"), "int16"),
    3: (np.dtype("<i4"), "int32"),
    4: (np.dtype("<f2"), "float16"),
    5: (np.dtype("<u2"), "bfloat16"),
}
_FLOATS = ("float32", "float16", "bfloat16")
_WEIGHT, _SCALE = "/weight", "/weight_scale"


@dataclass(frozen=True, slots=True)
class Variable:
    """Where a variable's data is.

    Attributes:
        shape: its dimensions; empty for a scalar.
        dtype: numpy dtype of the stored numbers.
        type: name of the stored type, ``float32``, ``int8``, ``int16``, ``int32``, ``float16`` or ``bfloat16``.
        offset: position of the data in the file, in bytes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    type: str
    offset: int


class CTranslate2File:
    """A mapped `model.bin`.

    Attributes:
        path: the file.
        specification: name of the model's specification, such as ``WhisperSpec``.
        revision: revision of the specification.
        variables: by name and by alias, in the file's order.
        aliases: names of variables by alias. CTranslate2 stores equal weights once.
    """

    def __init__(self, path: Path) -> None:
        """Read all headers of the file ``path``.

        Raises:
            CheckpointInvalidError: the file cannot be read or is of another version.
            CheckpointInvalidError: the file is truncated, or there is something after its end.
            CheckpointInvalidError: a variable's type is unknown, or its size contradicts its dimensions.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: the file is empty
            raise CheckpointInvalidError(f"{path}: cannot be read ({error})") from None
        self._position = 0
        version = self._unpack("I")
        if version != VERSION:
            raise CheckpointInvalidError(
                f"{path}: version {version} of CTranslate2's format, or another kind of file; supported is version "
                f"{VERSION}, which CTranslate2 2 and later write"
            )
        self.specification, self.revision = self._string(), self._unpack("I")
        self.variables: dict[str, Variable] = {}
        for _ in range(self._unpack("I")):
            name = self._string()
            self.variables[name] = self._variable(name)
        self.aliases = {self._string(): self._string() for _ in range(self._unpack("I"))}
        self._stored = frozenset(self.variables)
        for alias, name in self.aliases.items():
            if name not in self._stored:
                raise CheckpointInvalidError(f"{path}: {alias!r} is an alias of {name!r}, which is missing")
            self.variables[alias] = self.variables[name]
        if self._position != len(self._data):
            raise CheckpointInvalidError(f"{path}: has {len(self._data) - self._position} bytes after its last alias")

    def _unpack(self, code: str) -> int:
        return int.from_bytes(self._take(struct.calcsize(f"<{code}")), "little")

    def _take(self, size: int) -> bytes:
        start, self._position = self._position, self._position + size
        if self._position > len(self._data):
            raise CheckpointInvalidError(
                f"{self.path}: is truncated at {len(self._data):,} bytes; download or convert it again"
            )
        return self._data[start : self._position]

    def _string(self) -> str:
        size = self._unpack("H")
        try:
            return self._take(size).rstrip(b"\0").decode()
        except UnicodeDecodeError:
            raise CheckpointInvalidError(f"{self.path}: holds a name that is not UTF-8; convert it again") from None

    def _variable(self, name: str) -> Variable:
        shape = tuple(self._unpack("I") for _ in range(self._unpack("B")))
        number, size = self._unpack("B"), self._unpack("I")
        if number not in _TYPES:
            raise CheckpointInvalidError(f"{self.path}: tensor {name!r} has the unknown type {number}")
        dtype, stored_type = _TYPES[number]
        if size != math.prod(shape) * dtype.itemsize:
            raise CheckpointInvalidError(
                f"{self.path}: tensor {name!r} has {size} bytes, which are not {list(shape)} of {stored_type}"
            )
        variable = Variable(shape, dtype, stored_type, self._position)
        if self._position + size > len(self._data):
            raise CheckpointInvalidError(
                f"{self.path}: is truncated at {len(self._data):,} bytes, within tensor {name!r}; download or convert "
                "it again"
            )
        self._position += size
        return variable

    def _array(self, name: str) -> npt.NDArray[Any]:
        variable = self.variables[name]
        return np.frombuffer(self._data, variable.dtype, math.prod(variable.shape), variable.offset).reshape(
            variable.shape
        )

    def scalar(self, name: str) -> int:
        """Value of an integer scalar.

        Raises:
            CheckpointInvalidError: there is no such variable, or it is not an integer scalar.
        """
        if name not in self.variables:
            raise CheckpointInvalidError(f"{self.path}: variable {name!r} is missing")
        if self.variables[name].shape not in ((), (1,)) or self.variables[name].type in _FLOATS:
            raise CheckpointInvalidError(f"{self.path}: variable {name!r} is not an integer")
        return int(self._array(name).item())

    def scalars(self) -> Iterator[str]:
        """Yield the names of all scalars, which are settings and not weights."""
        return (name for name, variable in self.variables.items() if not variable.shape)

    def is_scale(self, name: str) -> bool:
        """Whether the variable holds the scales of an 8-bit weight."""
        return name.endswith(_SCALE) and name.removesuffix(_SCALE) + _WEIGHT in self.variables

    def names(self) -> list[str]:
        """Names of the weights, without scalars and without the scales of 8-bit weights."""
        return [name for name, variable in self.variables.items() if variable.shape and not self.is_scale(name)]

    def value_count(self) -> int:
        """Number of values in the stored weights; what an alias names is counted once."""
        names = {name for name in self.names() if name in self._stored}
        return sum(math.prod(self.variables[name].shape) for name in names)

    def read(self, name: str) -> Tensor:
        """Read one weight as float32; an 8-bit weight is divided by the scale of its row.

        Raises:
            CheckpointInvalidError: an 8-bit weight has no scales, or not one for each row.
            CheckpointInvalidError: the weight is of another type, such as int16 or a packed one.
        """
        variable, array = self.variables[name], self._array(name)
        if variable.type == "bfloat16":
            return torch.from_numpy((array.astype(np.uint32) << 16).view(np.float32))
        if variable.type in _FLOATS:
            return torch.from_numpy(array.astype(np.float32))
        if variable.type != "int8":
            raise CheckpointInvalidError(
                f"{self.path}: tensor {name!r} is {variable.type}; supported are float32, float16, bfloat16 and int8"
            )
        scale = name.removesuffix(_WEIGHT) + _SCALE
        if scale not in self.variables or not self.is_scale(scale):
            raise CheckpointInvalidError(f"{self.path}: tensor {scale!r} is missing, the scales of {name!r}")
        if self.variables[scale].shape != variable.shape[:1] or self.variables[scale].type not in _FLOATS:
            raise CheckpointInvalidError(
                f"{self.path}: tensor {scale!r} has shape {list(self.variables[scale].shape)} and type "
                f"{self.variables[scale].type}, but needs one floating-point scale for each of {variable.shape[0]} rows"
            )
        rows = array.astype(np.float32)
        scales = self.read(scale).numpy().reshape(-1, *[1] * (rows.ndim - 1))
        if not (scales > 0).all():
            raise CheckpointInvalidError(f"{self.path}: tensor {scale!r} has scales that are not positive")
        return torch.from_numpy(rows / scales)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every weight with its name or alias, one at a time, as :meth:`read` gives it.

        Raises:
            CheckpointInvalidError: a weight cannot be read.
        """
        return ((name, self.read(name)) for name in self.names())
