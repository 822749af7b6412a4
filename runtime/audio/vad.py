"""Score 16 kHz audio for speech with Silero VAD v6: one probability for each frame of 32 ms.

The weights are bundled: `runtime/audio/silero_vad_v6.safetensors`, MIT license, described in `silero_vad_v6.md` beside
it. The network runs in numpy: everything before the recurrence is computed for many frames at once, and only the
recurrence is a loop over frames. ONNX Runtime takes longer, for long audio and for single frames
(`python -m benchmarks.vad`).
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.errors import ArtifactInvalidError, ArtifactNotFoundError

Floats = npt.NDArray[np.float32]

SAMPLE_RATE = 16_000  # Hz
FRAME_SAMPLES = 512
# Last samples of the previous frame, put before each frame; zeros before the first one, as in Silero's own code.
CONTEXT_SAMPLES = 64
STATE_SIZE = 128  # hidden and cell state of the LSTM
# SHA-256 of the bundled file. tools/make_vad_weights.py writes the same bytes.
WEIGHTS_SHA256 = "64f07c54b85bfa21852fbe0f039fd06acc289c704ac83c27d927b030aaaae41b"
_WEIGHTS_PACKAGE, _WEIGHTS_NAME = "runtime.audio", "silero_vad_v6.safetensors"
# Short-time Fourier transform: windows of 256 samples every 128 samples, 129 bins; 64 samples are mirrored at the end.
_WINDOW, _HOP, _PADDING = 256, 128, 64
_BINS = _WINDOW // 2 + 1
_HOPS = (CONTEXT_SAMPLES + FRAME_SAMPLES + _PADDING) // _HOP  # 5
_POSITIONS = _HOPS - 1  # windows of a frame
# The network misses most speech that is very quiet; recognizers do not, because they scale features by the loudest
# frame. So audio is amplified until the loudest frame so far has this RMS, by at most 300 (50 dB): beyond that the
# rounding noise of 16-bit samples is as loud as speech. Samples beyond full scale (unscaled integers) are attenuated.
_TARGET_RMS = 0.1
_MAX_GAIN = 300.0
# Frames computed at once; their activations fit in a core's cache. numpy multiplies stacked matrices one frame at a
# time, so that no product exceeds 2**18 multiplications: OpenBLAS would split a larger one over threads of its own,
# which would compete with the recognizer's.
_FRAMES_PER_CALL = 128


class _Model(msgspec.Struct, frozen=True):
    """Weights as float32 matrices [inputs, outputs], to be multiplied from the right.

    Attributes:
        spectrum: real and imaginary Fourier basis, each [256, 129]; two products, to stay below OpenBLAS's threading.
        layers: matrix [taps * channels in, channels out] and bias [channels out] of each convolution.
        input_gates: [128, 512] from the encoder to the LSTM's gates.
        hidden_gates: [128, 512] from the previous hidden state to the gates.
        gate_bias: [512].
        head: [128], from the hidden state to the logit.
        head_bias: [1].
    """

    spectrum: list[Floats]
    layers: list[tuple[Floats, Floats]]
    input_gates: Floats
    hidden_gates: Floats
    gate_bias: Floats
    head: Floats
    head_bias: Floats


def weights_file() -> Traversable:
    """Return the bundled weights file."""
    return files(_WEIGHTS_PACKAGE) / _WEIGHTS_NAME


def read_weights(path: Traversable) -> dict[str, Floats]:
    """Read the bundled safetensors file: tensors by name, float32, axes in PyTorch's order.

    The format: length of the header (8 bytes, little-endian), a JSON header with the shape and the byte range of each
    tensor, then the values.

    Raises:
        ArtifactNotFoundError: the file is missing.
        ArtifactInvalidError: its SHA-256 is not :data:`WEIGHTS_SHA256`.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ArtifactNotFoundError(f"{path}: voice activity weights are missing; install asr-deploy again") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise ArtifactInvalidError(
            f"{path}: voice activity weights are damaged (sha256 {digest}, expected {WEIGHTS_SHA256}); "
            "install asr-deploy again"
        )
    start = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, Any] = msgspec.json.decode(data[8:start])
    del header["__metadata__"]
    tensors: dict[str, Floats] = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        values = np.frombuffer(data[start + first : start + last], "<f4").reshape(entry["shape"])
        tensors[name] = values.astype(np.float32)
    return tensors


