"""Bind arrays and rows of buffers to a session, in host memory or on a device; inputs may change between runs.

Not tested on a GPU yet. The tests use the same code on the CPU, where rows are bound by address too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

Zeros = Callable[[tuple[int, ...], "np.dtype[Any]"], npt.NDArray[Any]]

# A device as ``onnxruntime.OrtValue`` names it: type and number.
Location = tuple[str, int]
HOST: Location = ("cpu", 0)
# Device types by the names of ONNX Runtime's allocators, for devices whose memory Python can allocate and address.
_DEVICES = {"Cuda": "cuda"}


def input_location(session: ort.InferenceSession, name: str) -> Location:
    """Return where the node that reads the input ``name`` takes it from: a CUDA device, or host memory."""
    names = [each.name for each in session.get_inputs()]
    memory = session.get_input_memory_infos()[names.index(name)]
    device = _DEVICES.get(memory.name)
    return (device, memory.device_id) if device else HOST


class RowBuffer:
    """Buffer ``[rows, …]`` in host memory or on a device, of which a range of rows can be bound as a tensor.

    A range of rows is contiguous, so that its address and its shape describe a tensor.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: npt.DTypeLike, location: Location = HOST, zeros: Zeros = np.zeros
    ) -> None:
        """Allocate the buffer.

        Args:
            shape: of the buffer; the first axis counts rows.
            dtype: numpy dtype.
            location: device that holds the buffer.
            zeros: makes the initial array in host memory, which is copied to the device if ``location`` is one.

        Raises:
            RuntimeError: ONNX Runtime cannot allocate the buffer on the device.
        """
        self.shape, self.dtype, self.location = shape, np.dtype(dtype), location
        host = zeros(shape, self.dtype)
        if location == HOST:
            self._owner: Any = host
            self._address = host.ctypes.data
        else:
            self._owner = ort.OrtValue.ortvalue_from_numpy(host, *location)  # copies to memory of the device
            self._address = self._owner.data_ptr()

    @property
    def array(self) -> npt.NDArray[Any]:
        """The buffer as an array that shares its memory.

        Raises:
            ValueError: the buffer is on a device.
        """
        if self.location != HOST:
            raise ValueError(f"a buffer on {self.location[0]} cannot be used as an array")
        array: npt.NDArray[Any] = self._owner
        return array

    def rows(self, rows: slice = slice(None)) -> tuple[int, list[int]]:
        """Return address and shape of a range of rows.

        Raises:
            ValueError: the step is not 1, so that the rows are not contiguous.
        """
        start, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise ValueError(f"rows {rows} are not contiguous")
        stride = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        return self._address + start * stride, [max(0, stop - start), *self.shape[1:]]


class Binding:
    """I/O binding that holds references to its arrays, and whose inputs may change in place between runs.

    ONNX Runtime's binding points into an array's memory where the reading node takes it from there. For a node on a
    device (OpenVINO's plugin on the CPU is one), it copies the array when the input is bound and does not see later
    changes. Therefore inputs are bound again before every run, which takes some microseconds and copies only where a
    copy is needed.
    """

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session, self._binding = session, session.io_binding()
        self._inputs: dict[str, ort.OrtValue] = {}
        self._owners: list[Any] = []

    def bind_input(self, name: str, array: npt.NDArray[Any]) -> None:
        """Bind an array in host memory as an input. Each run reads its current values."""
        self._inputs[name] = ort.OrtValue.ortvalue_from_numpy(array)

    def bind_output(self, name: str, array: npt.NDArray[Any]) -> None:
        """Bind an array in host memory, to which each run writes the output ``name``."""
        value = ort.OrtValue.ortvalue_from_numpy(array)
        self._owners.append(value)
        self._binding.bind_ortvalue_output(name, value)

    def bind_rows(self, source: str, target: str, buffer: RowBuffer, rows: slice = slice(None)) -> None:
        """Bind rows of ``buffer`` as the input ``source`` and as the output ``target``, to update them in place.

        Raises:
            ValueError: the rows are not contiguous.
        """
        self._owners.append(buffer)
        address, shape = buffer.rows(rows)
        self._binding.bind_input(source, *buffer.location, buffer.dtype, shape, address)
        self._binding.bind_output(target, *buffer.location, buffer.dtype, shape, address)

    def run(self) -> None:
        """Run the session with the bound inputs and outputs.

        Raises:
            ProviderError: the provider fails.
        """
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        self._session.run_with_iobinding(self._binding)
