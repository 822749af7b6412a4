"""The list of models: sizes and languages equal those of the references, and README.md is up to date."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    ParakeetCTCConfig,
    ParakeetForCTC,
    ParakeetForTDT,
    ParakeetTDTConfig,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.models.qwen3_asr.processing_qwen3_asr import LANGUAGE_CODE_TO_NAME
from transformers.models.whisper.tokenization_whisper import LANGUAGES as WHISPER_LANGUAGES
from typer.testing import CliRunner

from export.__main__ import app
from export.catalog import MEASURED, TRACKED, as_text, catalog
from export.checkpoints import CHECKPOINTS, CheckpointFolder
from export.families.parakeet.exporter import LANGUAGES as PARAKEET_LANGUAGES
from export.families.parakeet.exporter import MULTILINGUAL_VOCABULARY
from export.sizes import ParakeetSizes, rounded
from runtime.engines.capabilities import Capabilities
from runtime.families import FAMILIES, declared
from runtime.model.artifact import open_artifact
from tests.conftest import REPOSITORY
from tests.helpers import gigaam_checkpoint
from tools import readme
from tools.random_checkpoint import qwen3_asr


def sizes(name: str) -> int:
    model_sizes = CHECKPOINTS[name].sizes
    assert model_sizes is not None
    return model_sizes.parameters


def parameter_count(model: Any) -> int:
    """Parameters of a model, shared ones counted once. It may be on the meta device, without values."""
    return sum(parameter.numel() for parameter in model.parameters())


def test_qwen_sizes_equal_tensor_shapes() -> None:
    for size in ("0.6b", "1.7b"):
        shapes = qwen3_asr.tensor_shapes(qwen3_asr.configuration(size))
        assert sizes(f"qwen3-asr-{size}") == sum(math.prod(shape) for _, shape in shapes)


@pytest.mark.parametrize("name", [each.name for each in CHECKPOINTS.values() if each.bundled])
def test_bundled_sizes_equal_stored_tensors(name: str) -> None:
    """Statistics of norms and front-end tables are not trained parameters."""
    bundled = CHECKPOINTS[name].bundled
    assert bundled
    tensors = CheckpointFolder(bundled, "", None).tensors()
    counted = [
        tensor.numel()
        for tensor_name, tensor in tensors
        if not any(part in tensor_name for part in ("running_", "num_batches", "preprocessor."))
    ]
    assert sizes(name) == sum(counted)


def test_gigaam_sizes_equal_tensor_shapes(tmp_path: Path) -> None:
    shapes = gigaam_checkpoint.tensor_shapes(gigaam_checkpoint.configuration("ctc"))
    assert sizes("gigaam-v3-ctc") == sum(math.prod(shape) for shape in shapes.values())
    tiny = gigaam_checkpoint.write("ctc", tmp_path / "tiny", **gigaam_checkpoint.TINY)
    counted = CheckpointFolder(tiny, "", None).parameters()
    stored = gigaam_checkpoint.tensors(gigaam_checkpoint.configuration("ctc", **gigaam_checkpoint.TINY))
    assert counted == sum(tensor.numel() for tensor in stored.values())


def test_whisper_and_parakeet_sizes_equal_the_references() -> None:
    with torch.device("meta"):
        whisper = WhisperConfig(
            vocab_size=51_866,
            num_mel_bins=128,
            d_model=1280,
            encoder_layers=32,
            decoder_layers=4,
            encoder_attention_heads=20,
            decoder_attention_heads=20,
            encoder_ffn_dim=5120,
            decoder_ffn_dim=5120,
        )
        assert sizes("whisper-large-v3-turbo") == parameter_count(WhisperForConditionalGeneration(whisper))
        base = WhisperConfig(
            vocab_size=51_865,
            num_mel_bins=80,
            d_model=512,
            encoder_layers=6,
            decoder_layers=6,
            encoder_attention_heads=8,
            decoder_attention_heads=8,
            encoder_ffn_dim=2048,
            decoder_ffn_dim=2048,
        )
        assert sizes("whisper-base") == parameter_count(WhisperForConditionalGeneration(base))
        plain = {"num_mel_bins": 128, "attention_bias": False, "convolution_bias": False}
        transducer = ParakeetForTDT(ParakeetTDTConfig(encoder_config=plain))
        assert sizes("parakeet-tdt-0.6b-v3") == parameter_count(transducer)
        assert sizes("parakeet-ctc-1.1b") == parameter_count(
            ParakeetForCTC(ParakeetCTCConfig(encoder_config={"num_hidden_layers": 42}))
        )
        # All sizes differ, so that swapped ones are noticed.
        other = {
            "num_mel_bins": 16,
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 40,
            "subsampling_conv_channels": 8,
            "conv_kernel_size": 5,
        }
        small = ParakeetForTDT(
            ParakeetTDTConfig(vocab_size=48, blank_token_id=47, decoder_hidden_size=20, encoder_config=other)
        )
    small_sizes = ParakeetSizes(2, 16, 48, bias=True, width=24, ffn=40, kernel=5, channels=8, predictor=20)
    assert small_sizes.parameters == parameter_count(small)


def test_sizes_are_rounded_to_three_digits() -> None:
    assert [rounded(each) for each in (5_441_920, 220_707_874, 999_600_000, 2_038_052_480)] == [
        "5.44 M",
        "221 M",
        "1.00 B",
        "2.04 B",
    ]


def test_languages_equal_the_references() -> None:
    assert sorted(CHECKPOINTS["qwen3-asr-0.6b"].languages) == sorted(LANGUAGE_CODE_TO_NAME)
    assert sorted(CHECKPOINTS["whisper-large-v3-turbo"].languages) == sorted(WHISPER_LANGUAGES)
    assert set(WHISPER_LANGUAGES) - set(CHECKPOINTS["whisper-base"].languages) == {"yue"}
    parakeet = CHECKPOINTS["parakeet-tdt-0.6b-v3"]
    assert sorted(parakeet.languages) == sorted(PARAKEET_LANGUAGES.values())
    assert isinstance(parakeet.sizes, ParakeetSizes)
    assert parakeet.sizes.vocabulary == MULTILINGUAL_VOCABULARY


def test_every_model_is_described_completely() -> None:
    for model in catalog().models:
        assert model.parameters
        assert model.languages
        assert model.licence
        assert model.author
        assert model.capabilities == declared(model.family)
    assert {model.family for model in catalog().models} == set(FAMILIES)
    assert set(MEASURED) <= set(CHECKPOINTS)


def test_artifact_sizes_are_measured_or_absent() -> None:
    sizes_by_model = {model.name: model.bytes for model in catalog().models}
    results = json.loads((REPOSITORY / "docs" / "quantization.json").read_text(encoding="utf-8"))
    assert sizes_by_model["qwen3-asr-0.6b"]["int8"] == results["speed"]["results"]["int8"]["bytes"]
    assert "per-tensor" not in sizes_by_model["qwen3-asr-tiny"]
    assert not any(sizes_by_model[name] for name in sizes_by_model if name not in {*MEASURED, *TRACKED})


@pytest.mark.parametrize("name", TRACKED)
def test_sizes_of_tracked_artifacts_are_in_their_manifests(name: str) -> None:
    gate_of_tracked = open_artifact(REPOSITORY / "artifacts" / TRACKED[name]).manifest.quantization
    assert gate_of_tracked
    (sizes_of_model,) = (model.bytes for model in catalog().models if model.name == name)
    assert sizes_of_model[gate_of_tracked.recipe] == gate_of_tracked.gate.bytes
    assert sizes_of_model["float32"] > 3 * gate_of_tracked.gate.bytes


def test_installed_package_has_no_artifact_sizes(tmp_path: Path) -> None:
    assert not any(model.bytes for model in catalog(tmp_path).models)


def test_generated_tables_are_written_and_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tables = {"<!-- a -->": lambda: "| 1 |\n", "<!-- b -->": lambda: "| 2 |\n"}
    monkeypatch.setattr(readme, "TABLES", {tmp_path: tables})
    page = f"Text\n<!-- a -->\nold\n{readme.END}\n<!-- b -->\n| 2 |\n{readme.END}\nmore\n"
    (line,) = readme.violations(page, tmp_path)
    assert "<!-- a -->" in line
    assert "python -m tools.readme" in line
    renewed = readme.renewed(page, tmp_path)
    assert renewed == page.replace("old", "| 1 |")
    assert readme.violations(renewed, tmp_path) == []
    assert len(readme.violations("nothing", tmp_path)) == 2
    with pytest.raises(ValueError, match="<!-- a -->"):
        readme.renewed("nothing", tmp_path)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_list_formats() -> None:
    text = run("--list")
    assert text.exit_code == 0
    assert text.stdout == as_text(catalog()) + "\n"
    for part in (
        "parakeet-tdt-0.6b-v3    parakeet-tdt  627 M",
        "CC-BY-4.0",
        "at 6d590f77001d",
        "recipes: ",
        "bundled",
    ):
        assert part in text.stdout
    listed = json.loads(run("--list", "--json").stdout)
    assert {model["name"] for model in listed["models"]} == set(CHECKPOINTS)
    assert listed["recipes"]
    (turbo,) = (model for model in listed["models"] if model["name"] == "whisper-large-v3-turbo")
    assert turbo["revision"] == CHECKPOINTS["whisper-large-v3-turbo"].revision
    assert set(turbo["capabilities"]) == set(Capabilities.__struct_fields__)
    assert run("--list", "--markdown").stdout in readme.README.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no NAME is given; --list"),
        (["qwen3-asr-tiny", "--list"], "--list takes no NAME"),
        (["--list", "--json", "--markdown"], "at most one of --json and --markdown"),
        (["qwen3-asr-tiny", "--json"], "--json and --markdown need --list"),
    ],
)
def test_conflicting_arguments_are_refused(arguments: list[str], message: str) -> None:
    refused = run(*arguments)
    assert refused.exit_code == 2
    assert message in refused.stderr
