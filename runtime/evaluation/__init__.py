"""Measure error rates of a model on recordings with reference texts.

utterances = load_utterances("LibriSpeech/test-clean")
transcripts = recognize(transcriber, utterances)
for row in score(utterances, [transcript.text for transcript in transcripts]):
    print(row.language, row.unit, row.rate, row.low, row.high)
"""

from __future__ import annotations

from runtime.evaluation.comparison import Comparison, TextComparison, compare_texts, largest_likely_count
from runtime.evaluation.dataset import Utterance, load_utterances
from runtime.evaluation.metrics import (
    Score,
    bootstrap_interval,
    check_packages,
    error_unit,
    metric_language,
    normalize,
    score,
)
from runtime.evaluation.recognition import BaselineComparison, Evaluation, compare, recognize, summarize

__all__ = [
    "BaselineComparison",
    "Comparison",
    "Evaluation",
    "Score",
    "TextComparison",
    "Utterance",
    "bootstrap_interval",
    "check_packages",
    "compare",
    "compare_texts",
    "error_unit",
    "largest_likely_count",
    "load_utterances",
    "metric_language",
    "normalize",
    "recognize",
    "score",
    "summarize",
]
