"""Tests of prepacked graphs: same results, used only on the same machine, written completely or not at all."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import runtime.ort.prepacked as module
from runtime.__main__ import app
from runtime.errors import ArtifactInvalidError, OptionError
from runtime.model.artifact import Artifact, open_artifact
from runtime.ort.prepacked import prepack, prepacked_folder, prepacked_graph, remove_prepacked
from runtime.ort.providers import ProviderSpec
from runtime.ort.session import LAST_UNALIGNED_VERSION, make_session, misreads_unaligned_weights, save_prepacked
from tests.conftest import ARTIFACT

CPU = [ProviderSpec()]
RECORD = "prepared.json"


@pytest.fixture
def artifact() -> Artifact:
    return open_artifact(ARTIFACT)


def feeds(session: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random input: two windows for the encoder, seven tokens for the decoder."""
    arrays: dict[str, np.ndarray] = {}
    for tensor in session.get_inputs():
        if tensor.name == "features":
            arrays[tensor.name] = rng.standard_normal((2, 128, 200)).astype(np.float32)
        elif tensor.name == "lengths":
            arrays[tensor.name] = np.array([200, 130])
        elif tensor.name == "audio_embeds":
            arrays[tensor.name] = np.zeros((0, tensor.shape[-1]), np.float32)
        elif tensor.name.startswith("past"):
            dtype = {"tensor(float)": np.float32, "tensor(int8)": np.int8}[tensor.type]
            arrays[tensor.name] = np.zeros((1, tensor.shape[1], 0, tensor.shape[3]), dtype)
        elif tensor.name == "num_logits_to_keep":
            arrays[tensor.name] = np.array([0])
        else:
            arrays[tensor.name] = np.ones((1, 7), np.int64)
    return arrays


@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_results_equal_those_of_the_plain_graph(role: str, artifact: Artifact, rng: np.random.Generator) -> None:
    assert prepacked_graph(artifact, role, CPU) is None
    assert all(graph.new for graph in prepack(artifact))
    prepacked = prepacked_graph(artifact, role, CPU)
    assert prepacked
    assert prepacked_folder() in prepacked.parents
    plain = make_session(artifact.graph_path(role), CPU)
    mapped = make_session(artifact.graph_path(role), CPU, prepacked=prepacked)
    arrays = feeds(plain, rng)
    for expected, output in zip(plain.run(None, arrays), mapped.run(None, arrays), strict=True):
        np.testing.assert_array_equal(output, expected)


def test_packed_weights_are_in_the_file(artifact: Artifact) -> None:
    """Without packed weights the file would be no larger than the graph."""
    decoder = next(graph for graph in prepack(artifact) if graph.role == "decoder")
    assert b"prepacked_0" in decoder.path.read_bytes()
    assert decoder.size > 1.5 * artifact.graph_path("decoder").stat().st_size


