"""Quantize an artifact into a new folder, which is written only if the result passes the gate."""

from __future__ import annotations

import gc
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnx_ir as ir
import onnxruntime

from quantize import gate
from quantize.audio_sets import Audio, calibration_audio, evaluation_audio
from quantize.calibration import ActivationStatistics, Calibration
from quantize.card import CARD, add_quantization_note
from quantize.errors import GateError, QuantizationError, RecipeError
from quantize.graph import load_graph
from quantize.graph_quantization import QuantizedGraph, quantize_graph
from quantize.instrumented_graph import InstrumentedGraph
from quantize.methods import cache
from quantize.node_kinds import find_node_kinds, has_cross_attention
from quantize.output_folder import appearing, file_spec, hash_files, refuse_existing
from quantize.parent_run import ParentRun, run_parent, transcribe
from quantize.products import find_products
from quantize.progress import Report
from quantize.recipe import AnyRule, Candidate, Float16, Recipe, WeightOnly, assign
from runtime.engines.base import EngineOptions
from runtime.errors import OptionError
from runtime.evaluation import check_packages
from runtime.host.files import sha256_file
from runtime.model.artifact import Artifact, open_artifact
from runtime.model.manifest import MANIFEST, Language, Quantization, encode_manifest
from runtime.transcriber import Transcriber
from runtime.version import __version__


@dataclass(frozen=True, slots=True)
class Plan:
    """Options of :func:`quantize_artifact`. Audio in languages that the model does not support is left out.

    Attributes:
        recipe: The recipe.
        calibration: Folder of audio files for calibration; bundled recordings by default.
        evaluation: Folder of audio with transcripts (see :mod:`runtime.evaluation`) for the gate. By default bundled
            recordings of people, or synthetic speech for the small bundled models. A model that knows none of their
            languages is compared by its graphs alone.
        force: Keep a result that exceeds the bounds, and record that in the manifest.
        graphs_only: Compare graphs alone, without evaluation audio.
    """

    recipe: Recipe
    calibration: Path | None = None
    evaluation: Path | None = None
    force: bool = False
    graphs_only: bool = False


def quantize_artifact(parent: Artifact, plan: Plan, out: Path, report: Report) -> Artifact:
    """Quantize ``parent`` by ``plan`` into the folder ``out``.

    Args:
        parent: An opened artifact.
        plan: Recipe, audio and options.
        out: The new folder, which must not exist.
        report: Shows the steps and the table of the gate.

    Returns:
        The quantized artifact.

    Raises:
        quantize.errors.OutputError: ``out`` exists or cannot be written.
        QuantizationError: ``parent`` is already quantized and the recipe does not allow that.
        QuantizationError: A weight file of ``parent`` has a second hard link.
        QuantizationError: A weight has values beyond the range of float16.
        RecipeError: The recipe does not fit the graphs of ``parent``.
        CalibrationError: Calibration or evaluation audio is missing, or has no utterance in the model's languages.
        OptionError: ``plan`` has both evaluation audio and ``graphs_only``.
        GateError: The result exceeds a bound and ``plan.force`` is not set, or its outputs are not finite.
        AsrError: Audio cannot be decoded, or the evaluation set cannot be loaded.
    """
    refuse_existing(out)
    recipe, manifest = plan.recipe, parent.manifest
    if manifest.quantization and not recipe.from_quantized:
        raise QuantizationError(
            f"{parent.path}: is already quantized ({manifest.quantization.recipe}); quantize its float32 parent"
        )
    _check_hard_links(parent)
    rules_by_role = _assign_rules(parent, recipe)
    audio = find_audio(plan, manifest.name, manifest.languages)
    report.expect(3 + 2 * len(rules_by_role) + 2 * bool(audio.evaluation))
    with appearing(out) as folder:
        reference = run_parent(parent, audio, report)
        results: dict[str, QuantizedGraph] = {}
        expected: list[gate.Expected] = []
        for role, rules in rules_by_role.items():
            with report.step(f"{role}: running the parent"):
                statistics, outputs = _run_graph(parent, role, rules, reference, recipe)
            expected += outputs
            results[role] = _quantize_graph(parent, role, rules, statistics, reference, folder, report, recipe)
            gc.collect()  # graphs hold gigabytes in reference cycles
        _copy_other_files(parent, folder)
        name = f"{manifest.name}-{recipe.name}"
        child = msgspec.structs.replace(
            manifest,
            name=name,
            graphs={role: results[role].spec for role in manifest.graphs},
            files=hash_files(folder, report),
            parity={},
            tools=manifest.tools
            | {"asr-deploy": __version__, "onnx-ir": ir.__version__, "onnxruntime": onnxruntime.__version__},
        )
        quantized = Artifact(folder, child)
        with report.step("comparing the graphs with the parent's"):
            errors, same_choices = gate.compare_graphs(quantized, expected)
        texts = _compare_texts(quantized, reference, report)
        measured = gate.record(
            audio.evaluation_name,
            recipe.bounds,
            errors,
            same_choices,
            texts,
            (parent.size, quantized.size),
            force=plan.force,
        )
        add_quantization_note(folder, manifest.name, name, recipe.name, measured)
        if CARD in child.files:
            child = msgspec.structs.replace(child, files=child.files | {CARD: file_spec(folder / CARD)})
        quantization = Quantization(
            recipe=recipe.name,
            settings=recipe.settings(),
            parent=sha256_file(parent.path / MANIFEST),
            calibration=audio.calibration_name,
            graphs={role: result.summary for role, result in results.items()},
            before=manifest.quantization,
            gate=msgspec.structs.replace(measured, bytes=Artifact(folder, child).size),  # with the card's note
        )
        report.console.print(gate.render(quantization))
        _check_gate(quantization, recipe)
        child = msgspec.structs.replace(child, quantization=quantization)
        (folder / MANIFEST).write_bytes(encode_manifest(child))
        open_artifact(folder)
    return Artifact(out, child)


