"""Write our Whisper as onnx-asr reads it: the names of optimum, first pass and step in one graph, the same weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from tokenizers import Tokenizer

from benchmarks.peer_graphs import FLOAT32, INT64, load, rename, value_of, write_config
from quantize.graph import Editor, drop_unused_initializers
from runtime.model.artifact import Artifact, open_artifact

_KINDS = ("key", "value")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of a Whisper that its graphs' shapes depend on."""

    layers: int
    heads: int
    positions: int
    head_dim: int

    @property
    def packed(self) -> ir.Shape:
        """Shape of all keys and values of cross-attention, joined along axis 1."""
        return ir.Shape(["batch", 2 * self.layers * self.heads, self.positions, self.head_dim])

    @property
    def parts(self) -> list[tuple[int, str]]:
        """Layer and kind of each cache, in the graph's order."""
        return [(layer, kind) for layer in range(self.layers) for kind in _KINDS]

    def past(self) -> dict[str, ir.Value]:
        """Return the inputs of optimum's decoders for keys and values, by name."""
        lengths = {"decoder": "past", "encoder": "audio"}
        return {
            name: value_of(name, FLOAT32, ["batch", self.heads, lengths[role], self.head_dim])
            for layer in range(self.layers)
            for role in lengths
            for kind in _KINDS
            for name in [past_name(layer, role, kind)]
        }


@dataclass(frozen=True, slots=True)
class Branch:
    """Values that one of the two passes uses as our decoder's inputs, and the audio caches that it outputs."""

    own: Mapping[tuple[int, str], ir.Value]
    across: Mapping[tuple[int, str], ir.Value]
    audio_out: Mapping[tuple[int, str], ir.Value]
    total: ir.Value  # int64 [2]: rows, and tokens of each with the new ones


def past_name(layer: int, role: str, kind: str) -> str:
    """Return the name of a layer's keys or values among the inputs of optimum's decoders."""
    return f"past_key_values.{layer}.{role}.{kind}"


def write_whisper(parent: Path, out: Path) -> Path:
    """Write a float32 Whisper artifact as onnx-asr's ``whisper``, which has the names of optimum.

    onnx-asr passes the encoder's output to the decoder unread: here it holds all keys and values of cross-attention,
    which the first pass splits and outputs with the past, so that steps copy none of it.
    """
    artifact = open_artifact(parent)
    out.mkdir(parents=True)
    parameters = artifact.manifest.parameters
    sizes = Sizes(*(parameters[key] for key in ("layers", "heads", "audio_positions", "head_dim")))
    encoder = load(artifact, "encoder", out)
    rename(encoder.graph.inputs, {"features": "input_features"})
    packed = Editor(encoder.graph, "peer").node("Concat", list(encoder.graph.outputs), axis=1)
    packed.name, packed.type, packed.shape = "last_hidden_state", ir.TensorType(FLOAT32), sizes.packed
    encoder.graph.outputs[:] = [packed]
    ir.save(encoder, out / "encoder_model.onnx")
    ir.save(_merged_decoder(artifact, out, sizes), out / "decoder_model_merged.onnx")
    tokenizer = Tokenizer.from_file(str(parent / artifact.manifest.tokenizer))
    added = {token.content: index for index, token in tokenizer.get_added_tokens_decoder().items()}
    # Byte-level tokens contain no spaces, but the fillers in a random checkpoint's vocabulary do.
    texts = {token.replace(" ", "Ġ"): index for token, index in tokenizer.get_vocab().items() if token not in added}
    (out / "vocab.json").write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
    (out / "added_tokens.json").write_text(json.dumps(added, ensure_ascii=False), encoding="utf-8")
    write_config(out, num_mel_bins=int(artifact.manifest.front_end["n_mels"]))
    return out


def _merged_decoder(artifact: Artifact, out: Path, sizes: Sizes) -> ir.Model:
    """Return first pass and step as the branches of one ``If`` over the same initializers."""
    model = load(artifact, "decoder", out)
    ids = value_of("input_ids", INT64, ["batch", "tokens"])
    audio = value_of("encoder_hidden_states", FLOAT32, sizes.packed)
    cached, past = value_of("use_cache_branch", ir.DataType.BOOL, [1]), sizes.past()

    step = model.graph.clone(allow_outer_scope_values=True)
    _connect(step, sizes, ids, _step(Editor(step, "peer"), sizes, ids, past))
    begin = model.graph.clone(allow_outer_scope_values=True)
    _connect(begin, sizes, ids, _first_pass(Editor(begin, "peer"), sizes, ids, audio))

    chosen = ir.Node(
        "",
        "If",
        [cached],
        [ir.AttrGraph("then_branch", step), ir.AttrGraph("else_branch", begin)],
        num_outputs=1 + len(past),
        name="If",
    )
    names = ["logits", *(name.replace("past_key_values", "present") for name in past)]
    for value, name in zip(chosen.outputs, names, strict=True):
        axes = 3 if name == "logits" else 4
        value.name, value.type = name, ir.TensorType(FLOAT32)
        value.shape = ir.Shape([f"{name}.{axis}" for axis in range(axes)])
    graph = ir.Graph(
        [ids, audio, cached, *past.values()],
        list(chosen.outputs),
        nodes=[chosen],
        initializers=_shared({"step": step, "begin": begin}),
        opset_imports=model.graph.opset_imports,
        name="decoder",
    )
    return ir.Model(graph, ir_version=model.ir_version)


