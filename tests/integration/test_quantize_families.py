"""Tests of the bundled recipes on tiny random models of every family: methods of nodes, and independent rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

import export.__main__
import quantize.__main__
import runtime.__main__
from quantize.graph import load_graph
from quantize.node_kinds import find_node_kinds
from quantize.numerics import relative_error
from quantize.package import candidates
from quantize.products import find_products
from quantize.recipe import assign, load_recipe, shipped
from runtime import Transcriber, open_artifact
from runtime.decoding.tdt import States
from runtime.engines.base import EngineOptions
from runtime.engines.frame import FrameEngine, padded
from runtime.families import make_engine
from runtime.families.parakeet import ParakeetTdtEngine
from runtime.model.manifest import Quantization
from runtime.ort.prepacked import prepack
from tests.conftest import DATA
from tests.helpers import gigaam_checkpoint, whisper_checkpoint
from tests.helpers import parakeet_checkpoint as tiny_parakeet

pytestmark = pytest.mark.slow

TDT, CTC, GIGAAM, WHISPER = "parakeet-tdt-0.6b-v3", "parakeet-ctc-1.1b", "gigaam-v3-ctc", "whisper-large-v3-turbo"
CHECKPOINTS: dict[str, Callable[[Path], object]] = {
    TDT: lambda folder: tiny_parakeet.write(tiny_parakeet.tdt_model(), folder),
    CTC: lambda folder: tiny_parakeet.write(tiny_parakeet.ctc_model(), folder),
    GIGAAM: lambda folder: gigaam_checkpoint.write("ctc", folder, **gigaam_checkpoint.TINY),
    WHISPER: lambda folder: whisper_checkpoint.write(folder),
}
FRAMES = [TDT, CTC, GIGAAM]
# Largest relative error by recipe, twice what was measured. Random weights amplify errors from layer to layer, those of
# the tiny Parakeets the most: to tens of times the error of a single node.
LIMITS = {"fp16": 0.01, "q8": 0.15, "int8": 0.15, "mixed": 0.5, "int4": 1.5, "int4-small": 1.5}

Make = Callable[..., Path]


def run(app: Any, *arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Exports the float32 artifact of a name, once for all tests."""
    folder = tmp_path_factory.mktemp("float32")

    def make(name: str) -> Path:
        out = folder / name
        if not out.exists():
            CHECKPOINTS[name](folder / f"{name}-checkpoint")
            result = run(export.__main__.app, name, "--checkpoint", folder / f"{name}-checkpoint", "--out", out)
            assert result.exit_code == 0, result.output
        return out

    return make