def _check_hard_links(artifact: Artifact) -> None:
    """Refuse weight files with a second hard link before the work begins, since onnx-ir refuses to read them."""
    for graph in artifact.manifest.graphs.values():
        if graph.data and (artifact.path / graph.data).stat().st_nlink > 1:
            raise QuantizationError(
                f"{artifact.path / graph.data}: has another hard link, and onnx-ir does not read such files; "
                "quantize a copy of the folder"
            )


def _assign_rules(parent: Artifact, recipe: Recipe) -> dict[str, dict[str, AnyRule]]:
    """Return the rule of each node by graph role and node name; all roles are keys."""
    if unknown := set(recipe.bounds.relative_error) - {"*", *parent.manifest.graphs}:
        raise RecipeError(
            f"recipe {recipe.name!r}: bounds.relative_error names {', '.join(sorted(unknown))}, "
            f"but the graphs are {', '.join(parent.manifest.graphs)}"
        )
    if unbounded := [role for role in parent.manifest.graphs if math.isinf(recipe.bounds.relative(role))]:
        raise RecipeError(
            f"recipe {recipe.name!r}: bounds.relative_error has no bound for {', '.join(unbounded)}; add one or set '*'"
        )
    graphs = {role: load_graph(parent.graph_path(role)).graph for role in parent.manifest.graphs}
    caches = sum(1 for graph in graphs.values() for _ in cache.find_attention(graph))
    if recipe.cache and not recipe.cache.optional and not caches:
        raise RecipeError(
            f"recipe {recipe.name!r}: no graph of {parent.manifest.name!r} has a cache; remove [cache] or set "
            "optional = true in it"
        )
    rules: dict[str, dict[str, AnyRule]] = {role: {} for role in graphs}
    for (role, node), rule in assign(recipe, candidates(graphs, recipe)).items():
        rules[role][node] = rule
    return rules


def candidates(graphs: Mapping[str, ir.Graph], recipe: Recipe) -> list[Candidate]:
    """Return the nodes to which the rules of ``recipe`` are matched.

    They are all nodes if the recipe has a ``fp16`` rule, otherwise only products.

    Args:
        graphs: Graphs by role.
        recipe: The recipe.
    """
    all_nodes = any(isinstance(rule, Float16) for rule in recipe.rules)
    products = {role: find_products(graph) for role, graph in graphs.items()}
    sizes = {role: sum({p.weight.name: p.size for p in of_role}.values()) for role, of_role in products.items()}
    total = max(sum(sizes.values()), 1)
    nodes = []
    for role, graph in graphs.items():
        kinds = find_node_kinds(graph)
        selected = list(graph) if all_nodes else [product.node for product in products[role]]
        share, cross = sizes[role] / total, has_cross_attention(graph)
        nodes += [Candidate(role, node.name or "", node.op_type, kinds[node], share, cross) for node in selected]
    return nodes


