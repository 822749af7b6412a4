"""Tests of the processor's description, and of what ``info`` shows of a quantized model on it."""

from __future__ import annotations

import platform
from pathlib import Path

import msgspec
import pytest

from quantize.recipe import load_recipe
from runtime.cli import describe as description
from runtime.cli.describe import describe
from runtime.families import declared
from runtime.host.cpu import lacks_vnni, processor_identity, processor_name
from runtime.model.artifact import open_artifact
from runtime.model.manifest import (
    ErrorRate,
    FallbackNode,
    Gate,
    GraphQuantization,
    Manifest,
    Quantization,
    TextDifference,
)
from tests.conftest import ARTIFACT

HEAD = "processor\t: 0\nvendor_id\t: GenuineIntel\nvmx flags\t: avx512_vnni\n"


@pytest.mark.parametrize(
    ("machine", "text", "expected"),
    [
        ("x86_64", HEAD + "flags\t\t: fpu sse avx2 avx512f avx512_vnni amx_int8\n", False),
        ("x86_64", HEAD + "flags\t\t: fpu avx2 avx_vnni\n", False),
        ("AMD64", HEAD + "flags\t\t: fpu avx2 avx512_vnni\n", False),
        ("x86_64", HEAD + "flags\t\t: fpu sse avx2 avx512f avx512_vnni_not\n", True),
        ("x86_64", HEAD + "flags\t\t: fpu sse avx2\n\nprocessor\t: 1\nbugs\t: avx_vnni\n", True),
        ("i686", HEAD + "flags\t\t: fpu\n", True),
        ("x86_64", HEAD, None),  # a system with other field names
        ("x86_64", "", None),
        ("x86_64", None, None),  # no such file
        ("aarch64", HEAD + "Features\t: fp asimd\n", False),
        ("arm64", None, False),
        ("riscv64", "flags\t\t: fpu\n", False),
    ],
)
def test_processors_without_vnni(machine: str, text: str | None, expected: bool | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text, encoding="utf-8")
    assert lacks_vnni(machine, tmp_path / "cpuinfo") is expected


def test_default_is_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert lacks_vnni() is False
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert lacks_vnni(cpuinfo=tmp_path) is None  # a folder cannot be read


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor : 0\nmodel name\t: AMD EPYC 9755\n", "AMD EPYC 9755"),
        ("processor : 0\nFeatures : fp asimd\n\nModel\t\t: Raspberry Pi 5 Model B\n", "Raspberry Pi 5 Model B"),
    ],
)
def test_processor_names(text: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert processor_name(tmp_path / "cpuinfo") == name
    assert processor_name(tmp_path / "absent")


def test_identity_is_model_and_features(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    head = "processor\t: {}\nvendor_id\t: A\nmodel name\t: B\nmicrocode\t: {}\ncpu MHz\t: {}\nflags\t: {}\n"
    path.write_text(head.format(0, 1, 2500, "avx2") + "\n" + head.format(1, 1, 2500, "avx2"))
    first = processor_identity(path)
    assert first == "flags avx2; model name B; vendor_id A"
    path.write_text(head.format(0, 2, 800, "avx2"))
    assert processor_identity(path) == first
    path.write_text(head.format(0, 1, 2500, "avx2 avx512f"))
    assert processor_identity(path) not in (first, None)
    path.write_text("processor\t: 0\nFeatures\t: asimd\nCPU part\t: 0xd40\n\nHardware\t: board\n")
    assert processor_identity(path) == "CPU part 0xd40; Features asimd"
    path.write_text("nothing\n")
    assert processor_identity(path) is None


def quantized(
    *, reduced: bool = False, nodes: dict[str, int] | None = None, exceeded: tuple[str, ...] = ()
) -> Manifest:
    """Return the manifest of the tracked model, as if the recipe int8 had quantized it."""
    recipe = load_recipe("int8")
    gate = Gate(
        evaluation="6 utterances of the bundled set",
        relative_error={"encoder": 0.0123, "decoder": 0.0321},
        same_choices=0.99,
        utterances=6,
        identical=0.875,
        error_rates=[ErrorRate("English", "words", 3, 0.01, 0.025, 60, 3, -0.005, 0.04)],
        parent_bytes=23_000_000,
        bytes=7_000_000,
        exceeded=list(exceeded),
        forced=bool(exceeded),
        words_differ=TextDifference("words", 60, 3, 0.0, 0.11),
    )
    graph = GraphQuantization(nodes or {"float32 patches": 1, "w8a8": 29}, 10, [FallbackNode("/x/MatMul", 0.06)])
    quantization = Quantization(
        recipe="int8",
        settings=(recipe.with_reduced_range() if reduced else recipe).settings(),
        parent="0" * 64,
        calibration="bundled samples",
        graphs={"encoder": graph},
        gate=gate,
    )
    return msgspec.structs.replace(open_artifact(ARTIFACT).manifest, quantization=quantization)


def lines(manifest: Manifest) -> dict[str, str]:
    """Return the lines of ``info`` by their first column."""
    pairs = (line.split("  ", 1) for line in describe(manifest, 7_000_000, declared("qwen3-asr")).splitlines())
    return {key: value.strip() for key, value in pairs}


def test_info_describes_a_quantized_model() -> None:
    rows = lines(quantized())
    assert rows["quantization"] == "int8"
    assert rows["size"] == "7.0 MB"
    assert rows["encoder nodes"].startswith("1 float32 patches, 29 w8a8, 10 inputs smoothed, 1 ")
    assert rows["relative error"].startswith("encoder 0.0123, decoder 0.0321")
    assert rows["evaluated on"].startswith("6 utterances")
    assert rows["identical"].startswith("87.5%")
    assert rows["words that differ"].startswith("3 of 60 words, 5.00% (95 % interval 0.00% to 11.00%)")
    assert [part for part in rows["English words"].split() if "%" in part] == ["2.50%", "1.00%", "%"]
    assert "-0.50 to +4.00 points" in rows["English words"]
    assert "forced" not in rows


def test_info_shows_exceeded_bounds_of_a_forced_model() -> None:
    rows = lines(quantized(exceeded=("the first bound", "the second")))
    assert rows["forced"].endswith("the first bound; the second")


def test_info_of_a_float_model_has_no_quantization() -> None:
    rows = lines(msgspec.structs.replace(open_artifact(ARTIFACT).manifest, quantization=None))
    assert rows["quantization"] == "none (float32)"
    assert not {"relative error", "identical", "warning", "reduced range", "forced"} & set(rows)


@pytest.mark.parametrize(
    ("lacks", "warns"),
    [(True, True), (None, True), (False, False)],
)
def test_info_warns_on_a_processor_without_vnni(
    lacks: bool | None, warns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(description, "lacks_vnni", lambda: lacks)
    rows = lines(quantized())
    assert ("warning" in rows) == warns
    if warns:
        assert "VNNI" in rows["warning"]
        assert "--reduce-range" in rows["warning"]
    assert "reduced range" not in rows
    rows = lines(quantized(reduced=True))
    assert "warning" not in rows
    assert rows["reduced range"].startswith("7-bit weights")
    rows = lines(quantized(nodes={"8 bits, blocks of 32": 22}))  # has no integer products
    assert not {"warning", "reduced range"} & set(rows)


def test_one_rule_with_full_range_causes_the_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(description, "lacks_vnni", lambda: True)
    manifest = quantized(reduced=True)
    assert manifest.quantization is not None
    rules = manifest.quantization.settings["rules"]
    next(rule for rule in rules if rule["method"] == "w8a8")["reduce_range"] = False
    assert "warning" in lines(manifest)
