"""What is known of the processor, and what ``info`` makes of it for a quantized model."""

from __future__ import annotations

import platform
from pathlib import Path

import msgspec
import pytest

from quantize.recipe import load_recipe
from runtime.cli import describe as description
from runtime.cli.describe import describe
from runtime.families import declared
from runtime.host.cpu import lacks_vnni
from runtime.model.artifact import open_artifact
from runtime.model.manifest import ErrorRate, FallbackNode, Gate, GraphQuantization, Manifest, Quantization
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
        ("x86_64", HEAD, None),  # a system that calls them something else
        ("x86_64", "", None),
        ("x86_64", None, None),  # no such file
        ("aarch64", HEAD + "Features\t: fp asimd\n", False),
        ("arm64", None, False),
        ("riscv64", "flags\t\t: fpu\n", False),
    ],
)
def test_who_lacks_vnni(machine: str, text: str | None, expected: bool | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text, encoding="utf-8")
    assert lacks_vnni(machine, tmp_path / "cpuinfo") is expected


def test_this_machine_is_asked_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert lacks_vnni() is False
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert lacks_vnni(cpuinfo=tmp_path) is None  # a folder cannot be read


def quantized(
    *, reduced: bool = False, nodes: dict[str, int] | None = None, exceeded: tuple[str, ...] = ()
) -> Manifest:
    """The tracked model's manifest as if the recipe int8 had made it."""
    recipe = load_recipe("int8")
    gate = Gate(
        evaluation="6 utterances of the bundled set",
        relative_error={"encoder": 0.0123, "decoder": 0.0321},
        same_choices=0.99,
        utterances=6,
        identical=0.875,
        error_rates=[ErrorRate("English", "words", 3, 0.01, 0.025)],
        parent_bytes=23_000_000,
        bytes=7_000_000,
        exceeded=list(exceeded),
        forced=bool(exceeded),
    )
    graph = GraphQuantization(nodes or {"float32 patches": 1, "w8a8": 29}, 10, [FallbackNode("/x/MatMul", 0.06)])
    made = Quantization(
        recipe="int8",
        settings=(recipe.with_reduced_range() if reduced else recipe).settings(),
        parent="0" * 64,
        calibration="bundled samples",
        graphs={"encoder": graph},
        gate=gate,
    )
    return msgspec.structs.replace(open_artifact(ARTIFACT).manifest, quantization=made)


def lines(manifest: Manifest) -> dict[str, str]:
    """What ``info`` prints, by its first column."""
    pairs = (line.split("  ", 1) for line in describe(manifest, 7_000_000, declared("qwen3-asr")).splitlines())
    return {key: value.strip() for key, value in pairs}


def test_a_quantized_model_is_described() -> None:
    found = lines(quantized())
    assert found["quantization"] == "int8"
    assert found["size"] == "7.0 MB"
    assert found["encoder nodes"] == "1 float32 patches, 29 w8a8, 10 inputs smoothed, 1 fell back to weight-only"
    assert found["relative error"] == "encoder 0.0123, decoder 0.0321 of the parent's outputs"
    assert found["evaluated on"] == "6 utterances of the bundled set"
    assert found["identical"] == "87.5% of the utterances have the parent's tokens"
    assert found["English words"] == "2.50% wrong, the parent 1.00%"
    assert "forced" not in found


def test_what_was_forced_is_said() -> None:
    found = lines(quantized(exceeded=("the first bound", "the second")))
    assert found["forced"] == "kept although the first bound; the second"


def test_a_float_model_says_nothing_of_it() -> None:
    found = lines(msgspec.structs.replace(open_artifact(ARTIFACT).manifest, quantization=None))
    assert found["quantization"] == "none (float32)"
    assert not {"relative error", "identical", "warning", "reduced range", "forced"} & set(found)


@pytest.mark.parametrize(
    ("lacks", "warning"),
    [
        (True, "this processor has no VNNI: its 8-bit products can saturate; quantize with --reduce-range"),
        (None, "without VNNI needs a model quantized with --reduce-range; whether this is one is unknown"),
        (False, None),
    ],
)
def test_a_model_that_this_processor_may_compute_wrongly(
    lacks: bool | None, warning: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(description, "lacks_vnni", lambda: lacks)
    found = lines(quantized())
    assert (warning or "") in found.get("warning", "")
    assert ("warning" in found) == (warning is not None)
    assert "reduced range" not in found
    found = lines(quantized(reduced=True))
    assert "warning" not in found
    assert found["reduced range"] == "7-bit weights in integer products: cannot saturate on processors without VNNI"
    found = lines(quantized(nodes={"8 bits, blocks of 32": 22}))  # no integer product is in it
    assert not {"warning", "reduced range"} & set(found)


def test_one_rule_of_full_range_is_enough_for_the_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(description, "lacks_vnni", lambda: True)
    manifest = quantized(reduced=True)
    assert manifest.quantization is not None
    rules = manifest.quantization.settings["rules"]
    next(rule for rule in rules if rule["method"] == "w8a8")["reduce_range"] = False
    assert "warning" in lines(manifest)
