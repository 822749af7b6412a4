"""Error rates of all recipes on 300 held-out utterances: of the small checkpoint and of its twin with outliers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from benchmarks.artifacts import FLOAT, RECIPES, exported, quantized, run
from benchmarks.per_tensor import per_tensor
from runtime import Transcriber
from runtime.evaluation import Utterance, load_utterances, recognize, score
from runtime.model.artifact import open_artifact
from runtime.results import Transcript

log = logging.getLogger("benchmarks")

PER_TENSOR = "per-tensor"


def measure(work: Path) -> dict[str, Any]:
    """Return by model and recipe: error rates by language, share with float32's tokens, relative error."""
    held_out, twin = work / "held-out", work / "twin" / "checkpoint"
    if not held_out.exists():
        run("tools.tiny", "held-out", "--out", held_out)
    if not twin.exists():
        run("tools.tiny", "twin", "--out", twin)
    utterances = load_utterances(held_out)
    results: dict[str, Any] = {}
    for model, checkpoint in (("small", None), ("twin", twin)):
        parent = exported("qwen3-asr-tiny", work / model, checkpoint)
        rows = results[model] = {}
        reference: list[list[list[int]]] = []
        for recipe in (FLOAT, PER_TENSOR, *RECIPES):
            transcripts, row = _measure_recipe(parent, recipe, utterances)
            tokens = [[segment.tokens for segment in transcript.segments] for transcript in transcripts]
            reference = reference or tokens
            row["identical"] = sum(a == b for a, b in zip(tokens, reference, strict=True)) / len(tokens)
            rows[recipe] = row
            log.info("%s, %s: %s", model, recipe, row)
    return results


def _measure_recipe(parent: Path, recipe: str, utterances: list[Utterance]) -> tuple[list[Transcript], dict[str, Any]]:
    if recipe == FLOAT:
        path = parent
    elif recipe == PER_TENSOR:
        path = parent.parent / PER_TENSOR
        if not path.exists():
            per_tensor(open_artifact(parent), path)
    else:
        path, _ = quantized(parent, recipe)
    transcriber = Transcriber.from_artifact(path)
    transcripts = recognize(transcriber, utterances)
    scores = score(utterances, [transcript.text for transcript in transcripts])
    quantization = transcriber.artifact.manifest.quantization
    return transcripts, {
        "bytes": transcriber.artifact.size,
        "rates": {each.language: each.rate for each in scores},
        "relative_error": quantization.gate.relative_error if quantization else {},
        "fallbacks": sum(len(graph.fallbacks) for graph in quantization.graphs.values()) if quantization else 0,
    }
