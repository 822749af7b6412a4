"""From an artifact to a quantized one: the folder appears when the gate has let it pass, or not at all."""

from __future__ import annotations

import gc
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime

from quantize import gate
from quantize.audio_sets import calibration_clips, evaluation_utterances, is_evaluated, probe_clips
from quantize.calibration import Calibration, Inputs
from quantize.card import say_quantized
from quantize.errors import GateError, QuantizationError, RecipeError
from quantize.gate import Heard
from quantize.graph import load_graph
from quantize.graph_quantization import Rewritten, rewrite
from quantize.instrumented_graph import InstrumentedGraph
from quantize.methods import cache
from quantize.node_kinds import find_node_kinds
from quantize.output_folder import appearing, hash_files, refuse_existing
from quantize.products import find_products
from quantize.progress import Report
from quantize.recipe import AnyRule, Candidate, Float16, Recipe, WeightOnly, assign
from runtime.audio import load_audio
from runtime.engines.base import Engine, EngineOptions, Probe, SegmentOptions
from runtime.evaluation import Utterance, check_packages, recognize
from runtime.families import make_engine
from runtime.host.files import sha256_file
from runtime.model.artifact import Artifact, open_artifact
from runtime.model.manifest import MANIFEST, ErrorRate, Language, Quantization, encode_manifest
from runtime.results import Timings
from runtime.transcriber import Transcriber
from runtime.version import __version__

Floats = npt.NDArray[np.float32]

# Text tokens decoded of each of them: enough rows of text beside those of audio, and no more, since a model with
# random weights never stops.
_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Plan:
    """What :func:`quantize_artifact` is asked for.

    Attributes:
        recipe: the rules and bounds.
        calibration: folder of audio that activations are measured on; the bundled samples by default.
        evaluation: folder of audio with transcripts (see :mod:`runtime.evaluation`) for the gate; the bundled set for
            models that it is for, otherwise graphs alone are compared. Of either, what is in the model's languages.
        force: keep what the gate refuses, and record that.
    """

    recipe: Recipe
    calibration: Path | None = None
    evaluation: Path | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class _Reference:
    """Everything that needs the parent running as a whole: probes of calibration and gate, and its texts."""

    calibration: list[Probe]
    gate: list[Probe]
    heard: Heard | None


def quantize_artifact(parent: Artifact, plan: Plan, out: Path, report: Report) -> Artifact:
    """Quantize ``parent`` by ``plan`` as the folder ``out``.

    Args:
        parent: an opened artifact.
        plan: what is asked for.
        out: the new folder, which must not exist.
        report: is told the steps, and shown the gate's table.

    Raises:
        OutputError: ``out`` exists or cannot be written.
        QuantizationError: ``parent`` is quantized already and the recipe is not for that, or its weights have a second
            hard link.
        RecipeError: a rule does not fit the graphs.
        CalibrationError and the runtime's audio errors: audio that is missing or cannot be read.
        GateError: a bound was exceeded, and ``plan.force`` is not set. Nothing is kept.
    """
    refuse_existing(out)
    recipe, manifest = plan.recipe, parent.manifest
    if manifest.quantization and not recipe.from_quantized:
        raise QuantizationError(
            f"{parent.path}: is quantized already ({manifest.quantization.recipe}); quantize its float32 parent"
        )
    _check_links(parent)
    rules = _assign(parent, recipe)
    clips, utterances = find_audio(plan, manifest.name, manifest.languages)
    report.expect(3 + 2 * len(rules) + 2 * bool(utterances))
    with appearing(out) as work:
        reference = _run_parent(parent, clips, utterances, report)
        results: dict[str, Rewritten] = {}
        expected: list[gate.Expected] = []
        for role, chosen in rules.items():
            with report.step(f"{role}: running the parent"):
                inputs, outputs = _run_graph(parent, role, chosen, reference, recipe)
            expected += outputs
            results[role] = _rewrite(parent, role, chosen, inputs, reference, work, report, recipe)
            gc.collect()  # graphs refer to themselves in circles, and hold gigabytes
        _copy_rest(parent, work)
        name = f"{manifest.name}-{recipe.name}"
        say_quantized(work, manifest.name, name, recipe.name)
        child = msgspec.structs.replace(
            manifest,
            name=name,
            graphs={role: results[role].spec for role in manifest.graphs},
            files=hash_files(work, report),
            parity={},
            tools=manifest.tools
            | {"asr-deploy": __version__, "onnx-ir": ir.__version__, "onnxruntime": onnxruntime.__version__},
        )
        made = Artifact(work, child)
        with report.step("comparing the graphs with the parent's"):
            errors, same = gate.compare_graphs(made, expected)
        texts = _compare_texts(made, reference.heard, report) if reference.heard else None
        quantization = Quantization(
            recipe=recipe.name,
            settings=recipe.settings(),
            parent=sha256_file(parent.path / MANIFEST),
            calibration=_described(plan.calibration) if recipe.calibrates else None,
            graphs={role: result.summary for role, result in results.items()},
            before=manifest.quantization,
            gate=gate.record(
                _evaluated_on(plan, utterances),
                recipe.bounds,
                errors,
                same,
                texts,
                (parent.size, made.size),
                force=plan.force,
            ),
        )
        report.console.print(gate.render(quantization))
        _judge(quantization, recipe)
        child = msgspec.structs.replace(child, quantization=quantization)
        (work / MANIFEST).write_bytes(encode_manifest(child))
        open_artifact(work)
    return Artifact(out, child)


