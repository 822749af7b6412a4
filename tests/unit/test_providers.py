"""Tests of execution providers: parsing, options, sessions, plugins, and errors instead of fallbacks."""

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
        ("cuda:use_tf32=yes", "'use_tf32' .*0 or 1, not 'yes'"),
        ("cuda:cudnn_conv_algo_search=FAST", "EXHAUSTIVE, HEURISTIC, DEFAULT, not 'FAST'"),
        ("tensorrt:device_id=first", "'device_id' .* a number, not 'first'"),
        ("cuda:use_tf32=0,use_tf32=1", "'use_tf32' is given twice"),
        ("openvino:precision=f32", "no option 'precision'; it has device_type, fixed_windows, and OpenVINO's"),
    ],
)
def test_invalid_provider_or_option_is_refused(text: str, message: str) -> None:
    with pytest.raises(ProviderError, match=message):
        parse_provider(text)


def test_order_in_which_a_provider_gets_no_node_is_refused() -> None:
    for texts, message in (
        (["cpu", "cpu"], "'cpu' is named twice"),
        ([], "no provider is named"),
    ):
        with pytest.raises(ProviderError, match=message):
            parse_providers(texts)
    with pytest.raises(ProviderError, match="'cuda' is named after cpu, which takes every node"):
        make_session(ENCODER, [ProviderSpec(), ProviderSpec("cuda")])


def test_lists_of_providers_are_split_at_commas_before_names() -> None:
    assert split_list(["cpu,openvino", "cuda:a=1,b=2,tensorrt+cuda:c=3, directml"]) == [
        ("cpu",),
        ("openvino",),
        ("cuda:a=1,b=2",),
        ("tensorrt", "cuda:c=3"),
        ("directml",),
    ]


def test_options_override_defaults() -> None:
    def merged(text: str) -> dict[str, str]:
        spec = read_provider(text)
        return settings(spec.name, spec.options, graph=ENCODER, threads=3)

    assert merged("cuda")["use_tf32"] == "0"  # ONNX Runtime's own default is 10 bits of mantissa
    assert merged("cuda:use_tf32=1") | {"use_tf32": "0"} == merged("cuda")
    assert merged("coreml") == {"ModelFormat": "MLProgram", "MLComputeUnits": "ALL", "RequireStaticInputShapes": "1"}
    assert read_provider("coreml").fixed_windows
    assert not read_provider("coreml:fixed_windows=0").fixed_windows
    for name, known in OPTIONS.items():
        assert set(known.defaults) <= known.names, name
        assert known.switches <= known.names


def test_openvino_gets_its_precision_built_in_and_as_a_plugin() -> None:
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    values = settings("openvino", {}, graph=ENCODER, threads=3)
    expected = {"CPU": {**exact, "INFERENCE_NUM_THREADS": "3", "NUM_STREAMS": "1"}}
    assert json.loads(plugin_options("openvino", values)["load_config"]) == expected
    built_in = built_in_options("openvino", values)
    assert json.loads(built_in.pop("load_config")) == expected
    assert built_in == {"device_type": "CPU", "num_of_threads": "3"}

    gpu = settings("openvino", {"device_type": "GPU", "INFERENCE_PRECISION_HINT": "f16"}, graph=ENCODER, threads=3)
    properties = json.loads(plugin_options("openvino", gpu)["load_config"])
    assert properties == {"GPU": exact | {"INFERENCE_PRECISION_HINT": "f16"}}
    npu = settings("openvino", {"device_type": "NPU"}, graph=ENCODER, threads=3)
    assert json.loads(plugin_options("openvino", npu)["load_config"]) == {"NPU": {}}


def test_cache_of_engines_depends_on_the_weights(tmp_path: Path) -> None:
    graph = tmp_path / "encoder.onnx"
    graph.write_bytes(b"graph")
    (tmp_path / "manifest.json").write_text("one")
    before = settings("tensorrt", {}, graph=graph, threads=1)["trt_engine_cache_path"]
    assert Path(before).is_dir()
    assert settings("tensorrt", {}, graph=graph, threads=1)["trt_engine_cache_path"] == before
    (tmp_path / "manifest.json").write_text("two")
    assert settings("tensorrt", {}, graph=graph, threads=1)["trt_engine_cache_path"] != before
    values = settings("tensorrt", {"trt_engine_cache_path": "/else"}, graph=graph, threads=1)
    assert values["trt_engine_cache_path"] == "/else"


