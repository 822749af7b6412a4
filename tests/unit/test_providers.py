"""Providers and threads: what is asked happens or is an error."""

from __future__ import annotations

import json
import logging
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from runtime import Transcriber
from runtime.engines.base import EngineOptions
from runtime.errors import ArtifactInvalidError, OptionError, ProviderError
from runtime.families.qwen3_asr.engine import Qwen3AsrEngine
from runtime.ort import ep_plugins as plugins
from runtime.ort.ep_plugins import Plugin
from runtime.ort.provider_options import OPTIONS, built_in_options, cache_folder, plugin_options, settings
from runtime.ort.providers import (
    ProviderSpec,
    availability,
    available_providers,
    describe,
    parse_provider,
    parse_providers,
    plugin_device,
    read_provider,
    split_list,
)
from runtime.ort.session import make_session, placement
from runtime.transcriber import describe_roles
from tests.conftest import ARTIFACT

ENCODER = ARTIFACT / "encoder.onnx"


def test_parsing() -> None:
    assert parse_provider("cpu") == ProviderSpec("cpu", {})
    assert read_provider("CUDA:device_id=1, use_tf32 = 1").options == {"device_id": "1", "use_tf32": "1"}
    assert str(read_provider("cuda:device_id=1,use_tf32=1")) == "cuda:device_id=1,use_tf32=1"
    assert read_provider("cuda:device_id=1").device == ("cuda", 1)
    assert read_provider("openvino").device == ("cpu", 0)
    assert "cpu" in available_providers()
    assert describe(parse_providers("cpu")) == "cpu"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu", "unknown provider 'gpu'; available here: .*cpu.*; known: cpu, cuda"),
        ("", "unknown provider ''"),
        ("cpu:fast", "option 'fast' is not of the form key=value"),
        ("directml", "'directml' is not available.*pip install onnxruntime-directml.*available here: .*cpu"),
        ("cpu:arena=1", "'cpu' has no option 'arena'; it has fixed_windows$"),
        (
            "cuda:arena_extend_strategies=kSameAsRequested",
            "no option 'arena_extend_strategies'; it has arena_extend_st",
        ),
        ("cuda:use_tf32=yes", "'use_tf32' is 0 or 1, not 'yes'"),
        ("cuda:cudnn_conv_algo_search=FAST", "is EXHAUSTIVE, HEURISTIC, DEFAULT, not 'FAST'"),
        ("tensorrt:device_id=first", "'device_id' is a number"),
        ("cuda:use_tf32=0,use_tf32=1", "'use_tf32' is given twice"),
        ("openvino:precision=f32", "no option 'precision'; it has device_type, fixed_windows, and OpenVINO's"),
    ],
)
def test_what_cannot_be_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ProviderError, match=message):
        parse_provider(text)


def test_an_order_in_which_one_would_get_nothing_is_an_error() -> None:
    for texts, message in (
        (["cpu", "cpu"], "'cpu' is named twice"),
        ([], "no provider is named"),
    ):
        with pytest.raises(ProviderError, match=message):
            parse_providers(texts)
    with pytest.raises(ProviderError, match="'cuda' is named after cpu, which takes every node"):
        make_session(ENCODER, [ProviderSpec(), ProviderSpec("cuda")])


def test_lists_of_providers_are_split_at_the_commas_that_no_option_follows() -> None:
    assert split_list(["cpu,openvino", "cuda:a=1,b=2,tensorrt+cuda:c=3, directml"]) == [
        ("cpu",),
        ("openvino",),
        ("cuda:a=1,b=2",),
        ("tensorrt", "cuda:c=3"),
        ("directml",),
    ]


