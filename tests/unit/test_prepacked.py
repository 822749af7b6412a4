"""PrepackedGraph graphs: used where they fit, never elsewhere, whole or not there, and they compute the same."""

from __future__ import annotations

import json
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
from runtime.ort.prepacked import describe_cpu, prepack, prepacked_folder, prepacked_graph, remove_prepacked
from runtime.ort.providers import ProviderSpec
from runtime.ort.session import make_session, save_prepacked
from tests.conftest import ARTIFACT

CPU = [ProviderSpec()]
RECORD = "prepared.json"


@pytest.fixture
def artifact() -> Artifact:
    return open_artifact(ARTIFACT)


def feeds(session: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random input: two windows for the encoder, seven tokens for the decoder."""
    made: dict[str, np.ndarray] = {}
    for tensor in session.get_inputs():
        if tensor.name == "features":
            made[tensor.name] = rng.standard_normal((2, 128, 200)).astype(np.float32)
        elif tensor.name == "lengths":
            made[tensor.name] = np.array([200, 130])
        elif tensor.name == "audio_embeds":
            made[tensor.name] = np.zeros((0, tensor.shape[-1]), np.float32)
        elif tensor.name.startswith("past"):
            dtype = {"tensor(float)": np.float32, "tensor(int8)": np.int8}[tensor.type]
            made[tensor.name] = np.zeros((1, tensor.shape[1], 0, tensor.shape[3]), dtype)
        elif tensor.name == "num_logits_to_keep":
            made[tensor.name] = np.array([0])
        else:
            made[tensor.name] = np.ones((1, 7), np.int64)
    return made


@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_results_are_equal_to_the_last_bit(role: str, artifact: Artifact, rng: np.random.Generator) -> None:
    assert prepacked_graph(artifact, role, CPU) is None
    assert all(graph.new for graph in prepack(artifact))
    prepacked = prepacked_graph(artifact, role, CPU)
    assert prepacked
    assert prepacked_folder() in prepacked.parents
    plain = make_session(artifact.graph_path(role), CPU)
    mapped = make_session(artifact.graph_path(role), CPU, prepacked=prepacked)
    given = feeds(plain, rng)
    for expected, found in zip(plain.run(None, given), mapped.run(None, given), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_packed_weights_are_in_the_file(artifact: Artifact) -> None:
    """What ONNX Runtime packs is saved: the file would be no larger than the graph otherwise."""
    decoder = next(graph for graph in prepack(artifact) if graph.role == "decoder")
    assert b"prepacked_0" in decoder.path.read_bytes()
    assert decoder.size > 1.5 * artifact.graph_path("decoder").stat().st_size


def test_weights_of_odd_sizes_are_read_as_they_were_packed(tmp_path: Path, rng: np.random.Generator) -> None:
    """Small ones and large ones behind each other, of sizes that leave the next at no even address."""
    nodes, weights, outputs = [], [], []
    sizes = [(160, 517, 8), (160, 517, 4), (640, 1001, 8), (640, 1701, 8), (160, 517, 8), (640, 3303, 4)]
    for index, (depth, width, bits) in enumerate(sizes):
        blocks = -(-depth // 64)
        weights += [
            numpy_helper.from_array(rng.integers(0, 255, (width, blocks, 8 * bits), np.uint8), f"values {index}"),
            numpy_helper.from_array(rng.random(width * blocks, np.float32) / 100, f"scales {index}"),
        ]
        inputs = [f"x {depth}", f"values {index}", f"scales {index}"]
        how: dict[str, Any] = {"K": depth, "N": width, "bits": bits, "block_size": 64, "accuracy_level": 4}
        nodes.append(helper.make_node("MatMulNBits", inputs, [f"y {index}"], domain="com.microsoft", **how))
        outputs.append(helper.make_tensor_value_info(f"y {index}", TensorProto.FLOAT, ["rows", width]))
    taken = [helper.make_tensor_value_info(f"x {depth}", TensorProto.FLOAT, ["rows", depth]) for depth in (160, 640)]
    graph = helper.make_graph(nodes, "odd", taken, outputs, weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "plain.onnx")
    save_prepacked(tmp_path / "plain.onnx", tmp_path / "packed.onnx")
    feeds = {f"x {depth}": rng.standard_normal((3, depth), np.float32) for depth in (160, 640)}
    plain = make_session(tmp_path / "plain.onnx", [ProviderSpec()], threads=1).run(None, feeds)
    packed = make_session(tmp_path / "plain.onnx", [ProviderSpec()], threads=1, prepacked=tmp_path / "packed.onnx").run(
        None, feeds
    )
    for expected, found in zip(plain, packed, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_second_time_nothing_is_written(artifact: Artifact) -> None:
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


def test_nothing_is_used_elsewhere(artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    found = prepacked_graph(artifact, "encoder", CPU, folder)
    assert found
    return found.parent


def cut_short(home: Path) -> None:
    path = home / "graph.onnx.data"
    path.write_bytes(path.read_bytes()[:-1])


def flip(home: Path) -> None:
    path = home / "graph.onnx.data"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lose(home: Path) -> None:
    (home / "graph.onnx").unlink()


def garble(home: Path) -> None:
    (home / RECORD).write_text("{")


def moved(home: Path) -> None:
    """As if somebody had renamed another machine's."""
    record = json.loads((home / RECORD).read_text())
    record["origin"]["cpu"] = "another"
    (home / RECORD).write_text(json.dumps(record))


@pytest.mark.parametrize("damage", [cut_short, flip, lose, garble, moved])
def test_a_damaged_one_is_an_error_and_is_made_again(damage: Any, artifact: Artifact) -> None:
    prepack(artifact)
    damage(home_of(artifact))
    with pytest.raises((ArtifactInvalidError, FileNotFoundError), match="python -m runtime prepare"):
        prepacked_graph(artifact, "encoder", CPU)
    assert [graph.new for graph in prepack(artifact)] == [True, False]
    assert prepacked_graph(artifact, "encoder", CPU)


def test_what_stops_halfway_leaves_nothing(artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_prepacked", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepack(artifact, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_where_nothing_can_be_written(artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OptionError, match=r"cannot be written .*--out"):
        prepack(artifact, tmp_path / "file")
    with pytest.raises(OptionError, match="does not say what processor"):
        prepack(artifact, tmp_path / "out", cpuinfo=tmp_path / "absent")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(OptionError, match=r"0\.0 GB free, and preparing the encoder takes 0\.1 GB"):
        prepack(artifact, tmp_path / "out")


def test_a_user_without_a_home(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "user_cache", lambda: None)
    assert prepacked_graph(artifact, "encoder", CPU) is None
    assert remove_prepacked(artifact) == 0
    with pytest.raises(OptionError, match=r"no cache folder; .*ASR_DEPLOY_PREPARED"):
        prepack(artifact)


def test_removing_takes_this_model_for_every_machine_and_no_other(artifact: Artifact, tmp_path: Path) -> None:
    elsewhere = tmp_path / "cpuinfo"
    elsewhere.write_text("model name\t: another\n")
    prepack(artifact, tmp_path / "out")
    prepack(artifact, tmp_path / "out", cpuinfo=elsewhere)
    foreign = tmp_path / "out" / "notes"
    foreign.mkdir()
    (tmp_path / "out" / f".{home_of(artifact, folder=tmp_path / 'out').name}.killed").mkdir()
    assert len(list((tmp_path / "out").iterdir())) == 6
    assert remove_prepacked(artifact, tmp_path / "out") > 0
    assert list((tmp_path / "out").iterdir()) == [foreign]
    assert remove_prepacked(artifact, tmp_path / "out") == 0


def test_the_processor_is_its_model_and_features(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    head = "processor\t: {}\nvendor_id\t: A\nmodel name\t: B\nmicrocode\t: {}\ncpu MHz\t: {}\nflags\t: {}\n"
    path.write_text(head.format(0, 1, 2500, "avx2") + "\n" + head.format(1, 1, 2500, "avx2"))
    first = describe_cpu(path)
    assert first == "flags avx2; model name B; vendor_id A"
    path.write_text(head.format(0, 2, 800, "avx2"))
    assert describe_cpu(path) == first
    path.write_text(head.format(0, 1, 2500, "avx2 avx512f"))
    assert describe_cpu(path) not in (first, None)
    path.write_text("processor\t: 0\nFeatures\t: asimd\nCPU part\t: 0xd40\n\nHardware\t: board\n")
    assert describe_cpu(path) == "CPU part 0xd40; Features asimd"
    path.write_text("nothing\n")
    assert describe_cpu(path) is None


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = CliRunner().invoke
    assert "no; `prepare`" in run(app, ["info", str(ARTIFACT)]).stdout
    out = tmp_path / "out"
    made = run(app, ["prepare", "--out", str(out)])
    assert made.exit_code == 0
    assert made.stdout.count(f"MB in {out}") == 2
    assert "preparing the decoder" in made.stderr
    assert "no; `prepare`" in run(app, ["info", str(ARTIFACT)]).stdout
    monkeypatch.setenv("ASR_DEPLOY_PREPARED", str(out))
    assert "for this machine" in run(app, ["info", str(ARTIFACT)]).stdout
    assert "was prepared" in run(app, ["prepare"]).stdout
    assert "freed" in run(app, ["prepare", "--remove"]).stdout
    assert run(app, ["prepare", "--remove"]).stdout == "nothing was prepared\n"
    bad = run(app, ["prepare", "--model", str(tmp_path)])
    assert bad.exit_code == 2
    assert bad.stderr.startswith("error: ")
