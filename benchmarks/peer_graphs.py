"""Write our graphs with the names and axes that other packages expect; weights are linked, not copied.

The expected forms are taken from the code of the packages: onnx-asr 0.12 (``models/nemo.py``, ``models/gigaam.py``) and
sherpa-onnx 2.0 (``offline-transducer-nemo-model.cc``, ``scripts/nemo``). Both read the same graphs for GigaAM and for
Parakeet's encoder; sherpa-onnx also reads their metadata.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from tokenizers import Tokenizer

from quantize.graph import Editor
from runtime.model.artifact import Artifact, open_artifact

INT64, INT32, FLOAT32 = ir.DataType.INT64, ir.DataType.INT32, ir.DataType.FLOAT
_SPACE = "\u2581"


def write_gigaam(parent: Path, out: Path) -> Path:
    """Write a GigaAM artifact as onnx-asr's ``gigaam-v3-ctc`` and as sherpa-onnx's NeMo CTC with ``is_giga_am``."""
    artifact = open_artifact(parent)
    out.mkdir(parents=True)
    model = load(artifact, "encoder", out)
    rename(model.graph.inputs, {"lengths": "feature_lengths"})
    parameters = artifact.manifest.parameters
    drop_outputs(model.graph, {"encoded_lengths"})
    model.metadata_props.update(
        vocab_size=str(parameters["vocab_size"]),
        normalize_type="",
        subsampling_factor=str(parameters["subsampling"]),
        model_type="EncDecCTCModel",
        is_giga_am="1",
    )
    ir.save(model, out / "v3_ctc.onnx")
    _write_vocabulary(artifact, out, ("v3_vocab.txt", "tokens.txt"))
    write_config(out, version="v3", features_size=64, subsampling_factor=parameters["subsampling"])
    return out


def write_parakeet(parent: Path, out: Path) -> Path:
    """Write a Parakeet TDT artifact as onnx-asr's ``nemo-conformer-tdt`` and as sherpa-onnx's NeMo transducer."""
    artifact = open_artifact(parent)
    out.mkdir(parents=True)
    parameters = artifact.manifest.parameters
    mels = int(artifact.manifest.front_end["n_mels"])
    model = load(artifact, "encoder", out)
    graph, edit = model.graph, Editor(model.graph, "peer")
    signal = value_of("audio_signal", FLOAT32, ["batch", mels, "frames"])
    features = next(value for value in graph.inputs if value.name == "features")
    _replace_input(graph, features, signal, edit.node("Transpose", [signal], perm=[0, 2, 1]))
    rename(graph.inputs, {"lengths": "length"})
    encoded = next(value for value in graph.outputs if value.name == "encoded")
    turned = edit.node("Transpose", [encoded], perm=[0, 2, 1])
    turned.name, turned.type = "outputs", ir.TensorType(FLOAT32)
    turned.shape = ir.Shape(["batch", parameters["hidden_size"], "encoded_frames"])
    graph.outputs[list(graph.outputs).index(encoded)] = turned
    model.metadata_props.update(
        vocab_size=str(parameters["vocab_size"] - 1),  # without the blank
        normalize_type="per_feature",
        pred_rnn_layers=str(parameters["predictor_layers"]),
        pred_hidden=str(parameters["predictor_size"]),
        subsampling_factor=str(parameters["subsampling"]),
        model_type="EncDecRNNTBPEModel",
        feat_dim=str(mels),
        url="parakeet-tdt",
    )
    graph.sort()
    ir.save(model, out / "encoder-model.onnx")
    _write_joint(artifact, out)
    _write_prediction_and_joint(artifact, out)
    _write_vocabulary(artifact, out, ("vocab.txt", "tokens.txt"))
    write_config(
        out,
        features_size=mels,
        subsampling_factor=parameters["subsampling"],
        max_tokens_per_step=parameters["max_symbols"],
    )
    return out


def _write_joint(artifact: Artifact, out: Path) -> None:
    """Write ``decoder_joint-model.onnx``: prediction and joint network in one graph, for one row."""
    model = load(artifact, "decoder_joint", out)
    graph, edit = model.graph, Editor(model.graph, "peer")
    old = {value.name: value for value in graph.inputs}
    width = artifact.manifest.parameters["hidden_size"]
    frame = value_of("encoder_outputs", FLOAT32, ["batch", width, 1])
    _replace_input(graph, old["frame"], frame, edit.node("Squeeze", [frame, edit.constant("two", np.array([2]))]))
    _add_targets(graph, edit, old["token"])
    rename(graph.inputs, {"hidden": "input_states_1", "cell": "input_states_2"})
    graph.inputs[:] = _ordered(
        graph.inputs, ("encoder_outputs", "targets", "target_length", "input_states_1", "input_states_2")
    )
    outputs = {value.name: value for value in graph.outputs}
    joined = _joined(edit, outputs["token_logits"], outputs["duration_logits"], "outputs")
    rename(graph.outputs, {"next_hidden": "output_states_1", "next_cell": "output_states_2"})
    graph.outputs[:] = [joined, outputs["next_hidden"], outputs["next_cell"]]
    graph.sort()
    ir.save(model, out / "decoder_joint-model.onnx")


def _write_prediction_and_joint(artifact: Artifact, out: Path) -> None:
    """Write ``decoder.onnx`` and ``joiner.onnx``, split where the prediction is added to the encoder's frame."""
    whole = load(artifact, "decoder_joint", out)
    inputs = {value.name: value for value in whole.graph.inputs}
    (meeting,) = [use.node for use in inputs["frame"].uses()]
    (predicted,) = [value for value in meeting.inputs if value is not None and value is not inputs["frame"]]
    name, width = predicted.name, artifact.manifest.parameters["hidden_size"]

    decoder = _part(whole, ["token", "hidden", "cell"], [name, "next_hidden", "next_cell"])
    graph, edit = decoder.graph, Editor(decoder.graph, "peer")
    _add_targets(graph, edit, next(value for value in graph.inputs if value.name == "token"))
    lengths = edit.node("Identity", [next(value for value in graph.inputs if value.name == "target_length")])
    lengths.name, lengths.type, lengths.shape = "prednet_lengths", ir.TensorType(INT32), ir.Shape(["batch"])
    rename(graph.inputs, {"hidden": "states.1", "cell": "states.2"})
    graph.inputs[:] = _ordered(graph.inputs, ("targets", "target_length", "states.1", "states.2"))
    outputs = {value.name: value for value in graph.outputs}
    graph.outputs[:] = [outputs[name], lengths, outputs["next_hidden"], outputs["next_cell"]]
    outputs[name].shape, outputs[name].type = ir.Shape(["batch", width]), ir.TensorType(FLOAT32)
    graph.sort()
    ir.save(decoder, out / "decoder.onnx")

    joiner = _part(whole, ["frame", name], ["token_logits", "duration_logits"])
    graph, edit = joiner.graph, Editor(joiner.graph, "peer")
    frame = value_of("encoder_outputs", FLOAT32, ["batch", width, 1])
    inputs = {value.name: value for value in graph.inputs}
    inputs[name].shape, inputs[name].type = ir.Shape(["batch", width]), ir.TensorType(FLOAT32)
    _replace_input(graph, inputs["frame"], frame, edit.node("Squeeze", [frame, edit.constant("two", np.array([2]))]))
    graph.inputs[:] = [frame, inputs[name]]
    logits = {value.name: value for value in graph.outputs}
    graph.outputs[:] = [_joined(edit, logits["token_logits"], logits["duration_logits"], "outputs")]
    graph.sort()
    ir.save(joiner, out / "joiner.onnx")