def test_what_is_given_overrides_the_defaults_that_suit_this_work() -> None:
    def of(text: str) -> dict[str, str]:
        spec = read_provider(text)
        return settings(spec.name, spec.options, graph=ENCODER, threads=3)

    assert of("cuda")["use_tf32"] == "0"  # ONNX Runtime's own default is 10 bits of mantissa
    assert of("cuda:use_tf32=1") | {"use_tf32": "0"} == of("cuda")
    assert of("coreml") == {"ModelFormat": "MLProgram", "MLComputeUnits": "ALL", "RequireStaticInputShapes": "1"}
    assert read_provider("coreml").fixed_windows
    assert not read_provider("coreml:fixed_windows=0").fixed_windows
    for name, known in OPTIONS.items():
        assert set(known.defaults) <= known.names, name
        assert known.switches <= known.names


def test_openvino_is_told_its_precision_in_both_forms() -> None:
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    its = settings("openvino", {}, graph=ENCODER, threads=3)
    asked = {"CPU": {**exact, "INFERENCE_NUM_THREADS": "3", "NUM_STREAMS": "1"}}
    assert json.loads(plugin_options("openvino", its)["load_config"]) == asked
    built_in = built_in_options("openvino", its)
    assert json.loads(built_in.pop("load_config")) == asked
    assert built_in == {"device_type": "CPU", "num_of_threads": "3"}

    given = settings("openvino", {"device_type": "GPU", "INFERENCE_PRECISION_HINT": "f16"}, graph=ENCODER, threads=3)
    properties = json.loads(plugin_options("openvino", given)["load_config"])
    assert properties == {"GPU": exact | {"INFERENCE_PRECISION_HINT": "f16"}}
    npu = settings("openvino", {"device_type": "NPU"}, graph=ENCODER, threads=3)
    assert json.loads(plugin_options("openvino", npu)["load_config"]) == {"NPU": {}}


def test_an_engine_is_never_found_in_the_cache_of_other_weights(tmp_path: Path) -> None:
    graph = tmp_path / "encoder.onnx"
    graph.write_bytes(b"graph")
    (tmp_path / "manifest.json").write_text("one")
    before = settings("tensorrt", {}, graph=graph, threads=1)["trt_engine_cache_path"]
    assert Path(before).is_dir()
    assert settings("tensorrt", {}, graph=graph, threads=1)["trt_engine_cache_path"] == before
    (tmp_path / "manifest.json").write_text("two")
    assert settings("tensorrt", {}, graph=graph, threads=1)["trt_engine_cache_path"] != before
    given = settings("tensorrt", {"trt_engine_cache_path": "/else"}, graph=graph, threads=1)
    assert given["trt_engine_cache_path"] == "/else"


def test_a_cache_that_cannot_be_made_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache_folder("tensorrt", ENCODER) is None
    assert "trt_engine_cache_path" not in settings("tensorrt", {}, graph=ENCODER, threads=1)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert cache_folder("tensorrt", ENCODER) is None


def test_a_provider_that_does_not_become_active_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime falls back to the CPU without a word; we do not."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(ProviderError, match="made CPUExecution"),
    ):
        make_session(ENCODER, parse_provider("cuda"))


def _part(provider: str, *operators: str) -> Any:
    nodes = [types.SimpleNamespace(op_type=operator) for operator in operators]
    return types.SimpleNamespace(ep_name=provider, get_nodes=lambda: nodes)