def _first_pass(edit: Editor, sizes: Sizes, ids: ir.Value, audio: ir.Value) -> Branch:
    """Return the branch without a past, which splits the packed audio."""
    rows = edit.node("Shape", [ids], start=0, end=1)
    room = edit.constant("room", np.array([sizes.heads, 0, sizes.head_dim], np.int64))
    shape = edit.node("Concat", [rows, room], axis=0)
    empty = edit.node("ConstantOfShape", [shape], value=ir.tensor(np.zeros(1, np.float32)))
    count = len(sizes.parts)
    attributes = [ir.AttrInt64("axis", 1), ir.AttrInt64("num_outputs", count)]
    split = ir.Node("", "Split", [audio], attributes, num_outputs=count, name="peer/Split")
    edit.graph.append(split)
    for index, value in enumerate(split.outputs):
        value.name = f"peer/Split/output_{index}"
    across = dict(zip(sizes.parts, split.outputs, strict=True))
    return Branch(dict.fromkeys(sizes.parts, empty), across, across, edit.node("Shape", [ids]))


def _step(edit: Editor, sizes: Sizes, ids: ir.Value, past: Mapping[str, ir.Value]) -> Branch:
    """Return the branch with a past. Its audio caches have no rows: onnx-asr then uses the former ones again."""
    own, across = (
        {(layer, kind): past[past_name(layer, role, kind)] for layer, kind in sizes.parts}
        for role in ("decoder", "encoder")
    )
    nothing = edit.constant("nothing", np.zeros((0, sizes.heads, 1, sizes.head_dim), np.float32))
    audio_out = {part: edit.node("Identity", [nothing]) for part in sizes.parts}
    rows, new = edit.node("Shape", [ids], start=0, end=1), edit.node("Shape", [ids], start=1, end=2)
    before = edit.node("Shape", [own[sizes.parts[0]]], start=2, end=3)
    return Branch(own, across, audio_out, edit.node("Concat", [rows, edit.node("Add", [before, new])], axis=0))


def _connect(graph: ir.Graph, sizes: Sizes, ids: ir.Value, branch: Branch) -> None:
    """Connect our decoder's nodes to a branch's values; output the logits of the last position alone."""
    edit = Editor(graph, "peer/all")
    feeds = {
        "input_ids": ids,
        "attention_mask": edit.node("ConstantOfShape", [branch.total], value=ir.tensor(np.ones(1, np.int64))),
        "num_logits_to_keep": edit.constant("one", np.array([1], np.int64)),
    }
    for layer, kind in sizes.parts:
        feeds[f"past_key_values.{layer}.{kind}"] = branch.own[layer, kind]
        feeds[f"cross_key_values.{layer}.{kind}"] = branch.across[layer, kind]
    inputs = list(graph.inputs)
    graph.inputs.clear()
    for value in inputs:
        ir.convenience.replace_all_uses_with(value, feeds[str(value.name)])
    outputs = {str(value.name): value for value in graph.outputs}
    present: list[ir.Value] = []
    for layer in range(sizes.layers):
        present += [outputs[f"present.{layer}.{kind}"] for kind in _KINDS]
        present += [branch.audio_out[layer, kind] for kind in _KINDS]
    graph.outputs[:] = [outputs["logits"], *present]
    drop_unused_initializers(graph)
    graph.sort()


def _shared(branches: Mapping[str, ir.Graph]) -> Sequence[ir.Value]:
    """Take the initializers out of all branches and return each once; prefix all other names with the branch."""
    shared: dict[str, ir.Value] = {}
    for branch, graph in branches.items():
        graph.name = branch
        for name, value in list(graph.initializers.items()):
            del graph.initializers[name]
            if name.startswith("peer/"):
                value.name = f"{branch}/{name}"
            known = shared.setdefault(str(value.name), value)
            if known is not value:
                ir.convenience.replace_all_uses_with(value, known)
        for node in graph:
            node.name = f"{branch}/{node.name}"
            for output in node.outputs:
                output.name = f"{branch}/{output.name}"
    return list(shared.values())