def load(artifact: Artifact, role: str, out: Path) -> ir.Model:
    """Load a graph, and link the file of its weights into ``out``."""
    path = artifact.graph_path(role)
    if data := artifact.manifest.graphs[role].data:
        link(path.with_name(data), out / data)
    return ir.load(path)


def link(source: Path, target: Path) -> None:
    """Link a file to ``target``, or copy it where the file system has no hard links."""
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def value_of(name: str, dtype: ir.DataType, shape: ir.Shape | Sequence[int | str]) -> ir.Value:
    """Return a new graph value."""
    known = shape if isinstance(shape, ir.Shape) else ir.Shape(shape)
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=known)


def rename(values: Iterable[ir.Value], names: Mapping[str, str]) -> None:
    for value in values:
        value.name = names.get(str(value.name), value.name)


def drop_outputs(graph: ir.Graph, names: set[str]) -> None:
    """Remove outputs by name; the nodes that only they need cost next to nothing."""
    graph.outputs[:] = [value for value in graph.outputs if value.name not in names]


def _replace_input(graph: ir.Graph, old: ir.Value, new: ir.Value, within: ir.Value) -> None:
    """Replace the input ``old`` by ``new``, and its uses by ``within``, which is computed from ``new``."""
    ir.convenience.replace_all_uses_with(old, within)
    graph.inputs[list(graph.inputs).index(old)] = new


def _ordered(values: Iterable[ir.Value], names: Sequence[str]) -> list[ir.Value]:
    by_name = {value.name: value for value in values}
    return [by_name[name] for name in names]


def _add_targets(graph: ir.Graph, edit: Editor, token: ir.Value) -> None:
    """Replace our token by ``targets`` int32 [rows, 1], and add a ``target_length`` that nothing reads."""
    targets = value_of("targets", INT32, ["batch", 1])
    wide = edit.node("Cast", [targets], to=int(INT64))
    _replace_input(graph, token, targets, edit.node("Squeeze", [wide, edit.constant("last", np.array([1]))]))
    graph.inputs.append(value_of("target_length", INT32, ["batch"]))


def _joined(edit: Editor, tokens: ir.Value, durations: ir.Value, name: str) -> ir.Value:
    """Return the logits of tokens and durations as one value [rows, 1, 1, tokens + durations]."""
    both = edit.node("Concat", [tokens, durations], axis=1)
    logits = edit.node("Unsqueeze", [both, edit.constant("middle", np.array([1, 2]))])
    logits.name, logits.type, logits.shape = name, ir.TensorType(FLOAT32), ir.Shape(["batch", 1, 1, "logits"])
    return logits


def _part(model: ir.Model, inputs: Sequence[str | None], outputs: Sequence[str | None]) -> ir.Model:
    """Return the subgraph that computes ``outputs`` from ``inputs``."""
    graph = ir.convenience.extract(model.graph, [str(each) for each in inputs], [str(each) for each in outputs])
    return ir.Model(graph, ir_version=model.ir_version)


def _write_vocabulary(artifact: Artifact, out: Path, files: Sequence[str]) -> None:
    """Write one token with its id per line, the blank as ``<blk>`` at its id."""
    tokenizer = Tokenizer.from_file(str(artifact.path / artifact.manifest.tokenizer))
    parameters = artifact.manifest.parameters
    blank, count = parameters["blank_id"], parameters["vocab_size"]
    tokens = [tokenizer.id_to_token(index) or f"<{index}>" for index in range(count)]
    tokens[blank] = "<blk>"
    text = "".join(f"{token.replace(' ', _SPACE)} {index}\n" for index, token in enumerate(tokens))
    for file in files:
        (out / file).write_text(text, encoding="utf-8")


def write_config(out: Path, **settings: Any) -> None:
    """Write ``config.json``."""
    (out / "config.json").write_text(json.dumps(settings))