def test_cache_folder_that_cannot_be_created_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache_folder("tensorrt", ENCODER) is None
    assert "trt_engine_cache_path" not in settings("tensorrt", {}, graph=ENCODER, threads=1)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert cache_folder("tensorrt", ENCODER) is None


def test_provider_that_does_not_become_active_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime silently falls back to the CPU."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(ProviderError, match=r"'cuda' .*CPUExecutionProvider"),
    ):
        make_session(ENCODER, parse_provider("cuda"))


def _part(provider: str, *operators: str) -> Any:
    nodes = [types.SimpleNamespace(op_type=operator) for operator in operators]
    return types.SimpleNamespace(ep_name=provider, get_nodes=lambda: nodes)


class _Session:
    """Session with an accelerator, as ONNX Runtime describes it."""

    def __init__(self, *parts: Any, active: tuple[str, ...]) -> None:
        self._parts, self._active = parts, [f"{name}ExecutionProvider" for name in active]

    def get_providers(self) -> list[str]:
        return self._active

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return list(self._parts)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Open a :class:`_Session` in place of a real session."""

    def install(session: _Session) -> None:
        monkeypatch.setattr("runtime.ort.session._open", lambda *arguments: session)

    return install


def test_provider_that_runs_no_node_is_an_error(opened: Any) -> None:
    opened(_Session(_part("CPUExecutionProvider", "MatMul", "Add"), active=("CUDA", "CPU")))
    with pytest.raises(
        ProviderError, match=r"cuda can run none of the 2 nodes of encoder.onnx; .*--decoder-provider cpu"
    ):
        make_session(ENCODER, ProviderSpec("cuda"))


def test_nodes_that_run_on_the_cpu_are_logged(opened: Any, caplog: pytest.LogCaptureFixture) -> None:
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
        "encoder.onnx: tensorrt runs no node: providers before it run all that it supports",
        "encoder.onnx: 3 of 5 nodes run on the CPU: 2 Shape, 1 Gather",
    ]


def test_placement_counts_every_node_once() -> None:
    session = make_session(ENCODER, ProviderSpec())
    parts = session.get_provider_graph_assignment_info()
    counts = placement(session)
    assert list(counts) == ["cpu"]
    assert sum(counts["cpu"].values()) == sum(len(part.get_nodes()) for part in parts) > 300


@pytest.mark.parametrize(
    "message",
    [
        "bad\n  property",
        "[ONNXRuntimeError] : 11 : EP_FAIL : Exception from src/a.cpp:117:\nException from b.cpp:5:\nbad property\n\n",
    ],
)
def test_graph_that_a_provider_refuses_is_a_provider_error(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    def refuse(*arguments: Any) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr("runtime.ort.session._open", refuse)
    with pytest.raises(ProviderError, match=r"^encoder.onnx cannot run on cuda:device_id=7 \(bad property\)$"):
        make_session(ENCODER, ProviderSpec("cuda", {"device_id": "7"}))


def test_long_reason_keeps_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise RuntimeError("first " + "std::types " * 100 + "the point")

    monkeypatch.setattr("runtime.ort.session._open", refuse)
    with pytest.raises(ProviderError, match=r"\(first std.* … .*std::types the point\)$") as caught:
        make_session(ENCODER, ProviderSpec("cuda"))
    assert len(str(caught.value)) < 400


def test_provider_that_fails_while_it_runs_is_a_provider_error() -> None:
    from runtime.ort.session import _ProviderSession

    session = _ProviderSession(ENCODER, ort.SessionOptions(), "webgpu", providers=["CPUExecutionProvider"])
    with pytest.raises(ProviderError, match=r"encoder.onnx failed .* on webgpu \("):
        session.run(None, {"features": np.zeros((1, 127, 100), np.float32), "lengths": np.array([100])})


def test_plugin_is_added_by_its_device_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[Any] = []

    class Recorder(ort.SessionOptions):  # type: ignore[misc]
        def add_provider_for_devices(self, devices: list[Any], options: dict[str, str]) -> None:
            added.append((devices, sorted(options)))

        def add_provider(self, name: str, options: dict[str, str]) -> None:
            added.append((name, options["use_tf32"]))

    monkeypatch.setattr(ort, "SessionOptions", Recorder)
    monkeypatch.setattr("runtime.ort.session.is_built_in", lambda spec: spec.name != "openvino")
    monkeypatch.setattr("runtime.ort.session.plugin_device", lambda spec, values: values["device_type"])
    # The recorder adds no provider to the real session, which is reported.
    with pytest.raises(ProviderError, match=r"'cuda' .*CPUExecutionProvider for encoder.onnx"):
        make_session(ENCODER, [ProviderSpec("cuda"), ProviderSpec("openvino"), ProviderSpec("cpu")])
    assert added == [("CUDAExecutionProvider", "0"), (["CPU"], ["load_config"])]


def test_invalid_graph_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"no graph")
    for spec in (ProviderSpec(), ProviderSpec("cpu", {"fixed_windows": "1"})):
        with pytest.raises(ArtifactInvalidError, match=r"x.onnx: ONNX Runtime cannot load"):
            make_session(path, spec)


def _device(name: str, kind: str, **metadata: str) -> Any:
    hardware = types.SimpleNamespace(type=types.SimpleNamespace(name=kind), vendor="Intel", metadata={})
    return types.SimpleNamespace(ep_name=name, device=hardware, ep_metadata=metadata)


def test_plugin_is_available_if_it_has_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "OpenVINOExecutionProvider"
    devices: list[Any] = []
    monkeypatch.setattr(ort, "get_ep_devices", lambda: devices)
    # ONNX Runtime lists a plugin with a device as an available provider, but cannot use it as a built-in one.
    monkeypatch.setattr(ort, "get_available_providers", lambda: [each.ep_name for each in devices])
    monkeypatch.setattr(plugins, "register", lambda plugin: None)
    assert not availability("openvino").is_available
    assert "finds no device here; it supports hardware made by Intel" in availability("openvino").reason
    with pytest.raises(ProviderError, match="finds no device here"):
        parse_provider("openvino")
    with pytest.raises(ProviderError, match="finds no device here"):
        plugin_device(ProviderSpec("openvino"), {"device_type": "CPU"})
    devices.append(_device(name, "CPU", library_path="plugin.so", FULL_DEVICE_NAME="A processor"))
    assert availability("openvino").is_available
    assert availability("openvino").reason.startswith("plugin onnxruntime-ep-openvino 1.")
    assert plugin_device(ProviderSpec("openvino"), {"device_type": "CPU"}) is devices[0]
    with pytest.raises(ProviderError, match="no device of the type GPU; it has CPU"):
        plugin_device(ProviderSpec("openvino"), {"device_type": "GPU"})
    assert plugins.device_lines() == [f"{name}: CPU Intel A processor"]
    devices[0] = _device(name, "CPU")  # built in: no library of its own
    assert availability("openvino").reason == "in this onnxruntime"


def test_plugin_that_cannot_be_loaded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_plugin.py").write_text(
        f"def get_library_path():\n    return {str(tmp_path / 'none.so')!r}\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plugin = Plugin("broken-plugin", "broken_plugin", "anything")
    assert plugin.installed
    assert plugin.version is None
    with pytest.raises(ProviderError, match=r"cannot load the plugin broken-plugin.*pip install --upgrade onnxruntime"):
        plugins.register(plugin)


def test_fixed_windows_give_the_same_rows(transcriber: Transcriber, rng: np.random.Generator) -> None:
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


def test_graphs_can_have_different_providers() -> None:
    transcriber = Transcriber.from_artifact(ARTIFACT, provider=["cpu"], encoder_provider="cpu:fixed_windows=1")
    transcript = transcriber.transcribe(np.zeros(16_000, np.float32), sample_rate=16_000)
    assert transcript.provider == "encoder cpu:fixed_windows=1, decoder cpu"
    assert describe_roles(EngineOptions(), ("encoder", "decoder")) == "cpu"
    assert set(transcriber.engine.placement()) == {"encoder", "decoder"}


def test_threads_must_be_positive() -> None:
    with pytest.raises(OptionError, match="threads must be at least 1, not 0"):
        Transcriber.from_artifact(ARTIFACT, threads=0)