def find_audio(plan: Plan, model: str, languages: Sequence[Language] = ()) -> Audio:
    """Find the audio for calibration and for the gate. Call it before long computations.

    Args:
        plan: Recipe and audio folders.
        model: Name of the model.
        languages: Languages of the model, if known; utterances in other languages are left out.

    Raises:
        RecipeError: ``plan.calibration`` is set but the recipe needs no calibration.
        OptionError: ``plan`` has both evaluation audio and ``graphs_only``.
        CalibrationError: Audio is missing, or has no utterance in the model's languages.
        AsrError: The evaluation set cannot be loaded, or a package for evaluation is not installed.
    """
    if plan.calibration and not plan.recipe.needs_calibration:
        raise RecipeError(f"recipe {plan.recipe.name!r} needs no calibration; remove --calibration")
    if plan.evaluation and plan.graphs_only:
        raise OptionError("--eval and --no-eval exclude one another; give one of them")
    calibrated = plan.recipe.needs_calibration
    clips, name = calibration_audio(plan.calibration, model, languages) if calibrated else ([], None)
    if plan.graphs_only:
        return Audio(clips, name, [], "graphs alone: --no-eval was given")
    utterances, evaluation_name = evaluation_audio(plan.evaluation, model, languages)
    if utterances:
        check_packages()
    return Audio(clips, name, utterances, evaluation_name)


def _run_graph(
    parent: Artifact, role: str, rules: dict[str, AnyRule], reference: ParentRun, recipe: Recipe
) -> tuple[dict[str, ActivationStatistics], list[gate.Expected]]:
    """Return calibration statistics of a graph's products and cache, and its outputs for the probes of the gate."""
    path = parent.graph_path(role)
    graph = load_graph(path).graph
    products = [product for product in find_products(graph) if product.name in rules]
    cache_taps = cache.taps(graph) if recipe.cache else []
    calibrated = recipe.needs_calibration and (any(product.operator != "Gather" for product in products) or cache_taps)
    probes = [probe for probe in reference.calibration if probe.role == role] if calibrated else []
    calibration = Calibration(products, len(probes), cache_taps)
    instrumented = InstrumentedGraph(path, calibration.taps if probes else [])
    for probe in probes:
        calibration.add(instrumented.run(probe, calibration.taps))
    expected = [
        gate.Expected(probe, instrumented.run(probe, probe.outputs)) for probe in reference.gate if probe.role == role
    ]
    return calibration.finish() if probes else {}, expected


def _quantize_graph(
    parent: Artifact,
    role: str,
    rules: dict[str, AnyRule],
    statistics: dict[str, ActivationStatistics],
    reference: ParentRun,
    folder: Path,
    report: Report,
    recipe: Recipe,
) -> QuantizedGraph:
    path = parent.graph_path(role)
    graph = load_graph(path).graph
    weight_count = len({product.weight.name for product in find_products(graph)})
    cached = recipe.cache is not None and any(True for _ in cache.find_attention(graph))
    measured_count = sum(isinstance(rule, WeightOnly) and rule.sensitive is not None for rule in rules.values())
    # The smallest is enough for sensitivities, each of which takes a run of the graph.
    probe = min((probe for probe in reference.calibration if probe.role == role), key=lambda p: p.rows, default=None)
    with report.counted(f"{role}: quantizing", weight_count + measured_count, "weights") as advance:
        return quantize_graph(path, folder, rules, statistics, probe, lambda: advance(1), cached=cached)


def _copy_other_files(parent: Artifact, folder: Path) -> None:
    """Copy the files of ``parent`` that are not graphs, such as the tokenizer."""
    graphs = {file for graph in parent.manifest.graphs.values() for file in (graph.file, graph.data) if file}
    for name in parent.manifest.files:
        if name not in graphs:
            shutil.copyfile(parent.path / name, folder / name)


def _compare_texts(quantized: Artifact, reference: ParentRun, report: Report) -> gate.TextResults | None:
    if reference.evaluation is None:
        return None
    transcriber = Transcriber(quantized, EngineOptions())
    run = transcribe(transcriber, reference.evaluation.utterances, "evaluating the result", report)
    return gate.compare_runs(reference.evaluation, run)


def _check_gate(quantization: Quantization, recipe: Recipe) -> None:
    result = quantization.gate
    if not all(math.isfinite(error) for error in result.relative_error.values()):
        raise GateError(
            f"recipe {recipe.name!r}: outputs of a graph are not finite (NaN or infinity); nothing was kept"
        )
    if result.exceeded and not result.forced:
        raise GateError(
            f"recipe {recipe.name!r}: {'; '.join(result.exceeded)}; nothing was kept (use --force to keep the result)"
        )
