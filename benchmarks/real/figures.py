"""Figures of a comparison: errors with intervals, words that differ, languages, times and memory."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.real.systems import BASELINE, REFERENCE, System
from benchmarks.real.turns import Recording, Result, Task
from runtime.evaluation import Comparison, bootstrap_interval, compare_texts, metric_language, normalize
from runtime.evaluation.comparison import ALL
from runtime.evaluation.metrics import count_errors

Results = Mapping[tuple[Task, str, str], Result]

# Whisper's window. Longer recordings are cut, by our runtime at a quiet place and for transformers at 30 s.
_WINDOW_SECONDS = 30.0


def figures(systems: Sequence[System], recordings: Sequence[Recording], results: Results) -> dict[str, Any]:
    """Return the figures of all systems by name, each by language and for ``all``.

    Args:
        systems: the systems; the baseline is one of them.
        recordings: the recordings, at least one.
        results: results of every turn, by task, system and recording.

    Raises:
        KeyError: a result is missing.
    """
    groups: dict[str, list[Recording]] = {}
    for recording in recordings:
        groups.setdefault(metric_language(recording.utterance), []).append(recording)
    groups[ALL] = list(recordings)
    texts = {system.name: [results["text", system.name, each.name].text for each in recordings] for system in systems}
    return {
        system.name: {
            "own": system.own,
            "bytes": system.bytes,
            "peak_bytes": max(result.peak_bytes for result in results.values() if result.system == system.name),
            "languages": {
                language: row | _costs(system, groups[language], results)
                for language, row in _accuracy(system, recordings, texts).items()
            },
        }
        for system in systems
    }


def _accuracy(
    system: System, recordings: Sequence[Recording], texts: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Any]]:
    """Return error rate, its rise against the baseline, and differences from other systems' texts, by language."""
    utterances, own = [each.utterance for each in recordings], texts[system.name]
    against = {name: compared(utterances, texts[name], own) for name in {BASELINE, system.own}}
    reference: dict[str, Comparison] = {}
    if REFERENCE in texts:
        short = [index for index, each in enumerate(recordings) if each.seconds <= _WINDOW_SECONDS]
        chosen_texts = ([texts[name][index] for index in short] for name in (REFERENCE, system.name))
        reference = compared([utterances[index] for index in short], *chosen_texts)
    rows = {}
    for language, errors in against[BASELINE].items():
        chosen = [index for index, each in enumerate(utterances) if language in (ALL, metric_language(each))]
        counts = [count_errors(utterances[index].text, own[index], _language(recordings[index])) for index in chosen]
        bounds = bootstrap_interval(
            np.array([each.errors for each in counts], np.int64), np.array([each.units for each in counts], np.int64)
        )
        change = against[system.own][language]
        rows[language] = {
            "rate": errors.rate,
            "interval": [*bounds],
            "rise": errors.rise,
            "rise_interval": [errors.rise_low, errors.rise_high],
            "differ": change.differ,
            "differ_interval": [change.differ_low, change.differ_high],
            "same": change.same,
            "reference": reference[language].differ if language in reference else None,
        }
    return rows


def compared(utterances: Sequence[Any], baseline: Sequence[str], texts: Sequence[str]) -> dict[str, Comparison]:
    """Compare texts with those of another system, by language and for ``all``, which comes last."""
    comparison = compare_texts(utterances, baseline, texts)
    return {each.language: each for each in (*comparison.languages, comparison.overall)}


def _language(recording: Recording) -> str:
    return metric_language(recording.utterance)


def _costs(system: System, group: Sequence[Recording], results: Results) -> dict[str, float | None]:
    """Return total seconds, median ratio to the baseline's seconds, and the share of languages detected right."""
    seconds = [results["text", system.name, each.name].seconds for each in group]
    ratios = [one / results["text", BASELINE, each.name].seconds for one, each in zip(seconds, group, strict=True)]
    right = [results["language", system.name, each.name].language == each.code for each in group if system.detects]
    return {
        "seconds": sum(seconds),
        "ratio": statistics.median(ratios),
        "detected": statistics.mean(right) if right else None,
    }


def data_figures(recordings: Sequence[Recording]) -> dict[str, Any]:
    """Return number, words and seconds of the recordings by language, and in all as ``all``, which comes last."""
    rows: dict[str, Any] = {}
    for recording in recordings:
        words = len(normalize(recording.utterance.text, _language(recording)).split())
        for key in (_language(recording), ALL):
            row = rows.setdefault(key, {"recordings": 0, "words": 0, "seconds": 0.0})
            row["recordings"] += 1
            row["words"] += words
            row["seconds"] += recording.seconds
    rows[ALL] = rows.pop(ALL)
    return rows
