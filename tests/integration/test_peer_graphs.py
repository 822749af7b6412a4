"""Graphs for other packages compute the same numbers as ours, called as those packages call them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from typer.testing import CliRunner

from benchmarks.peer_graphs import write_gigaam, write_parakeet
from benchmarks.peer_whisper import write_whisper
from export.__main__ import app
from export.compare import speech
from runtime.decoding.tdt import Ints, States, greedy_tdt
from runtime.engines.base import EngineOptions
from runtime.engines.frame import padded
from runtime.families.gigaam import GigaAMEngine
from runtime.families.parakeet import ParakeetTdtEngine
from runtime.families.whisper.engine import WhisperEngine
from runtime.features.log_mel import log_mel
from runtime.model.artifact import open_artifact
from runtime.results import Timings
from tests.helpers import parakeet_checkpoint as tiny_parakeet
from tests.helpers import whisper_checkpoint
from tests.helpers.gigaam_checkpoint import TINY, write

pytestmark = pytest.mark.slow

Floats = npt.NDArray[np.float32]
CLOSE = 1e-5


def exported(name: str, folder: Path, checkpoint: Path) -> Path:
    result = CliRunner().invoke(app, [name, "--checkpoint", str(checkpoint), "--out", str(folder / "float32")])
    assert result.exit_code == 0, result.output
    return folder / "float32"


def session(path: Path) -> Callable[[list[str], dict[str, Any]], list[npt.NDArray[Any]]]:
    run: Callable[[list[str], dict[str, Any]], list[npt.NDArray[Any]]] = ort.InferenceSession(path).run
    return run


def test_gigaam(tmp_path: Path) -> None:
    artifact = exported("gigaam-v3-ctc", tmp_path, write("ctc", tmp_path / "checkpoint", **TINY))
    out = write_gigaam(artifact, tmp_path / "peer")
    engine = GigaAMEngine(open_artifact(artifact), EngineOptions())
    batch, lengths = padded([engine.features(speech(seconds)) for seconds in (2.0, 1.3)])
    ours, _ = engine.encode(batch, lengths)
    feeds = {"features": batch.transpose(0, 2, 1), "feature_lengths": lengths}
    (outputs,) = session(out / "v3_ctc.onnx")(["log_probs"], feeds)
    assert np.abs(outputs - ours).max() < CLOSE
    lines = (out / "tokens.txt").read_text(encoding="utf-8").splitlines()
    assert (lines[0], lines[-1]) == ("\u2581 0", "<blk> 33")
    assert json.loads((out / "config.json").read_text())["version"] == "v3"


class NemoJoint:
    """``decoder_joint-model.onnx`` as onnx-asr calls it: a row, a token, a frame at a time."""

    def __init__(self, folder: Path, layers: int, width: int) -> None:
        self._run = session(folder / "decoder_joint-model.onnx")
        self._shape = (layers, 1, width)

    def start(self, rows: int) -> States:
        assert rows == 1
        return States(np.zeros(self._shape, np.float32), np.zeros(self._shape, np.float32))

    def step(self, tokens: Ints, states: States, frames: Floats) -> tuple[Floats, Floats, States]:
        feeds = {
            "encoder_outputs": frames[:, :, None],
            "targets": tokens[:, None].astype(np.int32),
            "target_length": np.ones(1, np.int32),
            "input_states_1": states.hidden,
            "input_states_2": states.cell,
        }
        logits, hidden, cell = self._run(["outputs", "output_states_1", "output_states_2"], feeds)
        return *split(logits), States(hidden, cell)


class SherpaJoint(NemoJoint):
    """``decoder.onnx`` and ``joiner.onnx``, whose inputs and outputs sherpa-onnx takes by position."""

    def __init__(self, folder: Path, layers: int, width: int) -> None:
        self._decoder, self._joiner = (ort.InferenceSession(folder / name) for name in ("decoder.onnx", "joiner.onnx"))
        self._shape = (layers, 1, width)

    def step(self, tokens: Ints, states: States, frames: Floats) -> tuple[Floats, Floats, States]:
        inputs = (tokens[:, None].astype(np.int32), np.ones(1, np.int32), states.hidden, states.cell)
        predicted, _, hidden, cell = self._decoder.run(None, self._by_position(self._decoder, inputs))
        (logits,) = self._joiner.run(None, self._by_position(self._joiner, (frames[:, :, None], predicted)))
        return *split(logits), States(hidden, cell)

    @staticmethod
    def _by_position(graph: ort.InferenceSession, arrays: tuple[npt.NDArray[Any], ...]) -> dict[str, npt.NDArray[Any]]:
        return {value.name: array for value, array in zip(graph.get_inputs(), arrays, strict=True)}


def split(logits: npt.NDArray[Any]) -> tuple[Floats, Floats]:
    row = logits.reshape(1, -1)
    return row[:, : tiny_parakeet.VOCABULARY], row[:, tiny_parakeet.VOCABULARY :]


def test_parakeet(tmp_path: Path) -> None:
    checkpoint = tiny_parakeet.write(tiny_parakeet.tdt_model(), tmp_path / "checkpoint")
    artifact = exported("parakeet-tdt-0.6b-v3", tmp_path, checkpoint)
    out = write_parakeet(artifact, tmp_path / "peer")
    engine = ParakeetTdtEngine(open_artifact(artifact), EngineOptions())
    batch, lengths = padded([engine.features(speech(seconds)) for seconds in (6.0, 4.0)])
    ours, valid = engine.encode(batch, lengths)
    encoder = ort.InferenceSession(out / "encoder-model.onnx")
    names = [value.name for value in encoder.get_outputs()]
    assert names == ["outputs", "encoded_lengths"]  # sherpa-onnx takes them by position
    outputs, counts = encoder.run(names, {"audio_signal": batch.transpose(0, 2, 1), "length": lengths})
    assert np.abs(outputs.transpose(0, 2, 1) - ours).max() < CLOSE
    assert counts.tolist() == valid.tolist()
    assert encoder.get_modelmeta().custom_metadata_map["vocab_size"] == str(tiny_parakeet.VOCABULARY - 1)
    frames = [ours[0, : valid[0]]]
    parameters = engine.parameters
    ((_, expected),) = engine.decode(frames, [None], lambda _: False)
    assert len(expected.tokens) > 20
    for kind in (NemoJoint, SherpaJoint):
        joint = kind(out, parameters.predictor_layers, parameters.predictor_size)
        ((_, hypothesis),) = greedy_tdt(joint, frames, parameters.rules)
        assert hypothesis.tokens == expected.tokens
        assert hypothesis.ends == expected.ends
    assert (out / "vocab.txt").read_text(encoding="utf-8").splitlines()[-1] == f"<blk> {tiny_parakeet.BLANK}"


def test_whisper(tmp_path: Path) -> None:
    """First pass and steps of onnx-asr's loop give the logits of our decoder over the whole text at once."""
    whisper_checkpoint.write(tmp_path / "checkpoint")
    artifact = exported("whisper-large-v3-turbo", tmp_path, tmp_path / "checkpoint")
    out = write_whisper(artifact, tmp_path / "peer")
    engine = WhisperEngine(open_artifact(artifact), EngineOptions())
    ids = np.array([[257, 258, 264, 268, 40, 41, 42], [257, 259, 264, 268, 7, 90, 12]])
    audio = [engine.encode(speech(seconds), Timings()) for seconds in (2.0, 1.0)]
    together = [np.concatenate(rows) for rows in zip(*audio, strict=True)]
    feeds = engine._decoder.feeds(ids, together, logits_count=ids.shape[1])
    (expected,) = engine._sessions["decoder"].run(["logits"], feeds)

    features = np.stack([log_mel(speech(seconds), engine._front_end) for seconds in (2.0, 1.0)])
    (packed,) = session(out / "encoder_model.onnx")(["last_hidden_state"], {"input_features": features})
    decoder = ort.InferenceSession(out / "decoder_model_merged.onnx")
    state = {
        value.name: np.zeros((0, value.shape[1], 0, value.shape[3]), np.float32)
        for value in decoder.get_inputs()
        if value.name.startswith("past_key_values.")
    }
    names = ["logits", *(name.replace("past_key_values.", "present.") for name in state)]
    new, index = ids[:, :4], 3
    while True:
        inputs = {"input_ids": new, "encoder_hidden_states": packed, "use_cache_branch": np.array([index > 3])}
        logits, *present = decoder.run(names, inputs | state)
        assert np.abs(logits[:, -1] - expected[:, index]).max() < 1e-3
        assert (logits[:, -1].argmax(1) == expected[:, index].argmax(1)).all()
        state = {key: after if len(after) else state[key] for key, after in zip(state, present, strict=True)}
        index += 1
        if index == ids.shape[1]:
            break
        new = ids[:, index : index + 1]
    vocabulary = json.loads((out / "vocab.json").read_text(encoding="utf-8"))
    added = json.loads((out / "added_tokens.json").read_text(encoding="utf-8"))
    assert added["<|startoftranscript|>"] == 257
    assert not set(vocabulary) & set(added)
