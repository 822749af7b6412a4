"""Word and character error rates, as published tables count them.

English is normalized as Whisper does it (``EnglishTextNormalizer``), everything else by Whisper's basic rules: lower
case, bracketed text dropped, symbols, punctuation and combining marks to spaces. The basic rules are coarse for scripts
that write vowels or tones as combining marks: a Thai tone mark is not counted, and a Hindi word falls apart at its
vowel signs. They are kept as they are because published tables were made with them.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.errors import PackageMissingError
from runtime.evaluation.dataset import Utterance
from runtime.evaluation.languages import LANGUAGES, language_name

Unit = Literal["words", "characters"]

UNKNOWN = "und"  # ISO 639 for a language that nobody said
PACKAGES = {"jiwer": "jiwer", "whisper_normalizer.english": "whisper-normalizer"}  # by the module that is imported
# Written without spaces between words, so counted by characters.
_BY_CHARACTERS = frozenset({"Chinese", "Cantonese", "Japanese", "Thai"})
_KANA = re.compile("[\u3041-\u309f\u30a1-\u30fa\u31f0-\u31ff\uff66-\uff9d]")
_HAN = re.compile("[\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
_HANGUL = re.compile("[\u1100-\u11ff\u3131-\u318e\uac00-\ud7af]")
_THAI = re.compile("[\u0e01-\u0e7f]")
# What the package adds to the contractions that Whisper expands; "cause" would be taken for "because".
_NOT_WHISPERS = (r"\bkinda\b", r"\bsorta\b", r"\bdunno\b", r"\bcause\b")
_RESAMPLES, _SEED, _CONFIDENCE = 1000, 0, 95.0
_DRAWN_AT_ONCE = 2**21  # indices, 16 MB


class Score(msgspec.Struct, frozen=True):
    """Errors in one language.

    ``rate`` is (substitutions + deletions + insertions) / reference units, 0 and up, with the bounds of its 95 %
    bootstrap interval; all three are None where no reference has a unit. ``exact`` is the share of utterances, 0..1,
    whose text equals the reference after normalization.
    """

    language: str
    unit: Unit
    utterances: int
    reference_units: int
    substitutions: int
    deletions: int
    insertions: int
    rate: float | None
    low: float | None
    high: float | None
    exact: float


def check_packages() -> None:
    """Raise :class:`PackageMissingError` unless the packages of the extra ``evaluate`` can be imported."""
    for module, package in PACKAGES.items():
        try:
            importlib.import_module(module)
        except ImportError:
            raise PackageMissingError(
                f"evaluating needs the package {package!r}, which is not installed: pip install 'asr-deploy[evaluate]'"
            ) from None


def metric_language(utterance: Utterance) -> str:
    """English name of the language to score by: the utterance's, else by the script of its text, else ``und``."""
    if utterance.language:
        return language_name(utterance.language) or utterance.language.strip()
    if _KANA.search(utterance.text):
        return LANGUAGES["ja"]
    if _HAN.search(utterance.text) and not _HANGUL.search(utterance.text):
        return LANGUAGES["zh"]
    return LANGUAGES["th"] if _THAI.search(utterance.text) else UNKNOWN


def error_unit(language: str) -> Unit:
    """Characters for Chinese, Cantonese, Japanese and Thai; words otherwise."""
    return "characters" if language in _BY_CHARACTERS else "words"


def normalize(text: str, language: str) -> str:
    """``text`` as it is compared: normalized by the rules of ``language``, without spaces where characters count.

    Raises:
        PackageMissingError: the extra ``evaluate`` is not installed.
    """
    english, basic = _normalizers()
    try:
        normalized = (english if language == "English" else basic)(text)
    except (AssertionError, ValueError):  # a number of over 4300 digits, which Python does not convert
        normalized = basic(text)
    return ("" if error_unit(language) == "characters" else " ").join(normalized.split())


@cache
def _normalizers() -> tuple[Callable[[str], str], Callable[[str], str]]:
    check_packages()
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    english = EnglishTextNormalizer()
    for pattern in _NOT_WHISPERS:
        english.replacers.pop(pattern, None)
    return english, BasicTextNormalizer()


def score(utterances: Sequence[Utterance], texts: Sequence[str]) -> list[Score]:
    """Errors of ``texts`` against the references, one score a language, by name; languages are never merged.

    Raises:
        PackageMissingError: the extra ``evaluate`` is not installed.
    """
    check_packages()
    import jiwer

    rows: dict[str, list[tuple[int, int, int, int, bool]]] = {}
    for utterance, text in zip(utterances, texts, strict=True):
        language = metric_language(utterance)
        reference, hypothesis = normalize(utterance.text, language), normalize(text, language)
        align = jiwer.process_words if error_unit(language) == "words" else jiwer.process_characters
        found = align(reference, hypothesis)
        units = found.hits + found.substitutions + found.deletions
        row = (units, found.substitutions, found.deletions, found.insertions, reference == hypothesis)
        rows.setdefault(language, []).append(row)
    return [_score(language, np.array(rows[language], np.int64)) for language in sorted(rows)]


def _score(language: str, rows: npt.NDArray[np.int64]) -> Score:
    """Of rows [utterances, (reference units, substitutions, deletions, insertions, exact)]."""
    units, substitutions, deletions, insertions, exact = (int(total) for total in rows.sum(axis=0))
    errors = rows[:, 1:4].sum(axis=1)
    low, high = bootstrap_interval(errors, rows[:, 0])
    return Score(
        language=language,
        unit=error_unit(language),
        utterances=len(rows),
        reference_units=units,
        substitutions=substitutions,
        deletions=deletions,
        insertions=insertions,
        rate=int(errors.sum()) / units if units else None,
        low=low,
        high=high,
        exact=exact / len(rows),
    )


def bootstrap_interval(
    errors: npt.NDArray[np.int64], units: npt.NDArray[np.int64]
) -> tuple[float, float] | tuple[None, None]:
    """95 % percentile bootstrap interval of sum(errors) / sum(units), both [utterances].

    Utterances are drawn with replacement 1000 times, from a fixed seed. A draw without a reference unit has no rate and
    is left out; (None, None) when all are.
    """
    rng = np.random.default_rng(_SEED)
    count = len(errors)
    block = max(1, _DRAWN_AT_ONCE // count)
    rates = []
    for done in range(0, _RESAMPLES, block):
        drawn = rng.integers(0, count, (min(block, _RESAMPLES - done), count))
        sums = units[drawn].sum(axis=1)
        rates.append(errors[drawn].sum(axis=1)[sums > 0] / sums[sums > 0])
    joined = np.concatenate(rates)
    if not len(joined):
        return None, None
    tail = (100 - _CONFIDENCE) / 2
    low, high = np.percentile(joined, [tail, 100 - tail])
    return float(low), float(high)
