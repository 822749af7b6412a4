"""Tensors bound to a session: where its providers want them, rows of a buffer on a device, inputs that change in place.

Not run on a GPU yet: there was none at hand. On the CPU the same code binds by address too, which the tests use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

Zeros = Callable[[tuple[int, ...], "np.dtype[Any]"], npt.NDArray[Any]]

# A device as ``onnxruntime.OrtValue`` names it: its type and its number.
Location = tuple[str, int]
HOST: Location = ("cpu", 0)
# The names that ONNX Runtime's allocators have, of devices whose memory Python can allocate and address.
_DEVICES = {"Cuda": "cuda"}


def input_location(session: ort.InferenceSession, name: str) -> Location:
    """Where the node that reads an input wants it: on a CUDA device when it runs there, else in host memory."""
    names = [each.name for each in session.get_inputs()]
    memory = session.get_input_memory_infos()[names.index(name)]
    device = _DEVICES.get(memory.name)
    return (device, memory.device_id) if device else HOST


class RowBuffer:
    """A buffer of zeros ``[rows, …]`` in host memory or on a device, whose rows can be bound apart from the others.

    A range of rows is contiguous, so it is a tensor of its own: an address and a shape.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: npt.DTypeLike, where: Location = HOST, zeros: Zeros = np.zeros
    ) -> None:
        """``zeros`` makes an array in host memory, which for a device is copied there.

        Raises:
            RuntimeError: ONNX Runtime cannot allocate it on the device.
        """
        self.shape, self.dtype, self.where = shape, np.dtype(dtype), where
        host = zeros(shape, self.dtype)
        if where == HOST:
            self._keep: Any = host
            self._address = host.ctypes.data
        else:
            self._keep = ort.OrtValue.ortvalue_from_numpy(host, *where)  # a copy: the device's own
            self._address = self._keep.data_ptr()

    @property
    def array(self) -> npt.NDArray[Any]:
        """The buffer itself, where it is in host memory.

        Raises:
            ValueError: it is on a device.
        """
        if self.where != HOST:
            raise ValueError(f"a buffer on {self.where[0]} is no array")
        array: npt.NDArray[Any] = self._keep
        return array

    def rows(self, rows: slice = slice(None)) -> tuple[int, list[int]]:
        """Address and shape of some rows.

        Raises:
            ValueError: a step other than 1, which would not be contiguous.
        """
        start, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise ValueError(f"rows {rows} are not next to one another")
        stride = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        return self._address + start * stride, [max(0, stop - start), *self.shape[1:]]


class Binding:
    """An I/O binding that keeps alive what it is bound to, and whose inputs may change in place between runs.

    ONNX Runtime's own binding points into the arrays' memory where the reading node takes it from there; for a node on
    a device (OpenVINO's plugin on the CPU is one) it copies when an input is bound, and would not see later changes.
    So inputs are bound anew before every run, which costs some microseconds and a copy only where one is needed.
    """

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session, self._binding = session, session.io_binding()
        self._inputs: dict[str, ort.OrtValue] = {}
        self._keep: list[Any] = []

    def bind_input(self, name: str, array: npt.NDArray[Any]) -> None:
        """Bind an array in host memory; what it holds when the binding runs counts."""
        self._inputs[name] = ort.OrtValue.ortvalue_from_numpy(array)

    def bind_output(self, name: str, array: npt.NDArray[Any]) -> None:
        """Bind an array in host memory to write an output to."""
        value = ort.OrtValue.ortvalue_from_numpy(array)
        self._keep.append(value)
        self._binding.bind_ortvalue_output(name, value)

    def bind_rows(self, source: str, target: str, buffer: RowBuffer, rows: slice = slice(None)) -> None:
        """Bind rows of a buffer both as the input ``source`` and as the output ``target``: it is written in place."""
        self._keep.append(buffer)
        address, shape = buffer.rows(rows)
        self._binding.bind_input(source, *buffer.where, buffer.dtype, shape, address)
        self._binding.bind_output(target, *buffer.where, buffer.dtype, shape, address)

    def run(self) -> None:
        """Run the session over what is bound."""
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        self._session.run_with_iobinding(self._binding)