class _Session:
    """What ONNX Runtime would say of a session with an accelerator."""

    def __init__(self, *parts: Any, active: tuple[str, ...]) -> None:
        self._parts, self._active = parts, [f"{name}ExecutionProvider" for name in active]

    def get_providers(self) -> list[str]:
        return self._active

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return list(self._parts)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make sessions of :class:`_Session` in place of real ones."""

    def install(session: _Session) -> None:
        monkeypatch.setattr("runtime.ort.session._open", lambda *arguments: session)

    return install


def test_a_provider_that_takes_no_node_is_an_error(opened: Any) -> None:
    opened(_Session(_part("CPUExecutionProvider", "MatMul", "Add"), active=("CUDA", "CPU")))
    with pytest.raises(ProviderError, match=r"cuda can run none of the 2 nodes of encoder.onnx; ask for another"):
        make_session(ENCODER, ProviderSpec("cuda"))


def test_nodes_that_fall_to_the_cpu_are_said(opened: Any, caplog: pytest.LogCaptureFixture) -> None:
    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    opened(
        _Session(
            _part(cuda, "MatMul", "MatMul"),
            _part(cpu, "Shape"),
            _part(cpu, "Shape", "Gather"),
            active=("Tensorrt", "CUDA", "CPU"),
        )
    )
    caplog.set_level(logging.INFO)
    session = make_session(ENCODER, [ProviderSpec("tensorrt"), ProviderSpec("cuda")])
    assert placement(session) == {"cuda": {"MatMul": 2}, "cpu": {"Shape": 2, "Gather": 1}}
    assert [record.message for record in caplog.records] == [
        "encoder.onnx: tensorrt has no node: those before it take all that it could",
        "encoder.onnx: 3 of 5 nodes run on the CPU: 2 Shape, 1 Gather",
    ]


def test_placement_counts_every_node_once() -> None:
    session = make_session(ENCODER, ProviderSpec())
    parts = session.get_provider_graph_assignment_info()
    counted = placement(session)
    assert list(counted) == ["cpu"]
    assert sum(counted["cpu"].values()) == sum(len(part.get_nodes()) for part in parts) > 300


@pytest.mark.parametrize(
    "said",
    [
        "bad\n  property",
        "[ONNXRuntimeError] : 11 : EP_FAIL : Exception from src/a.cpp:117:\nException from b.cpp:5:\nbad property\n\n",
    ],
)
def test_what_a_provider_refuses_is_its_error_and_not_the_graphs(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    def refuse(*arguments: Any) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr("runtime.ort.session._open", refuse)
    with pytest.raises(ProviderError, match=r"^encoder.onnx cannot run on cuda:device_id=7 \(bad property\)$"):
        make_session(ENCODER, ProviderSpec("cuda", {"device_id": "7"}))


def test_the_end_of_a_long_reason_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise RuntimeError("first " + "std::types " * 100 + "the point")

    monkeypatch.setattr("runtime.ort.session._open", refuse)
    with pytest.raises(ProviderError, match=r"\(first std.* … .*std::types the point\)$") as caught:
        make_session(ENCODER, ProviderSpec("cuda"))
    assert len(str(caught.value)) < 400


def test_a_provider_that_fails_while_it_runs_is_an_error_of_ours() -> None:
    from runtime.ort.session import _ProviderSession

    session = _ProviderSession(ENCODER, ort.SessionOptions(), "webgpu", providers=["CPUExecutionProvider"])
    with pytest.raises(ProviderError, match=r"encoder.onnx failed while it ran on webgpu \("):
        session.run(None, {"features": np.zeros((1, 127, 100), np.float32), "lengths": np.array([100])})


def test_a_plugin_is_added_by_its_device_in_the_order_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[Any] = []

    class Recorder(ort.SessionOptions):  # type: ignore[misc]
        def add_provider_for_devices(self, devices: list[Any], options: dict[str, str]) -> None:
            added.append((devices, sorted(options)))

        def add_provider(self, name: str, options: dict[str, str]) -> None:
            added.append((name, options["use_tf32"]))

    monkeypatch.setattr(ort, "SessionOptions", Recorder)
    monkeypatch.setattr("runtime.ort.session.is_built_in", lambda spec: spec.name != "openvino")
    monkeypatch.setattr("runtime.ort.session.plugin_device", lambda spec, its: its["device_type"])
    asked = [ProviderSpec("cuda"), ProviderSpec("openvino"), ProviderSpec("cpu")]
    # Nothing was really added, and that does not stay unsaid.
    with pytest.raises(ProviderError, match="'cuda' was asked for, but ONNX Runtime made CPUExecutionProvider active"):
        make_session(ENCODER, asked)
    assert added == [("CUDAExecutionProvider", "0"), (["CPU"], ["load_config"])]


def test_a_graph_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"no graph")
    for spec in (ProviderSpec(), ProviderSpec("cpu", {"fixed_windows": "1"})):
        with pytest.raises(ArtifactInvalidError, match=r"x.onnx: ONNX Runtime cannot load"):
            make_session(path, spec)


def _device(name: str, kind: str, **metadata: str) -> Any:
    hardware = types.SimpleNamespace(type=types.SimpleNamespace(name=kind), vendor="Intel", metadata={})
    return types.SimpleNamespace(ep_name=name, device=hardware, ep_metadata=metadata)


def test_a_plugin_is_there_when_it_has_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "OpenVINOExecutionProvider"
    found: list[Any] = []
    monkeypatch.setattr(ort, "get_ep_devices", lambda: found)
    # As ONNX Runtime does: a plugin with a device is among the available providers, though it cannot be used as one.
    monkeypatch.setattr(ort, "get_available_providers", lambda: [each.ep_name for each in found])
    monkeypatch.setattr(plugins, "register", lambda plugin: None)
    assert not availability("openvino").here
    assert "is installed and finds no device here: it takes hardware that Intel made" in availability("openvino").reason
    with pytest.raises(ProviderError, match="finds no device here"):
        parse_provider("openvino")
    with pytest.raises(ProviderError, match="finds no device here"):
        plugin_device(ProviderSpec("openvino"), {"device_type": "CPU"})
    found.append(_device(name, "CPU", library_path="plugin.so", FULL_DEVICE_NAME="A processor"))
    assert availability("openvino").here
    assert availability("openvino").reason.startswith("plugin onnxruntime-ep-openvino 1.")
    assert plugin_device(ProviderSpec("openvino"), {"device_type": "CPU"}) is found[0]
    with pytest.raises(ProviderError, match="no device of the type GPU; it has CPU"):
        plugin_device(ProviderSpec("openvino"), {"device_type": "GPU"})
    assert plugins.device_lines() == [f"{name}: CPU Intel A processor"]
    found[0] = _device(name, "CPU")  # built in: no library of its own
    assert availability("openvino").reason == "in this onnxruntime"


def test_a_plugin_that_cannot_be_loaded_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_plugin.py").write_text(
        f"def get_library_path():\n    return {str(tmp_path / 'none.so')!r}\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plugin = Plugin("broken-plugin", "broken_plugin", "anything")
    assert plugin.installed
    assert plugin.version is None
    with pytest.raises(ProviderError, match=r"cannot load the plugin broken-plugin.*pip install --upgrade onnxruntime"):
        plugins.register(plugin)


def test_windows_of_fixed_size_give_the_same_rows(transcriber: Transcriber, rng: np.random.Generator) -> None:
    fixed = Transcriber.from_artifact(ARTIFACT, encoder_provider="cpu:fixed_windows=1")
    assert isinstance(fixed.engine, Qwen3AsrEngine)
    assert isinstance(transcriber.engine, Qwen3AsrEngine)
    for frames in (1, 99, 100, 801, 1650):
        features = rng.standard_normal((128, frames), dtype=np.float32)
        ours, theirs = fixed.engine.encode(features), transcriber.engine.encode(features)
        assert ours.shape == theirs.shape
        assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)
    shapes = [each.shape for each in fixed.engine._encoder.session.get_inputs()]
    assert shapes[0] == [1, 128, 800]


def test_graphs_can_have_providers_of_their_own() -> None:
    made = Transcriber.from_artifact(ARTIFACT, provider=["cpu"], encoder_provider="cpu:fixed_windows=1")
    transcript = made.transcribe(np.zeros(16_000, np.float32), sample_rate=16_000)
    assert transcript.provider == "encoder cpu:fixed_windows=1, decoder cpu"
    assert describe_roles(EngineOptions(), ("encoder", "decoder")) == "cpu"
    assert set(made.engine.placement()) == {"encoder", "decoder"}


def test_threads_must_be_positive() -> None:
    with pytest.raises(OptionError, match="threads must be at least 1, not 0"):
        Transcriber.from_artifact(ARTIFACT, threads=0)