@cache
def _model() -> _Model:
    weights = read_weights(weights_file())
    basis = weights["stft.forward_basis_buffer"].reshape(2 * _BINS, _WINDOW)

    def layer(index: int, taps: slice) -> tuple[Floats, Floats]:
        kernel = weights[f"encoder.{index}.reparam_conv.weight"][:, :, taps]  # [out, in, taps]
        matrix = np.ascontiguousarray(kernel.transpose(2, 1, 0)).reshape(-1, len(kernel))
        return matrix, weights[f"encoder.{index}.reparam_conv.bias"]

    def gates(name: str) -> Floats:
        """Reorder PyTorch's gates (input, forget, cell, output): cell last, the others halved for `_recur`."""
        enter, forget, cell, output = np.split(weights[f"decoder.rnn.{name}"], 4)
        return np.concatenate([0.5 * enter, 0.5 * forget, 0.5 * output, cell])

    return _Model(
        spectrum=[np.ascontiguousarray(half.T) for half in np.split(basis, 2)],
        # Positions go 4, 4, 2, 1, 1. Taps that only ever multiply padding are left out.
        layers=[layer(0, slice(3)), layer(1, slice(3)), layer(2, slice(1, 3)), layer(3, slice(1, 2))],
        input_gates=np.ascontiguousarray(gates("weight_ih").T),
        hidden_gates=np.ascontiguousarray(gates("weight_hh").T),
        gate_bias=gates("bias_ih") + gates("bias_hh"),
        head=weights["decoder.decoder.2.weight"].reshape(STATE_SIZE),
        head_bias=weights["decoder.decoder.2.bias"],
    )


class SpeechDetector:
    """Score one stream of mono audio at 16 kHz, samples float32 in -1..1.

    Keeps the state of its stream: create one for each file. Detectors are independent, also in different threads.

    Raises:
        ArtifactNotFoundError: the bundled weights are missing.
        ArtifactInvalidError: the bundled weights are damaged.
    """

    def __init__(self) -> None:
        self._model = _model()
        self._hidden = np.zeros(STATE_SIZE, np.float32)
        self._cell = np.zeros(STATE_SIZE, np.float32)
        self._loudest = 0.0  # RMS of the loudest frame so far
        self._pending = np.zeros(CONTEXT_SAMPLES, np.float32)  # context, then the samples of an incomplete frame

    def probabilities(self, samples: Floats) -> Floats:
        """Return the probability of speech, 0..1, of each frame that `samples` [n] complete: [frames], maybe none."""
        pending = np.concatenate([self._pending, samples])
        count = (len(pending) - CONTEXT_SAMPLES) // FRAME_SAMPLES
        self._pending = pending[count * FRAME_SAMPLES :].copy()
        if not count:
            return np.zeros(0, np.float32)
        frames = np.lib.stride_tricks.sliding_window_view(pending, CONTEXT_SAMPLES + FRAME_SAMPLES)[::FRAME_SAMPLES]
        starts = range(0, count, _FRAMES_PER_CALL)
        return np.concatenate([self._amplified(frames[start : start + _FRAMES_PER_CALL]) for start in starts])

    def finish(self) -> Floats:
        """Score the last, incomplete frame, filled up with zeros: [1], or [0] if there is none."""
        missing = FRAME_SAMPLES - (len(self._pending) - CONTEXT_SAMPLES)
        return self.probabilities(np.zeros(missing % FRAME_SAMPLES, np.float32))

    def _amplified(self, frames: Floats) -> Floats:
        gains = self._gains(frames[:, CONTEXT_SAMPLES:]).astype(np.float32)
        return self.score(frames * gains[:, None])

    def _gains(self, frames: Floats) -> npt.NDArray[np.float64]:
        """Gain of each frame [n, 512] → [n]."""
        rms = np.sqrt(np.square(frames, dtype=np.float64).mean(axis=1))
        loudest = np.maximum.accumulate(np.maximum(rms, self._loudest))
        self._loudest = float(loudest[-1])
        gains = _TARGET_RMS / np.maximum(loudest, _TARGET_RMS / _MAX_GAIN)
        return np.where(loudest > 1.0, gains, np.maximum(gains, 1.0))

    def score(self, frames: Floats) -> Floats:
        """Run the network alone, without gain, on the next frames, each behind its context: [n, 64 + 512] → [n]."""
        model = self._model
        inputs = (_encode(model, frames) @ model.input_gates)[:, 0] + model.gate_bias
        hidden = np.maximum(self._recur(inputs), 0)
        score: Floats = 1 / (1 + np.exp(-((hidden * model.head).sum(axis=1) + model.head_bias)))
        return score

    def _recur(self, inputs: Floats) -> Floats:
        """Run the LSTM over its gates' inputs [n, 512] (input, forget, output, cell) → hidden states [n, 128].

        Weights and biases of the first three are halved, so that one hyperbolic tangent serves all four:
        sigmoid(x) = tanh(x / 2) / 2 + 1 / 2.
        """
        size, weights = STATE_SIZE, self._model.hidden_gates
        hidden, cell = self._hidden, self._cell
        outputs = np.empty((len(inputs), size), np.float32)
        gates, sigmoids = np.empty(4 * size, np.float32), np.empty(3 * size, np.float32)
        for row, entering in enumerate(inputs):
            np.dot(hidden, weights, out=gates)
            gates += entering
            np.tanh(gates, out=gates)
            np.multiply(gates[: 3 * size], 0.5, out=sigmoids)
            sigmoids += 0.5
            cell = sigmoids[size : 2 * size] * cell + sigmoids[:size] * gates[3 * size :]
            hidden = np.multiply(sigmoids[2 * size :], np.tanh(cell), out=outputs[row])
        self._hidden, self._cell = hidden.copy(), cell
        return outputs


