"""Compute word and character error rates with the normalization of published tables.

English is normalized by Whisper's ``EnglishTextNormalizer``, other languages by Whisper's basic rules: lower case;
bracketed text removed; symbols, punctuation and combining marks replaced by spaces. The basic rules are coarse for
scripts that write vowels or tones as combining marks: a Thai tone mark is not counted, and a Hindi word is split at its
vowel signs. They are used unchanged because published tables use them.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.errors import PackageMissingError
from runtime.evaluation.dataset import Utterance
from runtime.evaluation.languages import language_name

Unit = Literal["words", "characters"]

UNKNOWN = "und"  # ISO 639 code of an undetermined language
PACKAGES = {"jiwer": "jiwer", "whisper_normalizer.english": "whisper-normalizer"}  # by their modules
# Languages without spaces between words, whose errors are counted by characters.
_BY_CHARACTERS = frozenset({"Chinese", "Cantonese", "Japanese", "Thai"})
_KANA = re.compile("[\u3041-\u309f\u30a1-\u30fa\u31f0-\u31ff\uff66-\uff9d]")
_HAN = re.compile("[\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
_HANGUL = re.compile("[\u1100-\u11ff\u3131-\u318e\uac00-\ud7af]")
_THAI = re.compile("[\u0e01-\u0e7f]")
# Contractions that the package expands and Whisper does not; it would turn the word "cause" into "because".
_NOT_WHISPERS = (r"\bkinda\b", r"\bsorta\b", r"\bdunno\b", r"\bcause\b")
_RESAMPLES, _SEED, _CONFIDENCE = 1000, 0, 95.0
_INDICES_PER_BLOCK = 2**21  # 16 MB of int64


class Score(msgspec.Struct, frozen=True):
    """Errors in one language.

    Attributes:
        language: English name of the language, or ``und``.
        unit: unit of the counts.
        utterances: number of utterances.
        reference_units: units of all references.
        substitutions: substituted units.
        deletions: deleted units.
        insertions: inserted units.
        rate: (substitutions + deletions + insertions) / reference units, 0 and above; None if there are no units.
        low: lower bound of the 95 % bootstrap interval of ``rate``; None if there are no units.
        high: upper bound of that interval; None if there are no units.
        exact: share of utterances, 0 to 1, whose normalized text equals the normalized reference.
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


class ErrorCounts(NamedTuple):
    """Units of one reference, errors of a text against it, and whether both are equal after normalization."""

    units: int
    substitutions: int
    deletions: int
    insertions: int
    exact: bool

    @property
    def errors(self) -> int:
        """Edit distance."""
        return self.substitutions + self.deletions + self.insertions


def check_packages() -> None:
    """Check that the packages of the extra ``evaluate`` can be imported.

    Raises:
        PackageMissingError: one of them is not installed.
    """
    for module, package in PACKAGES.items():
        try:
            importlib.import_module(module)
        except ImportError:
            raise PackageMissingError(
                f"evaluating needs the package {package!r}, which is not installed: pip install 'asr-deploy[evaluate]'"
            ) from None


def metric_language(utterance: Utterance) -> str:
    """Return the language whose rules score the utterance: its own, else that of its text's script, else ``und``."""
    if utterance.language:
        return language_name(utterance.language) or utterance.language.strip()
    if _KANA.search(utterance.text):
        return "Japanese"
    if _HAN.search(utterance.text) and not _HANGUL.search(utterance.text):
        return "Chinese"
    return "Thai" if _THAI.search(utterance.text) else UNKNOWN


def error_unit(language: str) -> Unit:
    """Return ``characters`` for Chinese, Cantonese, Japanese and Thai, else ``words``."""
    return "characters" if language in _BY_CHARACTERS else "words"


def normalize(text: str, language: str) -> str:
    """Normalize ``text`` by the rules of ``language``, and remove spaces if its unit is characters.

    Raises:
        PackageMissingError: the extra ``evaluate`` is not installed.
    """
    english, basic = _normalizers()
    try:
        normalized = (english if language == "English" else basic)(text)
    except (AssertionError, ValueError):  # a number of more than 4300 digits, which Python does not convert
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


def count_errors(reference: str, hypothesis: str, language: str) -> ErrorCounts:
    """Count the errors of ``hypothesis`` against ``reference``, both normalized by the rules of ``language``.

    Raises:
        PackageMissingError: the extra ``evaluate`` is not installed.
    """
    check_packages()
    import jiwer

    reference, hypothesis = normalize(reference, language), normalize(hypothesis, language)
    align = jiwer.process_words if error_unit(language) == "words" else jiwer.process_characters
    counts = align(reference, hypothesis)
    units = counts.hits + counts.substitutions + counts.deletions
    return ErrorCounts(units, counts.substitutions, counts.deletions, counts.insertions, reference == hypothesis)


def score(utterances: Sequence[Utterance], texts: Sequence[str]) -> list[Score]:
    """Count the errors of ``texts`` against the references of ``utterances``, for each language separately.

    Returns:
        A score for each language, sorted by name.

    Raises:
        PackageMissingError: the extra ``evaluate`` is not installed.
    """
    check_packages()
    rows: dict[str, list[ErrorCounts]] = {}
    for utterance, text in zip(utterances, texts, strict=True):
        language = metric_language(utterance)
        rows.setdefault(language, []).append(count_errors(utterance.text, text, language))
    return [_score(language, np.array(rows[language], np.int64)) for language in sorted(rows)]


def _score(language: str, rows: npt.NDArray[np.int64]) -> Score:
    """Return the score of rows [utterances, 5]: reference units, substitutions, deletions, insertions, exact."""
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
    """Return the 95 % percentile bootstrap interval of sum(errors) / sum(units).

    Utterances are sampled with replacement 1000 times, from a fixed seed. Samples without a reference unit have no rate
    and are left out.

    Args:
        errors: errors of each utterance, int64 [utterances]. For a paired interval of two models' rates they are the
            differences of their errors, which may be negative.
        units: reference units of each utterance, int64 [utterances].

    Returns:
        Lower and upper bound; (None, None) if no sample has a reference unit.
    """
    rng = np.random.default_rng(_SEED)
    count = len(errors)
    block = max(1, _INDICES_PER_BLOCK // count)
    rates = []
    for done in range(0, _RESAMPLES, block):
        indices = rng.integers(0, count, (min(block, _RESAMPLES - done), count))
        sums = units[indices].sum(axis=1)
        rates.append(errors[indices].sum(axis=1)[sums > 0] / sums[sums > 0])
    joined = np.concatenate(rates)
    if not len(joined):
        return None, None
    tail = (100 - _CONFIDENCE) / 2
    low, high = np.percentile(joined, [tail, 100 - tail])
    return float(low), float(high)
