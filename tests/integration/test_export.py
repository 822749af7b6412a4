"""Export from end to end: the bundled checkpoint, both layouts, errors and interruption."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3ASRConfig, Qwen3ASRForConditionalGeneration
from typer.testing import CliRunner

from export import compare, package
from export.__main__ import app
from export.compare import Comparison
from export.decoder import build_decoder
from export.errors import ParityError
from quantize.graph import read_interface, save_graph, weight_bytes
from runtime import Transcriber, open_artifact
from runtime.decoding.kv_rows import CausalDecoder
from runtime.ort.providers import ProviderSpec
from runtime.ort.session import make_session
from tests.conftest import CHECKPOINT, DATA, REPOSITORY

pytestmark = pytest.mark.slow


def export(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def exported(float_artifact: Path) -> Path:
    return float_artifact


def test_parity_is_recorded(exported: Path) -> None:
    manifest = open_artifact(exported).manifest
    for role in ("encoder", "decoder"):
        result = manifest.parity[role]
        assert result.max_relative_difference is not None
        assert 0 < result.max_relative_difference <= result.tolerance == compare.TOLERANCE
        assert 0 < result.max_abs_difference <= 1e-3
        assert any("batch of 3" in case for case in result.cases)
        assert len(result.cases) >= 4


def test_existing_artifact_is_not_overwritten(exported: Path) -> None:
    before = (exported / "manifest.json").read_bytes()
    result = export("qwen3-asr-tiny", "--out", exported)
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    assert (exported / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["whisper-tiny"], "unknown model 'whisper-tiny'; known are qwen3-asr-tiny"),
        (["qwen3-asr-tiny", "--checkpoint", "/nowhere"], "/nowhere: no such checkpoint folder"),
        (["qwen3-asr-tiny", "--revision", "main"], "has no revisions"),
        (["qwen3-asr-tiny", "--out", "/proc/nowhere/x"], "/proc/nowhere/x: cannot be written"),
    ],
)
def test_invalid_arguments_are_one_line_errors(arguments: list[str], message: str) -> None:
    result = export(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.output


def test_without_torch_the_error_names_the_extra_to_install() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['export', 'qwen3-asr-tiny', '--out', '/nowhere/x']; "
        "import runpy; runpy.run_module('export', run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "'torch'" in line
    assert "pip install 'asr-deploy[export]'" in line


def test_out_of_tolerance_stops_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "TOLERANCE", 1e-12)
    result = export("qwen3-asr-tiny", "--out", tmp_path / "x")
    assert result.exit_code == 2
    assert "the graph differs from the reference by" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_difference_refuses_large_values_nan_and_other_shapes() -> None:
    good = np.zeros((3, 4), np.float32)
    comparison = Comparison()
    with pytest.raises(ParityError, match="more than 1e-04"):
        comparison.add(good + 1e-3, good, "x")
    with pytest.raises(ParityError, match="nan"):
        comparison.add(good * np.nan, good, "x")
    with pytest.raises(ParityError, match=r"gives \[3, 4\] where the reference gives \[2, 4\]"):
        comparison.add(good, good[:2], "x")


def floats(values: list[float]) -> np.ndarray:
    return np.array(values, np.float32)


def test_differences_are_relative_to_the_largest_value() -> None:
    """Rounding of large activations passes, and values near zero have an absolute floor of 1e-5."""
    comparison = Comparison()
    comparison.add(floats([8000.1, 1]), floats([8000, 1]), "large")
    comparison.add(floats([9e-6]), floats([0]), "zero")
    assert comparison.absolute == pytest.approx(0.1, rel=0.05)
    assert comparison.relative == pytest.approx(9e-5)
    with pytest.raises(ParityError, match=r"by 2\.00e-05 where values reach 1\.00e-02"):
        comparison.add(floats([0.01002]), floats([0.01]), "near zero")
    with pytest.raises(ParityError, match="large, again"):
        comparison.add(floats([8000, 2]), floats([8000, 1]), "large, again")
    assert comparison.result(["x"]).max_relative_difference == comparison.relative


def test_full_disk_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(package, "encode_manifest", full)
    result = export("qwen3-asr-tiny", "--out", tmp_path / "x")
    assert result.exit_code == 2
    assert "x: cannot be written (No space left on device)" in result.stderr.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_export_leaves_no_artifact(tmp_path: Path, stop: signal.Signals) -> None:
    out = tmp_path / "x"
    process = subprocess.Popen(
        [sys.executable, "-m", "export", "qwen3-asr-tiny", "--out", str(out)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # background jobs ignore SIGINT
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".x.part-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(tmp_path.glob(".x.part-*"))
    process.send_signal(stop)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if stop is signal.SIGKILL else 130)
    assert not out.exists()
    if stop is signal.SIGINT:
        assert "interrupted; nothing was written" in stderr
        assert "Traceback" not in stderr
        assert list(tmp_path.iterdir()) == []


def to_original_layout(folder: Path, out: Path) -> None:
    """Rewrite a native checkpoint in the original layout: tensor names and nested configuration."""
    shutil.copytree(folder, out)
    config = json.loads((folder / "config.json").read_text())
    text = dict(config["text_config"])
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope["rope_theta"]
    text["rope_scaling"] = {"mrope_interleaved": True, "mrope_section": [12, 10, 10], "rope_type": "default"}
    nested = {
        "audio_config": {**config["audio_config"], "max_source_positions": 1500},
        "text_config": text,
        "audio_token_id": config["audio_token_id"],
    }
    (out / "config.json").write_text(json.dumps({"model_type": "qwen3_asr", "thinker_config": nested}))
    names = {
        "model.multi_modal_projector.linear_1.": "thinker.audio_tower.proj1.",
        "model.multi_modal_projector.linear_2.": "thinker.audio_tower.proj2.",
        "model.audio_tower.": "thinker.audio_tower.",
        "model.language_model.": "thinker.model.",
        "lm_head.": "thinker.lm_head.",
    }
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        native, original = next(pair for pair in names.items() if name.startswith(pair[0]))
        tensors[original + name.removeprefix(native)] = tensor
    tensors["thinker.lm_head.weight"] = tensors["thinker.model.embed_tokens.weight"].clone()
    (out / "model.safetensors").unlink()
    save_file(tensors, out / "model.safetensors")


def random_native(out: Path) -> None:
    """Write a random model in the native layout, with other sizes than the trained one."""
    config = Qwen3ASRConfig.from_pretrained(CHECKPOINT)
    config.audio_config.encoder_layers = 2
    config.audio_config.n_window_infer = 400
    config.text_config.num_hidden_layers = 3
    config.text_config.num_key_value_heads = 4
    config.text_config.layer_types = None
    torch.manual_seed(3)
    shutil.copytree(CHECKPOINT, out)
    (out / "model.safetensors").unlink()
    Qwen3ASRForConditionalGeneration(Qwen3ASRConfig(**config.to_dict())).save_pretrained(out)


def test_both_layouts_give_the_same_graphs(tmp_path: Path) -> None:
    """The export's own parity checks compare a random model with the reference."""
    random_native(tmp_path / "native")
    to_original_layout(tmp_path / "native", tmp_path / "original")
    manifests = {}
    for layout in ("native", "original"):
        out = tmp_path / f"{layout}-artifact"
        result = export("qwen3-asr-0.6b", "--checkpoint", tmp_path / layout, "--out", out)
        assert result.exit_code == 0, result.stderr
        manifests[layout] = open_artifact(out).manifest
        assert manifests[layout].source.layout == layout
        assert manifests[layout].source.repo == layout
        assert manifests[layout].parameters["window_frames"] == 400
    assert manifests["native"].files["decoder.onnx"] == manifests["original"].files["decoder.onnx"]
    assert manifests["native"].files["encoder.onnx"] == manifests["original"].files["encoder.onnx"]
    languages = {language.name for language in manifests["original"].languages}
    assert len(languages) == 30  # config.json lists none here, so all languages of Qwen3-ASR
    Transcriber.from_artifact(tmp_path / "original-artifact").transcribe(DATA / "en-1.wav", "de", max_new_tokens=5)