def _encode(model: _Model, frames: Floats) -> Floats:
    """Frames with context [n, 576] → encoder outputs [n, 1, 128]: magnitudes of the spectrum, then four convolutions.

    Padding is written into arrays by hand: `np.pad` takes longer than all products of a single frame.
    """
    count, length = frames.shape
    padded = np.empty((count, _HOPS * _HOP), np.float32)
    padded[:, :length] = frames
    padded[:, length:] = frames[:, length - 2 : length - 2 - _PADDING : -1]
    hops = padded.reshape(count, _HOPS, _HOP)
    windows = np.concatenate([hops[:, :-1], hops[:, 1:]], axis=2)
    power, imaginary = (windows @ half for half in model.spectrum)
    power *= power
    imaginary *= imaginary
    power += imaginary
    # Kernel 3, stride 1: a zero at both ends.
    magnitudes = np.zeros((count, _POSITIONS + 2, _BINS), np.float32)
    np.sqrt(power, out=magnitudes[:, 1:-1])
    taps = [magnitudes[:, tap : tap + _POSITIONS] for tap in range(3)]
    value = _layer(model.layers[0], np.concatenate(taps, axis=2))
    # Kernel 3, stride 2: position 0 of the result has a zero and inputs 0, 1; position 1 has inputs 1, 2, 3.
    pairs = np.zeros((count, 6, value.shape[2]), np.float32)
    pairs[:, 1:3] = value[:, :2]
    pairs[:, 3:] = value[:, 1:]
    value = _layer(model.layers[1], pairs.reshape(count, 2, -1))
    value = _layer(model.layers[2], value.reshape(count, 1, -1))
    return _layer(model.layers[3], value)


def _layer(layer: tuple[Floats, Floats], value: Floats) -> Floats:
    """Affine map and ReLU: [n, positions, inputs] → [n, positions, outputs]."""
    matrix, bias = layer
    product: Floats = value @ matrix
    product += bias
    return np.maximum(product, 0, out=product)
