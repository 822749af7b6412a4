"""What a model can do, and the one check that refuses what it cannot.

A request for something a model cannot do raises :class:`runtime.errors.CapabilityError`; nothing is ignored. The
library, the command line and the server all call :func:`check_request`.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable, Sequence

import msgspec

from runtime.errors import CapabilityError, OptionError
from runtime.model.languages import KnownLanguage, find_language, related_languages
from runtime.model.manifest import Language, Manifest
from runtime.results import Task

log = logging.getLogger(__name__)

FamiliesThat = Callable[[str], Sequence[str]]
"""Name of a capability → families that declare it: :func:`runtime.families.families_that`."""


class Capabilities(msgspec.Struct, frozen=True):
    """What one model can do, or any model of a family.

    Every engine can take audio of any length, decode many segments in rows, serve live streams and bound the number of
    tokens, so these have no flag.

    - ``context``: hot words or free text guide spelling.
    - ``language``: the caller can set the language. A model with a single language does not need it.
    - ``language_detection``: the model reports the language it heard.
    - ``words``: every transcript has word times.
    - ``timestamps``: the model can time parts of its text; each part becomes a segment.
    - ``translation``: the model can write English for speech in other languages.
    - ``long_form``: the model can decide where each of its windows ends and the next begins.
    - ``forcing``: the decoder can continue a given text. Needed to keep the stable text of a stream, to force a text
      length, and to penalize repetitions.
    """

    context: bool
    language: bool
    language_detection: bool
    words: bool = False
    timestamps: bool = False
    translation: bool = False
    long_form: bool = False
    forcing: bool = False


class _Refusal(msgspec.Struct, frozen=True):
    """Parts of the error message for a missing capability; ``option`` is the library's name of the option."""

    option: str
    requested: str
    cannot: str
    remedy: str


# By capability. `language_detection` is missing: nothing requests it.
_REFUSALS = {
    "context": _Refusal("context", "a context was given", "cannot use one", "leave it out"),
    "language": _Refusal(
        "language", "a language was given", "do not take one", "leave it out: the model finds it by itself"
    ),
    "words": _Refusal("words", "word times were requested", "have none", "request segment times"),
    "timestamps": _Refusal("timestamps", "timestamps were requested", "cannot time parts of a text", "leave them out"),
    "translation": _Refusal("task", "a translation was requested", "cannot translate", "leave it out"),
    "long_form": _Refusal(
        "long_form",
        "long form was requested",
        "have no long-form decoding",
        "leave it out: audio of any length is cut at its pauses",
    ),
    "forcing": _Refusal(
        "ignore_stop",
        "a forced text length was requested",
        "cannot decode beyond the end of the audio",
        "leave it out: decoding time does not depend on the text",
    ),
}


def check_capabilities(
    requested: Iterable[str], capabilities: Capabilities, family: str, families_that: FamiliesThat
) -> None:
    """Refuse the first of the ``requested`` capabilities that a model of ``family`` lacks.

    Raises:
        CapabilityError: a capability is missing; the message names families that have it.
    """
    for name in requested:
        if getattr(capabilities, name):
            continue
        refusal = _REFUSALS[name]
        able = list(families_that(name))
        subject = f"models of the family {family!r}"
        if family in able:  # other models of the family can
            subject = f"models like this one of the family {family!r}"
        others = [each for each in able if each != family]
        hint = f"; {_enumerate(others)} models can" if others else ""
        raise CapabilityError(
            f"{refusal.requested}, but {subject} {refusal.cannot}; {refusal.remedy}{hint}", refusal.option
        )


def check_request(
    manifest: Manifest,
    capabilities: Capabilities,
    families_that: FamiliesThat,
    *,
    language: str | None = None,
    context: str = "",
    timestamps: bool = False,
    task: Task = "transcribe",
    long_form: bool = False,
    words: bool = False,
    forcing: bool = False,
) -> str | None:
    """Refuse a request that the model cannot fulfil, before any work.

    Returns:
        The language's English name as the manifest has it; None to detect it.

    Raises:
        CapabilityError: the model cannot do something that was requested.
        OptionError: a language that the model does not know.
        OptionError: the context has lone surrogates, as bytes of the command line that are not UTF-8 become.
    """
    requested = {
        "context": bool(context),
        "timestamps": timestamps,
        "translation": task == "translate",
        "long_form": long_form,
        "words": words,
        "forcing": forcing,
    }
    if not _is_text(context):
        raise OptionError("the context is not valid UTF-8; correct its encoding", "context")
    check_capabilities(
        (name for name, wanted in requested.items() if wanted), capabilities, manifest.family, families_that
    )
    return _resolve_language(language, capabilities, manifest, families_that)


def _is_text(context: str) -> bool:
    """Return whether UTF-8 can encode the text."""
    try:
        context.encode()
    except UnicodeEncodeError:
        return False
    return True


def _resolve_language(
    language: str | None, capabilities: Capabilities, manifest: Manifest, families_that: FamiliesThat
) -> str | None:
    """Return the manifest's English name of a language given by name, code or locale; None for None or ``auto``."""
    wanted = (language or "auto").strip().lower()
    if wanted == "auto":
        return None
    known = manifest.languages
    named = find_in_manifest(wanted, manifest)
    if capabilities.language and named is not None:
        return named.name
    if len(known) == 1:
        given = _label(known[0]) if named else repr(language)
        fact = "takes no language: it has this one only" if named else f"has {_label(known[0])} only"
        raise CapabilityError(f"the language {given} was given, but this model {fact}; leave it out", "language")
    check_capabilities(["language"], capabilities, manifest.family, families_that)
    near = _similar(wanted, known)
    listed = ", ".join(_label(entry) for entry in near or known)
    question = "did you mean" if near else "this model knows"
    found = find_language(wanted)
    fact = f"this model does not know {found.language.name}" if found else f"unknown language {language!r}"
    raise OptionError(f"{fact}; {question} {listed}", "language")


def find_in_manifest(text: str, manifest: Manifest) -> Language | None:
    """Return a model's language by its own name or code, or by any spelling of :mod:`runtime.model.languages`."""
    wanted = text.strip().lower()
    for entry in manifest.languages:
        if wanted in (entry.name.lower(), entry.code.lower()):
            return entry
    found = find_language(text)
    if found is None:
        return None
    known = _entry_of(found.language, manifest.languages)
    if known and found.dropped:
        log.debug("language %r: %r is dropped, the model knows %s", text, found.dropped, known.name)
    return known


def _entry_of(language: KnownLanguage, entries: Sequence[Language]) -> Language | None:
    """Return the entry of a language, whose code a model may write in another way (``jw`` for Javanese)."""
    return next((entry for entry in entries if (own := find_language(entry.code)) and own.language == language), None)


def _similar(wanted: str, entries: Sequence[Language]) -> list[Language]:
    """Return the entries that ``wanted`` may mean: by country, variety or words, otherwise by similar letters."""
    related = [entry for language in related_languages(wanted) if (entry := _entry_of(language, entries))]
    if related or find_language(wanted):
        return related
    spellings = {entry.name.lower(): entry for entry in entries} | {entry.code.lower(): entry for entry in entries}
    near = [spellings[key] for key in difflib.get_close_matches(wanted, spellings, n=3, cutoff=0.6)]
    return [entry for index, entry in enumerate(near) if entry not in near[:index]]


def _label(language: Language) -> str:
    return f"{language.name} ({language.code})"


def _enumerate(names: Sequence[str]) -> str:
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last