def _check_links(artifact: Artifact) -> None:
    """Refuse early what onnx-ir refuses to read: another name of the weights, by which they could be changed."""
    for graph in artifact.manifest.graphs.values():
        if graph.data and (artifact.path / graph.data).stat().st_nlink > 1:
            raise QuantizationError(
                f"{artifact.path / graph.data}: has another hard link, and such weights are not read by onnx-ir; "
                "quantize a copy of the folder"
            )


def _assign(parent: Artifact, recipe: Recipe) -> dict[str, dict[str, AnyRule]]:
    """By role and node name the rule that is applied; every role is in it."""
    if unknown := set(recipe.bounds.relative_error) - {"*", *parent.manifest.graphs}:
        raise RecipeError(
            f"recipe {recipe.name!r}: bounds.relative_error names {', '.join(sorted(unknown))}, "
            f"but the graphs are {', '.join(parent.manifest.graphs)}"
        )
    if unbound := [role for role in parent.manifest.graphs if math.isinf(recipe.bounds.relative(role))]:
        raise RecipeError(f"recipe {recipe.name!r}: bounds.relative_error has none for {', '.join(unbound)}, nor for *")
    graphs = {role: load_graph(parent.graph_path(role)).graph for role in parent.manifest.graphs}
    caches = sum(1 for graph in graphs.values() for _ in cache.find_attention(graph))
    if recipe.cache and not recipe.cache.optional and not caches:
        raise RecipeError(
            f"recipe {recipe.name!r}: no graph of {parent.manifest.name!r} has a cache; remove [cache] or say "
            "optional = true in it"
        )
    chosen: dict[str, dict[str, AnyRule]] = {role: {} for role in graphs}
    for (role, node), rule in assign(recipe, candidates(graphs, recipe)).items():
        chosen[role][node] = rule
    return chosen


def candidates(graphs: Mapping[str, ir.Graph], recipe: Recipe) -> list[Candidate]:
    """The nodes of all graphs, by role, that the rules of ``recipe`` are tried on: all, or those with weights."""
    everything = any(isinstance(rule, Float16) for rule in recipe.rules)
    products = {role: find_products(graph) for role, graph in graphs.items()}
    sizes = {role: sum({p.weight.name: p.size for p in found}.values()) for role, found in products.items()}
    total = max(sum(sizes.values()), 1)
    nodes = []
    for role, graph in graphs.items():
        kinds = find_node_kinds(graph)
        some = list(graph) if everything else [product.node for product in products[role]]
        nodes += [Candidate(role, node.name or "", node.op_type, kinds[node], sizes[role] / total) for node in some]
    return nodes


def find_audio(plan: Plan, model: str, languages: Sequence[Language] = ()) -> tuple[list[Path], list[Utterance]]:
    """Clips to calibrate with, and the gate's utterances. What is wrong with them is found before the work begins.

    Args:
        plan: whose folders are read.
        model: its name.
        languages: of the model, if they are known by now; utterances in others are left out.

    Raises:
        RecipeError, CalibrationError and the evaluation's errors.
    """
    if plan.calibration and not plan.recipe.calibrates:
        raise RecipeError(f"recipe {plan.recipe.name!r} measures no activations; leave --calibration out")
    clips = calibration_clips(plan.calibration, languages) if plan.recipe.calibrates else []
    if plan.evaluation is None and not is_evaluated(model):
        return clips, []
    check_packages()
    return clips, evaluation_utterances(plan.evaluation, languages)


def _evaluated_on(plan: Plan, utterances: list[Utterance]) -> str:
    if not utterances:
        return "graphs alone: no evaluation audio was given"
    return f"{len(utterances)} utterances of {plan.evaluation.name if plan.evaluation else 'the bundled set'}"


