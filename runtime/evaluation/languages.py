"""Names of languages for metrics. A data set may use other names than a model."""

from __future__ import annotations

from runtime.model.languages import find_language


def language_name(language: str) -> str | None:
    """Return the English name of a language; None if it is unknown.

    Args:
        language: name, ISO 639 code or locale (``en-US``, ``cmn_hans_cn``), in any case.
    """
    found = find_language(language)
    return found.language.name if found else None
