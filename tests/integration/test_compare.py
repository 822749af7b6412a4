"""Comparison of execution providers in real processes, and providers that cannot be measured."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from runtime.__main__ import app
from runtime.bench import provider_run
from runtime.bench.compare import compare
from runtime.bench.compare_report import as_page, as_text
from runtime.bench.compared import Comparison, Difference, Measured, Outcome, Request
from runtime.errors import ComparisonError, OptionError, ProviderError
from runtime.ort.providers import availability
from tests.conftest import ARTIFACT, DATA, REPOSITORY

AUDIO = [DATA / "en-1.wav", DATA / "zh-1.wav"]
# An onnxruntime with OpenVINO built in, installed by `make test`; supports processors that the plugin does not.
OPENVINO = REPOSITORY / "build" / "onnxruntime-openvino"


pytestmark = pytest.mark.usefixtures("small_default")


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["providers", *map(str, arguments)])


def total(measured: Measured, role: str) -> int:
    return sum(sum(nodes.values()) for nodes in measured.placement[role].values())


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A comparison of the CPU, of providers that are not installed, and of one that aborts its process."""
    broken = tmp_path_factory.mktemp("broken") / "onnxruntime"
    broken.mkdir()
    (broken / "__init__.py").write_text("import os\nos.abort()\n", encoding="utf-8")
    listed = [("webgpu",), ("cpu",), ("cuda", "cpu"), ("directml",)]
    return compare(ARTIFACT, listed, AUDIO, runs=1, threads=1, packages={"webgpu": broken.parent})


def test_a_provider_that_dies_is_reported_and_does_not_stop_the_others(compared: Comparison) -> None:
    dead, cpu, cuda, directml = compared.outcomes
    assert dead.measured is None
    assert dead.error is not None
    assert "its process was ended by SIGABRT" in dead.error
    for outcome in (cuda, directml):
        if not availability(outcome.provider.partition("+")[0]).is_available:
            assert outcome.error is not None
            assert "is not available here (pip install onnxruntime-" in outcome.error.replace("'", "")
    assert cpu.measured is not None


def test_the_cpu_is_the_reference_and_all_nodes_run_on_it(compared: Comparison, samples: list[dict[str, Any]]) -> None:
    outcome = compared.outcomes[1]
    measured = outcome.measured
    assert measured is not None
    assert compared.reference == "qwen3-asr-tiny-int8 on the CPU"
    assert measured.texts == [next(s["text"] for s in samples if s["file"] == path.name) for path in AUDIO]
    assert (outcome.first_difference, outcome.identical, outcome.word_errors) == (None, 2, 0.0)
    assert measured.differences == {}
    assert list(measured.placement) == ["encoder", "decoder"]
    assert all(list(by_provider) == ["cpu"] for by_provider in measured.placement.values())
    assert measured.peak_bytes > 50e6
    assert measured.step is not None
    assert 0 < measured.encode.median < measured.total.median


def test_the_report_has_every_provider(compared: Comparison) -> None:
    text, page = as_text(compared), as_page(compared)
    measured = compared.outcomes[1].measured
    assert measured is not None
    for report in (text, page):
        for outcome in compared.outcomes:
            assert outcome.provider in report
        assert "SIGABRT" in report
        assert str(total(measured, "decoder")) in report
    assert "<script" not in page
    assert page.count("<svg") == 4
    failed = msgspec.structs.replace(compared, outcomes=[Outcome("cuda", error="no such device")])
    assert "no such device" in as_text(failed)
    assert "no such device" in as_page(failed)