def _described(folder: Path | None) -> str:
    return folder.name if folder else "bundled samples"


def _run_parent(parent: Artifact, clips: list[Path], utterances: list[Utterance], report: Report) -> _Reference:
    """What the parent hears; it is closed again when this returns, since parent and result together would not fit."""
    probed = probe_clips(utterances, parent.manifest.languages)
    engine = make_engine(parent, EngineOptions())
    with report.counted("transcribing calibration audio", len(clips) + len(probed), "clips") as advance:
        calibration = list(_probes(engine, clips, advance))
        compared = list(_probes(engine, probed, advance))
    del engine
    heard = _hear(parent, utterances, "evaluating the parent", report) if utterances else None
    return _Reference(calibration, compared, heard)


def _probes(engine: Engine, clips: list[Path], advance: Callable[[int], object]) -> Iterator[Probe]:
    for clip in clips:
        samples = load_audio(clip, engine.sample_rate, None)[: int(engine.segment_seconds * engine.sample_rate)]
        options = SegmentOptions(max_new_tokens=_TOKENS)
        tokens = engine.transcribe(samples, options, Timings()).tokens
        yield from engine.probes(samples, tokens, options)
        advance(1)


def _hear(artifact: Artifact, utterances: list[Utterance], what: str, report: Report) -> Heard:
    transcriber = Transcriber(artifact, EngineOptions())
    with report.counted(what, len(utterances), "utterances") as advance:
        transcripts = recognize(transcriber, utterances, on_progress=lambda *_: advance(1))
    return Heard(utterances, transcripts)


def _run_graph(
    parent: Artifact, role: str, rules: dict[str, AnyRule], reference: _Reference, recipe: Recipe
) -> tuple[dict[str, Inputs], list[gate.Expected]]:
    """Calibration statistics of a graph's products and cache, and its outputs for the gate's probes."""
    path = parent.graph_path(role)
    graph = load_graph(path).graph
    products = [product for product in find_products(graph) if product.name in rules]
    cached = cache.taps(graph) if recipe.cache else []
    wanted = recipe.calibrates and (any(product.operator != "Gather" for product in products) or cached)
    calibrating = [probe for probe in reference.calibration if probe.role == role] if wanted else []
    calibration = Calibration(products, len(calibrating), cached)
    probed = InstrumentedGraph(path, calibration.taps if calibrating else [])
    for probe in calibrating:
        calibration.add(probed.run(probe, calibration.taps))
    expected = [
        gate.Expected(probe, probed.run(probe, probe.outputs)) for probe in reference.gate if probe.role == role
    ]
    return calibration.finish() if calibrating else {}, expected


def _rewrite(
    parent: Artifact,
    role: str,
    rules: dict[str, AnyRule],
    inputs: dict[str, Inputs],
    reference: _Reference,
    work: Path,
    report: Report,
    recipe: Recipe,
) -> Rewritten:
    path = parent.graph_path(role)
    graph = load_graph(path).graph
    weights = len({product.weight.name for product in find_products(graph)})
    cached = recipe.cache is not None and any(True for _ in cache.find_attention(graph))
    measured = sum(isinstance(rule, WeightOnly) and rule.sensitive is not None for rule in rules.values())
    probe = next((probe for probe in reference.calibration if probe.role == role), None)
    with report.counted(f"{role}: quantizing", weights + measured, "weights") as advance:
        return rewrite(path, work, rules, inputs, probe, lambda: advance(1), cached=cached)


def _copy_rest(parent: Artifact, work: Path) -> None:
    """Tokenizer and whatever else is not a graph."""
    graphs = {file for graph in parent.manifest.graphs.values() for file in (graph.file, graph.data) if file}
    for name in parent.manifest.files:
        if name not in graphs:
            shutil.copyfile(parent.path / name, work / name)


def _compare_texts(made: Artifact, parent: Heard, report: Report) -> tuple[int, float, list[ErrorRate]]:
    heard = _hear(made, parent.utterances, "evaluating the result", report)
    return len(heard.utterances), *gate.compare_texts(parent, heard)


def _judge(quantization: Quantization, recipe: Recipe) -> None:
    found = quantization.gate
    if not all(math.isfinite(error) for error in found.relative_error.values()):
        raise GateError(f"recipe {recipe.name!r}: a graph gives no numbers (NaN or infinity): nothing was kept")
    if found.exceeded and not found.forced:
        raise GateError(
            f"recipe {recipe.name!r}: {'; '.join(found.exceeded)}: nothing was kept (--force keeps it all the same)"
        )