@pytest.fixture(scope="module")
def quantized(exported: Make, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Quantizes an exported artifact by a recipe: random weights may exceed bounds, and have no text to compare."""
    folder = tmp_path_factory.mktemp("quantized")

    def make(name: str, recipe: str) -> Path:
        out = folder / f"{name}-{recipe}"
        if not out.exists():
            result = run(
                quantize.__main__.app, exported(name), "--recipe", recipe, "--out", out, "--force", "--no-eval"
            )
            assert (result.exit_code, result.stdout) == (0, f"{out}\n"), result.output
        return out

    return make


def read_quantization(folder: Path) -> Quantization:
    quantization = open_artifact(folder).manifest.quantization
    assert quantization is not None
    return quantization


def graphs(folder: Path) -> dict[str, ir.Graph]:
    artifact = open_artifact(folder)
    return {role: load_graph(artifact.graph_path(role)).graph for role in artifact.manifest.graphs}


@pytest.mark.parametrize("recipe", shipped())
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_bundled_recipe(name: str, recipe: str, quantized: Make, exported: Make) -> None:
    """The result transcribes, its error is within the limit, and no weight with a rule is float32."""
    folder = quantized(name, recipe)
    quantization = read_quantization(folder)
    assert set(quantization.graphs) == set(open_artifact(exported(name)).manifest.graphs)
    assert all(0 < error <= LIMITS[recipe] for error in quantization.gate.relative_error.values())
    assert quantization.gate.same_choices is not None
    assert quantization.gate.same_choices > (0.85 if recipe in ("fp16", "q8", "int8") else 0.4)
    assert all("relative error" in bound for bound in quantization.gate.exceeded)
    kinds = {kind for graph in graphs(folder).values() for kind in float_kinds(graph)}
    assert kinds <= ({"convolution", "pointwise"} if "parakeet" in name else set())  # a stem of depthwise convolutions
    transcriber = Transcriber.from_artifact(folder, vad=False)
    assert any(transcriber.transcribe(DATA / f"ru-{index}.wav").segments[0].tokens for index in (1, 2, 3))


def float_kinds(graph: ir.Graph) -> list[str]:
    """Kinds of the nodes of ``graph`` with float32 weights, without constants that ONNX Runtime folds."""
    kinds = find_node_kinds(graph)
    return [kinds[product.node] for product in find_products(graph)]


def by_bits(nodes: dict[str, int]) -> dict[str, int]:
    """Return ``nodes`` with those of 4 bits and of the most sensitive weights, which have 8, counted together."""
    both = ("4 bits, blocks of 32", "8 bits, blocks of 32")
    return {name: count for name, count in nodes.items() if name not in both} | {
        "4 and 8 bits": sum(nodes.get(name, 0) for name in both)
    }


def test_nodes_of_the_bundled_recipes(quantized: Make) -> None:
    """The number of nodes by method: int4 uses 8 bits in a smaller encoder and 4 in the layers of others."""
    nodes = {
        (name, recipe): {role: graph.nodes for role, graph in read_quantization(quantized(name, recipe)).graphs.items()}
        for name in CHECKPOINTS
        for recipe in ("int8", "int4", "mixed")
    }
    layer, stem = 11, {"float32": 3}  # products of a Conformer layer; convolutions of the stem
    assert nodes[TDT, "int8"] == {
        "encoder": {"w8a8": 2 * layer + 2} | stem,
        "decoder_joint": {"w8a8": 3, "8 bits, blocks of 64": 2},  # LSTM layers and a projection; embedding and head
    }
    assert nodes[CTC, "int8"] == {"encoder": {"w8a8": 2 * layer + 1, "8 bits, blocks of 64": 1} | stem}
    assert nodes[GIGAAM, "int8"] == {"encoder": {"w8a8": 2 * (layer - 1) + 2, "8 bits, blocks of 64": 1}}
    assert nodes[WHISPER, "int8"] == {
        "encoder": {"w8a8": 18},
        "decoder": {"8 bits, blocks of 32": 16, "8 bits, blocks of 64": 2},
    }
    # Products before and after the layers have 8 bits, and so have those that run for every token.
    ends = {"w8a8": 1, "8 bits, blocks of 64": 1}
    assert by_bits(nodes[TDT, "int4"]["encoder"]) == {"4 and 8 bits": 2 * layer} | ends | stem
    assert nodes[TDT, "int4"]["encoder"]["4 bits, blocks of 32"] > 1.5 * layer
    assert nodes[TDT, "int4"]["decoder_joint"] == {"8 bits, blocks of 64": 5}
    assert by_bits(nodes[CTC, "int4"]["encoder"]) == {"4 and 8 bits": 2 * layer} | ends | stem
    assert by_bits(nodes[GIGAAM, "int4"]["encoder"]) == {
        "w8a8": 2,
        "4 and 8 bits": 2 * (layer - 1),
        "8 bits, blocks of 64": 1,
    }
    assert nodes[WHISPER, "int4"]["encoder"] == {"w8a8": 18}
    assert by_bits(nodes[WHISPER, "int4"]["decoder"]) == {"4 and 8 bits": 16, "8 bits, blocks of 64": 2}
    bits = {"4 bits, blocks of 32", "8 bits, blocks of 32", "8 bits, blocks of 64"}
    assert set(nodes[GIGAAM, "mixed"]["encoder"]) == {"w8a8"} | bits


@pytest.mark.parametrize("recipe", shipped())
def test_every_rule_of_a_bundled_recipe_applies_to_some_family(
    recipe: str, exported: Make, float_artifact: Path
) -> None:
    """Optional rules too; and every weight of every family has a rule."""
    loaded, used = load_recipe(recipe), set()
    optional = tuple(msgspec.structs.replace(rule, optional=True) for rule in loaded.rules)
    for folder in (float_artifact, *map(exported, CHECKPOINTS)):
        by_role = graphs(folder)
        nodes = candidates(by_role, loaded)
        rules = assign(msgspec.structs.replace(loaded, rules=optional), nodes)
        assert {(role, p.name) for role, graph in by_role.items() for p in find_products(graph)} <= set(rules)
        used |= {next(index for index, rule in enumerate(loaded.rules) if rule.matches(node)) for node in nodes}
    assert used == set(range(len(loaded.rules)))


@pytest.mark.parametrize("recipe", ["int8", "fp16"])
@pytest.mark.parametrize("name", FRAMES)
def test_clip_in_a_batch_equals_the_clip_alone(name: str, recipe: str, quantized: Make, speech: np.ndarray) -> None:
    """Exactly beside clips of its length, whatever they contain; with padding some roundings differ."""
    engine = make_engine(open_artifact(quantized(name, recipe)), EngineOptions())
    assert isinstance(engine, FrameEngine)
    clips = [engine.features(part) for part in (speech[:48_000], 20 * speech[60_000:108_000], speech[120_000:145_000])]
    together, valid = engine.encode(*padded(clips[:2]))
    for row, clip in enumerate(clips[:2]):
        alone, _ = engine.encode(*padded([clip]))
        np.testing.assert_array_equal(together[row, : valid[row]], alone[0])
    ragged, valid = engine.encode(*padded(clips))
    for row, clip in enumerate(clips):
        alone, _ = engine.encode(*padded([clip]))
        assert relative_error(ragged[row, : valid[row]], alone[0]) < 0.05


@pytest.mark.parametrize("recipe", ["int8", "q8"])
def test_rows_of_the_joint_network_are_independent(recipe: str, quantized: Make, rng: np.random.Generator) -> None:
    engine = make_engine(open_artifact(quantized(TDT, recipe)), EngineOptions())
    assert isinstance(engine, ParakeetTdtEngine)
    parameters, width = engine.parameters, engine.parameters.predictor_size

    def noise(*shape: int) -> npt.NDArray[np.float32]:
        return rng.standard_normal(shape, np.float32) * np.array([1, 30, 0.1, 3], np.float32)[:, None]

    tokens, frames = rng.integers(0, parameters.vocab_size, 4), noise(4, parameters.hidden_size)
    states = States(noise(parameters.predictor_layers, 4, width), noise(parameters.predictor_layers, 4, width))
    together = engine._joint.step(tokens, states, frames)
    for row in range(4):
        one = slice(row, row + 1)
        alone = engine._joint.step(tokens[one], States(states.hidden[:, one], states.cell[:, one]), frames[one])
        for actual, expected in zip(alone[:2], together[:2], strict=True):
            np.testing.assert_array_equal(actual[0], expected[row])
        for actual, expected in zip(alone[2], together[2], strict=True):
            np.testing.assert_array_equal(actual[:, 0], expected[:, row])


@pytest.mark.parametrize("name", [TDT, GIGAAM])
def test_export_and_quantize_in_one_command(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    CHECKPOINTS[name](tmp_path / "checkpoint")
    result = run(export.__main__.app, name, "--checkpoint", "checkpoint", "--int8", "--no-eval")
    assert (result.exit_code, result.stdout) == (0, f"artifacts/{name}-int8\n"), result.output
    assert "same choice, on the parent's text" in result.stderr
    assert [path.name for path in Path("artifacts").iterdir()] == [f"{name}-int8"]
    quantization = read_quantization(Path("artifacts") / f"{name}-int8")
    assert (quantization.gate.exceeded, quantization.gate.utterances) == ([], 0)
    assert "bundled recordings of people (" in (quantization.calibration or "")


@pytest.mark.parametrize("name", [TDT, GIGAAM])
def test_prepacked_weights(name: str, quantized: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are the same with prepacked weights."""
    folder = quantized(name, "int8")
    before = Transcriber.from_artifact(folder, vad=False).transcribe(DATA / "ru-1.wav")
    prepacked_graphs = prepack(open_artifact(folder), tmp_path)
    assert all(graph.new for graph in prepacked_graphs)
    monkeypatch.setenv("ASR_DEPLOY_PREPARED", str(tmp_path))
    after = Transcriber.from_artifact(folder, vad=False).transcribe(DATA / "ru-1.wav")
    assert [segment.tokens for segment in after.segments] == [segment.tokens for segment in before.segments]


def test_comparison_with_the_parent(quantized: Make, exported: Make, tmp_path: Path) -> None:
    """``providers --compare`` with the float32 model as the reference."""
    arguments: list[str | Path] = [
        "--model",
        quantized(TDT, "int8"),
        "--reference",
        exported(TDT),
        "--audio",
        DATA / "en-1.wav",
    ]
    result = run(
        runtime.__main__.app,
        "providers",
        "--compare",
        "cpu",
        *arguments,
        "--runs",
        "1",
        "--json",
        tmp_path / "report.json",
    )
    assert result.exit_code == 0, result.output
    (outcome,) = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["outcomes"]
    differences = outcome["measured"]["differences"]
    assert set(differences) == {"encoder", "decoder_joint"}
    assert all(0 < each["relative"] < 0.15 for each in differences.values())


# Languages and parts that a family lacks


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """An evaluation set with an utterance in each of three languages."""
    folder = tmp_path / "few"
    folder.mkdir()
    entries = json.loads((DATA / "evaluation" / "index.json").read_text(encoding="utf-8"))
    chosen = [entry for entry in entries if entry["file"] in ("en-01.ogg", "ru-01.ogg", "zh-01.ogg")]
    for entry in chosen:
        shutil.copy(DATA / "evaluation" / entry["file"], folder)
    (folder / "index.json").write_text(json.dumps([entry | {"context": "Names."} for entry in chosen]))
    return folder


def test_evaluation_uses_only_languages_of_the_model(few: Path, exported: Make, tmp_path: Path) -> None:
    """Contexts of the data set are ignored for models without context."""
    arguments: list[str | Path] = [
        exported(GIGAAM),
        "--recipe",
        "int8",
        "--out",
        tmp_path / "out",
        "--eval",
        few,
        "--force",
    ]
    result = run(quantize.__main__.app, *arguments)
    assert result.exit_code == 0, result.output
    gate = read_quantization(tmp_path / "out").gate
    assert (gate.evaluation, gate.utterances) == ("1 utterances of few", 1)
    assert [rate.language for rate in gate.error_rates] == ["Russian"]


def test_evaluation_without_a_language_of_the_model_is_refused(few: Path, exported: Make, tmp_path: Path) -> None:
    entries = json.loads((few / "index.json").read_text(encoding="utf-8"))
    (few / "index.json").write_text(json.dumps([entry for entry in entries if entry["language"] != "Russian"]))
    result = run(quantize.__main__.app, exported(GIGAAM), "--recipe", "int8", "--out", tmp_path / "x", "--eval", few)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {few}: ")
    assert "2 utterances" in result.stderr
    assert "(Russian)" in result.stderr


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ('[[rules]]\ngraph = "decoder"\nmethod = "keep"\n', "rule 2 (graph 'decoder') matches no node"),
        ("[cache]\nbits = 8\n", "no graph of 'gigaam-v3-ctc' has a cache; remove [cache] or set optional = true"),
    ],
)
def test_rule_or_cache_that_does_not_apply_is_refused(added: str, message: str, exported: Make, tmp_path: Path) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text(
        'description = "for a test"\n[bounds]\nrelative_error = { "*" = 0.1 }\nwords_differ = 0.5\nerror_rate = 0.5\n'
        f'[[rules]]\ngraph = "encoder"\nmethod = "weight_only"\nbits = 8\nblock = 32\n{added}',
        encoding="utf-8",
    )
    result = run(quantize.__main__.app, exported(GIGAAM), "--recipe", recipe, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