def odd_sizes(path: Path, rng: np.random.Generator) -> None:
    """Write a graph with small and large weights, whose sizes leave the next weights at an unaligned offset."""
    nodes, weights, outputs = [], [], []
    sizes = [(160, 517, 8), (160, 517, 4), (640, 1001, 8), (640, 1701, 8), (160, 517, 8), (640, 3303, 4)]
    for index, (depth, width, bits) in enumerate(sizes):
        blocks = -(-depth // 64)
        weights += [
            numpy_helper.from_array(rng.integers(0, 255, (width, blocks, 8 * bits), np.uint8), f"values {index}"),
            numpy_helper.from_array(rng.random(width * blocks, np.float32) / 100, f"scales {index}"),
        ]
        inputs = [f"x {depth}", f"values {index}", f"scales {index}"]
        attributes: dict[str, Any] = {"K": depth, "N": width, "bits": bits, "block_size": 64, "accuracy_level": 4}
        nodes.append(helper.make_node("MatMulNBits", inputs, [f"y {index}"], domain="com.microsoft", **attributes))
        outputs.append(helper.make_tensor_value_info(f"y {index}", TensorProto.FLOAT, ["rows", width]))
    values = [helper.make_tensor_value_info(f"x {depth}", TensorProto.FLOAT, ["rows", depth]) for depth in (160, 640)]
    graph = helper.make_graph(nodes, "odd", values, outputs, weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def test_weights_at_unaligned_offsets_are_read_correctly(tmp_path: Path, rng: np.random.Generator) -> None:
    odd_sizes(tmp_path / "plain.onnx", rng)
    save_prepacked(tmp_path / "plain.onnx", tmp_path / "packed.onnx")
    feeds = {f"x {depth}": rng.standard_normal((3, depth), np.float32) for depth in (160, 640)}
    plain = make_session(tmp_path / "plain.onnx", [ProviderSpec()], threads=1).run(None, feeds)
    packed = make_session(tmp_path / "plain.onnx", [ProviderSpec()], threads=1, prepacked=tmp_path / "packed.onnx").run(
        None, feeds
    )
    for expected, output in zip(plain, packed, strict=True):
        np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1.31.0", True),
        ("1.31.1", True),
        ("1.31.0rc2", True),
        ("1.30.2", True),
        ("0.9", True),
        ("1.32.0", False),
        ("1.32.0.dev20261101", False),
        ("1.100.0", False),
        ("2.0.0", False),
    ],
)
def test_versions_that_misread_unaligned_weights(version: str, expected: bool) -> None:
    assert misreads_unaligned_weights(version) is expected