@pytest.mark.slow
def test_cpu_and_openvino_for_real(float_artifact: Path, tmp_path: Path) -> None:
    """Uses the plugin on an Intel processor, else the onnxruntime with OpenVINO built in.

    In float32, because the GroupQueryAttention of that onnxruntime does not support a cache in 8 bits.
    """
    packages = [] if availability("openvino").is_available else ["--packages", f"openvino={OPENVINO}"]
    if packages and not OPENVINO.is_dir():
        # There are wheels for x86-64 only; on it the comparison must not be skipped.
        assert (sys.platform, platform.machine()) != ("linux", "x86_64"), "run `make build/onnxruntime-openvino`"
        result = run("--compare", "cpu,openvino", "--audio", AUDIO[0], "--runs", "1")
        assert "openvino: provider 'openvino' is not available here" in result.stdout
        return
    files = [part for path in AUDIO for part in ("--audio", path)]
    written = tmp_path / "compared.json"
    result = run(
        "--compare",
        "openvino",
        "--model",
        float_artifact,
        *files,
        "--runs",
        "1",
        "--json",
        written,
        "--html",
        tmp_path / "p.html",
        *packages,
    )
    assert result.exit_code == 0, result.output
    comparison = msgspec.json.decode(written.read_bytes(), type=Comparison)
    cpu, openvino = (outcome.measured for outcome in comparison.outcomes)
    assert cpu is not None
    assert openvino is not None, comparison.outcomes[1].error
    for role in ("encoder", "decoder"):
        on = {name: sum(nodes.values()) for name, nodes in openvino.placement[role].items()}
        assert on["openvino"] > 0.8 * total(openvino, role)
        assert total(openvino, role) <= total(cpu, role)  # OpenVINO folds more constants, and adds no node
    assert openvino.placement["decoder"]["cpu"]["GroupQueryAttention"] == 4
    # OpenVINO runs in float32 here; with bfloat16, its default on some processors, the difference would be 0.04.
    assert all(0 < difference.relative < 0.02 for difference in openvino.differences.values())
    assert openvino.differences["decoder"].same_choices == 1.0
    assert openvino.texts == cpu.texts
    assert comparison.outcomes[1].first_difference is None
    assert "openvino" in (tmp_path / "p.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_quantized_model_beside_its_float32_parent(float_artifact: Path) -> None:
    comparison = compare(ARTIFACT, [("cpu",)], AUDIO[:1], reference=float_artifact, runs=1)
    (outcome,) = comparison.outcomes
    assert outcome.measured is not None
    assert comparison.reference == "qwen3-asr-tiny on the CPU"
    assert all(1e-4 < difference.relative < 0.2 for difference in outcome.measured.differences.values())
    assert outcome.word_errors == 0


def test_the_work_of_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reference, the same model against it, with fixed windows, and on a provider that is not installed."""
    request_path, result, outputs = tmp_path / "request.json", tmp_path / "result.json", str(tmp_path / "reference.npz")

    def work(provider: str, reference: str | None, audio: Path = AUDIO[0]) -> int:
        request = Request(str(ARTIFACT), [provider], [str(audio)], 1, 1, None, outputs, reference)
        request_path.write_bytes(msgspec.json.encode(request))
        return provider_run.main(request_path, result)

    assert work("cpu", None) == 0
    assert work("cpu", outputs) == 0
    measured = msgspec.json.decode(result.read_bytes(), type=Measured)
    assert measured.differences == {"encoder": Difference(0, 0), "decoder": Difference(0, 0, 1.0)}
    assert measured.versions.keys() == {"onnxruntime"}
    assert work("cpu:fixed_windows=1", outputs) == 0
    measured = msgspec.json.decode(result.read_bytes(), type=Measured)
    assert 0 <= measured.differences["encoder"].relative < 1e-5
    assert measured.differences["decoder"].relative == 0  # its inputs are the reference's rows
    assert capsys.readouterr().err == ""
    assert work("directml", outputs) == 2
    assert capsys.readouterr().err.startswith("error: provider 'directml' is not available here")


def test_forced_tokens_are_as_many(tmp_path: Path) -> None:
    written = tmp_path / "compared.json"
    result = run("--compare", "cpu", "--audio", AUDIO[0], "--runs", "1", "--new-tokens", "7", "--json", written)
    assert result.exit_code == 0, result.output
    (outcome,) = msgspec.json.decode(written.read_bytes(), type=Comparison).outcomes
    assert outcome.measured is not None
    assert [len(tokens) for tokens in outcome.measured.tokens] == [7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--html", "page.html"], "these options go with --compare"),
        (["--compare", "cpu", "--audio", "none.wav"], "none.wav: no such file"),
        (["--compare", "gpu", "--audio", AUDIO[0]], "unknown provider 'gpu'"),
        (["--compare", "cuda:x=1", "--audio", AUDIO[0]], "provider 'cuda' has no option 'x'"),
        (["--compare", "cpu+cuda", "--audio", AUDIO[0]], "'cuda' is named after cpu"),
        (["--compare", "cpu", "--audio", AUDIO[0], "--packages", "openvino"], "is not of the form NAME=FOLDER"),
        (["--compare", "cpu", "--audio", AUDIO[0], "--packages", "openvino=none"], "none: no such folder of packages"),
        (["--compare", "cpu", "--audio", AUDIO[0], "--html", "none/page.html"], "cannot be written"),
    ],
)
def test_invalid_options_are_one_sentence(arguments: list[str | Path], message: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_reference_that_cannot_be_measured_ends_the_comparison(tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    with pytest.raises(ComparisonError, match=r"the reference cannot be measured \(.*bad.wav: is not audio"):
        compare(ARTIFACT, [("cpu",)], [tmp_path / "bad.wav"], runs=1)
    with pytest.raises(OptionError, match="no audio was given"):
        compare(ARTIFACT, [("cpu",)], [])
    with pytest.raises(ProviderError, match="named twice"):
        compare(ARTIFACT, [("cuda", "cuda")], AUDIO)


def test_models_without_a_common_tokenizer_are_not_compared(tmp_path: Path) -> None:
    import json
    import shutil

    other = tmp_path / "other"
    shutil.copytree(ARTIFACT, other)
    os.truncate(other / "tokenizer.json", 0)
    manifest = json.loads((other / "manifest.json").read_text(encoding="utf-8"))
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # sha256 of nothing
    manifest["files"]["tokenizer.json"] = {"sha256": empty, "size": 0}
    (other / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(OptionError, match="family or tokenizer differs"):
        compare(ARTIFACT, [("cpu",)], AUDIO, reference=other)
