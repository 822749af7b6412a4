"""What is asked of a model beside what it can do: the one place that refuses, for library, command line and server.

Nothing is ever ignored: what a model cannot honour raises :class:`runtime.errors.CapabilityError`, whose sentence says
what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

import msgspec

from runtime.artifact import Language, Manifest
from runtime.engine import Capabilities, SegmentOptions, Task
from runtime.errors import CapabilityError, OptionError
from runtime.families import FAMILIES, declared, families_that


class _Refusal(msgspec.Struct, frozen=True):
    """How it is said that a capability is missing; ``option`` is what asked for it, in the library's words."""

    option: str
    asked: str
    cannot: str
    instead: str


# By the names of the capabilities that something can be asked for with. `language_detection` is what comes unasked.
_REFUSALS = {
    "context": _Refusal("context", "a context was given", "cannot use one", "leave it out"),
    "language": _Refusal("language", "a language was given", "cannot be told one", "leave it out: it is found without"),
    "words": _Refusal("words", "times of words were asked for", "cannot tell them", "ask for those of segments"),
    "timestamps": _Refusal(
        "timestamps", "timestamps were asked for", "cannot time the parts of a text", "leave them out"
    ),
    "translation": _Refusal("task", "a translation was asked for", "can only write down what was said", "leave it out"),
    "long_form": _Refusal(
        "long_form",
        "the long form was asked for",
        "cannot divide long audio by rules of their own",
        "leave it out: any audio is cut at its pauses",
    ),
    "forcing": _Refusal(
        "ignore_stop",
        "a text of a forced length was asked for",
        "cannot write on when the audio ends",
        "leave it out: the time that they take does not depend on the text",
    ),
}


def require(wanted: Iterable[str], can: Capabilities, family: str) -> None:
    """Refuse what a model of ``family`` cannot do; ``wanted`` are names of capabilities.

    Raises:
        CapabilityError: of the first that is missing.
    """
    for name in wanted:
        if getattr(can, name):
            continue
        said = _REFUSALS[name]
        others = family in FAMILIES and getattr(declared(family), name)
        who = f"this model of the family {family!r}" if others else f"models of the family {family!r}"
        able = [each for each in families_that(name) if each != family]
        also = f"; {_listed(able)} models can" if able else ""
        raise CapabilityError(f"{said.asked}, but {who} {said.cannot}; {said.instead}{also}", said.option)


def check_request(
    manifest: Manifest,
    can: Capabilities,
    *,
    language: str | None = None,
    context: str = "",
    timestamps: bool = False,
    task: Task = "transcribe",
    long_form: bool = False,
    words: bool = False,
    forcing: bool = False,
) -> str | None:
    """Refuse what a model cannot do, before any work; the language's English name, None where it is to be found.

    Raises:
        CapabilityError: what is asked for cannot be done by this model.
        OptionError: a language that it does not know.
    """
    asked = {
        "context": bool(context),
        "timestamps": timestamps,
        "translation": task == "translate",
        "long_form": long_form,
        "words": words,
        "forcing": forcing,
    }
    require((name for name, wanted in asked.items() if wanted), can, manifest.family)
    return _language(language, can, manifest)


def check_options(options: SegmentOptions, can: Capabilities, manifest: Manifest) -> None:
    """The same of what is asked of a segment, for engines: a language is given by its name as the manifest has it.

    Raises:
        CapabilityError: what is asked for cannot be done by this model.
        OptionError: a language that it does not know.
    """
    check_request(
        manifest,
        can,
        language=options.language,
        context=options.context,
        timestamps=options.timestamps,
        task=options.task,
        forcing=options.ignore_stop or options.repetition_penalty != 1.0,
    )


def _language(language: str | None, can: Capabilities, manifest: Manifest) -> str | None:
    """English name of a language given by name or code; None of None or ``auto``."""
    wanted = (language or "auto").strip().lower()
    if wanted == "auto":
        return None
    known = manifest.languages
    named = next((entry for entry in known if wanted in (entry.name.lower(), entry.code.lower())), None)
    if can.language and named is not None:
        return named.name
    if len(known) == 1:
        only = _spelled(known[0])
        given = only if named else repr(language)
        alone = "knows it alone and cannot be told one" if named else f"knows {only} alone"
        raise CapabilityError(f"the language {given} was given, but this model {alone}; leave it out", "language")
    require(["language"], can, manifest.family)
    spellings = {entry.name.lower(): entry for entry in known} | {entry.code.lower(): entry for entry in known}
    near = [spellings[key] for key in difflib.get_close_matches(wanted, spellings, n=3, cutoff=0.6)]
    listed = ", ".join(dict.fromkeys(_spelled(entry) for entry in near or known))
    raise OptionError(f"unknown language {language!r}; {'did you mean' if near else 'this model knows'} {listed}")


def _spelled(language: Language) -> str:
    return f"{language.name} ({language.code})"


def _listed(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
