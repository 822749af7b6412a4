"""Every model with a name: what it is, what it can do, how large it is; as text, as JSON, as tables for a page."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from export.checkpoints import CHECKPOINTS, REPOSITORY, Checkpoint
from export.sizes import rounded
from quantize.recipe import shipped
from runtime.cli.describe import EVERY_FAMILY, LABELS, abilities, in_columns
from runtime.engines.capabilities import Capabilities
from runtime.families import FAMILIES, declared

# Where the benchmarks keep how many bytes a model's artifacts have: a results file of docs/, and the way in it to a
# dictionary of recipes. Sizes that were not measured are not told.
_SMALL, _LARGE = ("families.json", "checkpoints", "results"), ("families.json", "families", "results", "models")
MEASURED = {
    "qwen3-asr-tiny": ("quantization.json", "accuracy", "results", "small"),
    "qwen3-asr-0.6b": ("quantization.json", "speed", "results"),
    "qwen3-asr-1.7b": ("quantization.json", "large", "results"),
    "whisper-turbo-tiny": (*_SMALL, "whisper-turbo-tiny", "recipes"),
    "whisper-large-v3-turbo": (*_LARGE, "whisper-large-v3-turbo", "systems"),
    "parakeet-tdt-tiny": (*_SMALL, "parakeet-tdt-tiny", "recipes"),
    "parakeet-tdt-0.6b-v3": (*_LARGE, "parakeet-tdt-0.6b-v3", "systems"),
    "gigaam-v3-tiny": (*_SMALL, "gigaam-v3-tiny", "recipes"),
    "gigaam-v3-ctc": (*_LARGE, "gigaam-v3-ctc", "systems"),
}
_PRECISIONS = ("float32", "int8", "int4")
_REVISION = 12  # characters of a commit, as many as tell it from all others


class Entry(msgspec.Struct, frozen=True):
    """A model by its name. ``capabilities`` are those of its family, ``bytes`` of its artifacts by recipe."""

    name: str
    family: str
    parameters: int | None
    languages: tuple[str, ...]
    licence: str
    author: str
    repo: str
    revision: str | None
    bundled: bool
    note: str
    capabilities: Capabilities
    bytes: dict[str, int]


class Catalog(msgspec.Struct, frozen=True):
    """All of them, and the recipes that each can be quantized with."""

    models: list[Entry]
    recipes: list[str]


def catalog(docs: Path = REPOSITORY / "docs") -> Catalog:
    """The catalog, with sizes from the results in ``docs`` if there are any: an installed package has none."""
    return Catalog([_entry(checkpoint, docs) for checkpoint in CHECKPOINTS.values()], list(shipped()))


def _entry(checkpoint: Checkpoint, docs: Path) -> Entry:
    return Entry(
        name=checkpoint.name,
        family=checkpoint.family,
        parameters=checkpoint.sizes.parameters if checkpoint.sizes else None,
        languages=checkpoint.languages,
        licence=checkpoint.licence,
        author=checkpoint.author,
        repo=checkpoint.repo,
        revision=checkpoint.revision,
        bundled=checkpoint.bundled is not None,
        note=checkpoint.note,
        capabilities=declared(checkpoint.family),
        bytes=_measured(checkpoint.name, docs),
    )


def _measured(name: str, docs: Path) -> dict[str, int]:
    file, *way = MEASURED.get(name, ("",))
    if not file or not (docs / file).is_file():
        return {}
    found = _results(docs / file)
    for key in way:
        found = found.get(key, {})
    return {recipe: found[recipe]["bytes"] for recipe in ("float32", *shipped()) if "bytes" in found.get(recipe, {})}


@cache
def _results(path: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return results


def as_text(found: Catalog) -> str:
    """A table of names, where each comes from, and what its family can do."""
    rows = [("name", "family", "parameters", "languages", "licence", "from")]
    rows += [
        (
            model.name,
            model.family,
            _parameters(model),
            _languages(model),
            model.licence,
            _source(model) + (f"; {model.note}" if model.note else ""),
        )
        for model in found.models
    ]
    can = {model.family: model.capabilities for model in found.models}
    families = [(family, ", ".join(abilities(each)) or "-") for family, each in can.items()]
    return "\n".join(
        [
            in_columns(rows),
            "",
            in_columns([*families, ("all of them", EVERY_FAMILY)]),
            "",
            f"recipes: {', '.join(found.recipes)}",
            "other models of these families go by their repo ids, such as openai/whisper-small",
        ]
    )


def as_json(found: Catalog) -> str:
    """Everything, for programs."""
    return msgspec.json.format(msgspec.json.encode(found), indent=2).decode()


def as_markdown(found: Catalog) -> str:
    """Two tables: models with their sizes, and what their families can do."""
    models = [("name", "family", "parameters", "languages", "licence", *(f"{each}, MB" for each in _PRECISIONS))]
    for model in found.models:
        megabytes = [f"{size / 1e6:.0f}" if (size := model.bytes.get(each)) else "" for each in _PRECISIONS]
        said = f" ({model.note})" if model.note else ""
        models.append(
            (
                f"`{model.name}`{said}",
                f"`{model.family}`",
                _parameters(model),
                _languages(model),
                model.licence,
                *megabytes,
            )
        )
    families = [("", *(f"`{family}`" for family in FAMILIES))]
    for name, label in LABELS.items():
        families.append((label, *("yes" if getattr(declared(family), name) else "" for family in FAMILIES)))
    return f"{_table(models)}\n\n{_table(families)}\n"


def _table(rows: list[tuple[str, ...]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


def _parameters(model: Entry) -> str:
    return rounded(model.parameters) if model.parameters else "?"


def _languages(model: Entry) -> str:
    return f"{len(model.languages)}" if len(model.languages) > 3 else ", ".join(model.languages)


def _source(model: Entry) -> str:
    if model.bundled:
        return "comes along"
    return f"{model.repo} at {model.revision[:_REVISION]}" if model.revision else f"{model.repo}, give a --revision"