def test_offsets_are_not_checked_with_a_newer_version(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With an affected version the graph is written again, with small weights in the graph's own file."""
    odd_sizes(tmp_path / "plain.onnx", rng)
    caplog.set_level(logging.DEBUG, "runtime.ort.session")
    major, minor = LAST_UNALIGNED_VERSION
    sizes = {}
    for version in (f"{major}.{minor}.1", f"{major}.{minor + 1}.0"):
        monkeypatch.setattr("onnxruntime.__version__", version)
        caplog.clear()
        save_prepacked(tmp_path / "plain.onnx", tmp_path / "packed.onnx")
        sizes[version] = (tmp_path / "packed.onnx").stat().st_size
        messages = [record.getMessage() for record in caplog.records]
        assert any("offsets of packed weights are not checked" in message for message in messages) == (
            version == f"{major}.{minor + 1}.0"
        )
    affected, newer = sizes.values()
    assert affected > newer


def test_existing_graphs_are_not_written_again(artifact: Artifact) -> None:
    first = prepack(artifact)
    stamps = [graph.path.stat().st_mtime_ns for graph in first]
    again = prepack(artifact, on_progress=pytest.fail)
    assert not any(graph.new for graph in again)
    assert [graph.path.stat().st_mtime_ns for graph in again] == stamps


def other_weights(artifact: Artifact) -> Artifact:
    files = dict(artifact.manifest.files)
    name = artifact.manifest.graphs["decoder"].file
    files[name] = msgspec.structs.replace(files[name], sha256="0" * 64)
    return Artifact(artifact.path, msgspec.structs.replace(artifact.manifest, files=files))


def test_graphs_of_another_machine_or_model_are_not_used(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepack(artifact)
    assert prepacked_graph(artifact, "decoder", CPU)
    assert prepacked_graph(artifact, "decoder", [ProviderSpec("cuda")]) is None
    assert prepacked_graph(other_weights(artifact), "decoder", CPU) is None
    with pytest.raises(ArtifactInvalidError, match="no graph with the role 'joint'"):
        prepacked_graph(artifact, "joint", CPU)
    other = tmp_path / "cpuinfo"
    other.write_text("model name\t: another\nflags\t: avx2\n")
    assert prepacked_graph(artifact, "decoder", CPU, cpuinfo=other) is None
    assert prepacked_graph(artifact, "decoder", CPU, cpuinfo=tmp_path / "absent") is None
    monkeypatch.setattr("onnxruntime.__version__", "0.0.1")
    assert prepacked_graph(artifact, "decoder", CPU) is None


def home_of(artifact: Artifact, folder: Path | None = None) -> Path:
    path = prepacked_graph(artifact, "encoder", CPU, folder)
    assert path
    return path.parent


def cut_short(home: Path) -> None:
    path = home / "graph.onnx.data"
    path.write_bytes(path.read_bytes()[:-1])


def flip(home: Path) -> None:
    path = home / "graph.onnx.data"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def delete(home: Path) -> None:
    (home / "graph.onnx").unlink()


def garble(home: Path) -> None:
    (home / RECORD).write_text("{")


def rename(home: Path) -> None:
    """As if the folder of another machine had been renamed."""
    record = json.loads((home / RECORD).read_text())
    record["origin"]["cpu"] = "another"
    (home / RECORD).write_text(json.dumps(record))


@pytest.mark.parametrize("damage", [cut_short, flip, delete, garble, rename])
def test_damaged_graph_is_refused_and_written_again(damage: Any, artifact: Artifact) -> None:
    prepack(artifact)
    damage(home_of(artifact))
    with pytest.raises((ArtifactInvalidError, FileNotFoundError), match="python -m runtime prepare"):
        prepacked_graph(artifact, "encoder", CPU)
    assert [graph.new for graph in prepack(artifact)] == [True, False]
    assert prepacked_graph(artifact, "encoder", CPU)


def test_interrupted_prepack_leaves_no_file(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_prepacked", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepack(artifact, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_folder_that_cannot_be_used_is_refused(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OptionError, match=r"cannot be written .*--out"):
        prepack(artifact, tmp_path / "file")
    with pytest.raises(OptionError, match="does not describe its processor"):
        prepack(artifact, tmp_path / "out", cpuinfo=tmp_path / "absent")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(OptionError, match=r"0\.0 GB free, and preparing the encoder takes 0\.1 GB"):
        prepack(artifact, tmp_path / "out")


def test_user_without_a_home(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "user_cache", lambda: None)
    assert prepacked_graph(artifact, "encoder", CPU) is None
    assert remove_prepacked(artifact) == 0
    with pytest.raises(OptionError, match=r"no cache folder .*ASR_DEPLOY_PREPARED"):
        prepack(artifact)


def test_remove_deletes_this_model_for_all_machines(artifact: Artifact, tmp_path: Path) -> None:
    other = tmp_path / "cpuinfo"
    other.write_text("model name\t: another\n")
    prepack(artifact, tmp_path / "out")
    prepack(artifact, tmp_path / "out", cpuinfo=other)
    foreign = tmp_path / "out" / "notes"
    foreign.mkdir()
    (tmp_path / "out" / f".{home_of(artifact, folder=tmp_path / 'out').name}.killed").mkdir()
    assert len(list((tmp_path / "out").iterdir())) == 6
    assert remove_prepacked(artifact, tmp_path / "out") > 0
    assert list((tmp_path / "out").iterdir()) == [foreign]
    assert remove_prepacked(artifact, tmp_path / "out") == 0


@pytest.mark.usefixtures("small_default")
def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = CliRunner().invoke
    assert "no; `prepare`" in run(app, ["info", str(ARTIFACT)]).stdout
    out = tmp_path / "out"
    written = run(app, ["prepare", "--out", str(out)])
    assert written.exit_code == 0
    assert written.stdout.count(f"MB in {out}") == 2
    assert "decoder" in written.stderr
    assert "no; `prepare`" in run(app, ["info", str(ARTIFACT)]).stdout
    monkeypatch.setenv("ASR_DEPLOY_PREPARED", str(out))
    assert "for this machine" in run(app, ["info", str(ARTIFACT)]).stdout
    assert "was prepared" in run(app, ["prepare"]).stdout
    assert "freed" in run(app, ["prepare", "--remove"]).stdout
    assert run(app, ["prepare", "--remove"]).stdout == "nothing was prepared\n"
    bad = run(app, ["prepare", "--model", str(tmp_path)])
    assert bad.exit_code == 2
    assert bad.stderr.startswith("error: ")
