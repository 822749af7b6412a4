"""Tests of I/O bindings: rows of a buffer by address, and inputs that change in place between runs."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.ort.io_binding import HOST, Binding, RowBuffer, input_location
from runtime.ort.providers import ProviderSpec
from runtime.ort.session import make_session
from tests.conftest import ARTIFACT


def test_rows_have_their_own_address_and_shape() -> None:
    buffer = RowBuffer((4, 2, 8, 3), np.float16)
    address, shape = buffer.rows()
    assert shape == [4, 2, 8, 3]
    for rows, offset, expected in (
        (slice(1, 3), 1, 2),
        (slice(3, None), 3, 1),
        (slice(0, 9), 0, 4),
        (slice(2, 1), 2, 0),
    ):
        start, shape = buffer.rows(rows)
        assert (start - address, shape) == (offset * 2 * 8 * 3 * 2, [expected, 2, 8, 3])
    with pytest.raises(ValueError, match="not contiguous"):
        buffer.rows(slice(0, 4, 2))


def test_buffer_uses_the_array_of_its_factory() -> None:
    array = np.ones((2, 3), np.float32)
    assert RowBuffer((2, 3), np.float32, zeros=lambda shape, dtype: array).rows()[0] == array.ctypes.data


def test_cpu_reads_keys_and_values_from_host_memory() -> None:
    session = make_session(ARTIFACT / "decoder.onnx", ProviderSpec())
    assert input_location(session, "past_key_values.0.key") == HOST


def test_each_run_reads_the_current_input() -> None:
    session = make_session(ARTIFACT / "encoder.onnx", ProviderSpec())
    features = np.zeros((1, 128, 100), np.float32)
    output = np.zeros((1, 13, 256), np.float32)
    binding = Binding(session)
    binding.bind_input("features", features)
    binding.bind_input("lengths", np.array([100]))
    binding.bind_output("audio_embeds", output)
    for value in (0.0, 0.5):
        features[:] = value
        binding.run()
        expected = session.run(None, {"features": features, "lengths": np.array([100])})[0]
        np.testing.assert_array_equal(output, expected)