def test_untied_head_and_external_data(tmp_path: Path) -> None:
    """A decoder with its own lm_head, with its weights in a separate file, gives the reference's logits."""
    torch.manual_seed(1)
    config = Qwen3ASRConfig.from_pretrained(CHECKPOINT)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    model = Qwen3ASRForConditionalGeneration(config).eval()
    text = model.config.text_config
    graph = build_decoder(model.model.language_model, model.lm_head, text, audio_token_id=905, context_length=64)
    assert weight_bytes(graph) > 4 * (928 * 256 * 2)
    spec = save_graph(graph, tmp_path / "decoder.onnx", inline_limit=1000)
    assert spec.data == "decoder.onnx.data"
    assert (tmp_path / "decoder.onnx.data").stat().st_size > 100 * (tmp_path / "decoder.onnx").stat().st_size / 10
    assert read_interface(tmp_path / "decoder.onnx") == spec
    decoder = CausalDecoder(
        make_session(tmp_path / "decoder.onnx", ProviderSpec()), spec, audio_id=905, context_length=64
    )
    ids = [5, 6, 7, 8]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    no_audio = np.zeros((0, 256), np.float32)
    logits = decoder.prefill([ids], no_audio, 4, all_positions=True)
    assert np.abs(logits[0] - expected).max() <= 1e-4
    assert np.abs(decoder.prefill([ids[:3]], no_audio, 4)[0, 0] - expected[2]).max() <= 1e-4
    assert np.abs(decoder.step([ids[3]])[0] - expected[3]).max() <= 1e-4
    with pytest.raises(ValueError, match="audio rows do not fit"):
        decoder.prefill([[5, 905]], no_audio, 4)
    with pytest.raises(ValueError, match="65 positions are more than the 64 of the graph"):
        decoder.prefill([ids], no_audio, 61)
    decoder.prefill([ids], no_audio, 60)
    for _ in range(60):
        decoder.step([1])
    with pytest.raises(ValueError, match="no room for another position"):
        decoder.step([1])
