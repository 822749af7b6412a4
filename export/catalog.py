"""List of the models that can be exported by name, as text, JSON or Markdown tables."""

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
from runtime.model.manifest import MANIFEST, read_manifest

# Location of measured artifact sizes: a results file in docs/, and the keys that lead to its dictionary of recipes.
# Models without an entry have no sizes in the list.
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
# Models whose sizes come from the manifest of the tracked artifact in artifacts/, by name: that artifact's folder.
TRACKED = {"whisper-base": "whisper-base-int8"}
_PRECISIONS = ("float32", "int8", "int4")
_REVISION = 12  # characters of a commit that are shown


class Entry(msgspec.Struct, frozen=True):
    """One model of the list.

    ``capabilities`` are those of its family. ``bytes`` are the sizes of its artifacts by recipe, empty if not measured.
    Other fields are those of :class:`export.checkpoints.Checkpoint`.
    """

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
    """All models, and the recipes that each can be quantized with."""

    models: list[Entry]
    recipes: list[str]


def catalog(docs: Path = REPOSITORY / "docs") -> Catalog:
    """Build the catalog, with artifact sizes from the results in ``docs`` and from ``artifacts`` beside it.

    An installed package has neither.
    """
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
    """Return the sizes of a model's artifacts in bytes by recipe; empty if there are none."""
    manifest = docs.parent / "artifacts" / TRACKED[name] / MANIFEST if name in TRACKED else None
    if manifest and manifest.is_file():
        quantization = read_manifest(manifest).quantization
        assert quantization, f"{manifest}: the tracked artifact is quantized"
        return {"float32": quantization.gate.parent_bytes, quantization.recipe: quantization.gate.bytes}
    file, *keys = MEASURED.get(name, ("",))
    if not file or not (docs / file).is_file():
        return {}
    recipes = _results(docs / file)
    for key in keys:
        recipes = recipes.get(key, {})
    return {each: recipes[each]["bytes"] for each in ("float32", *shipped()) if "bytes" in recipes.get(each, {})}


@cache
def _results(path: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return results


def as_text(listing: Catalog) -> str:
    """Format the catalog as text: a table of models and one of their families' capabilities."""
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
        for model in listing.models
    ]
    capabilities = {model.family: model.capabilities for model in listing.models}
    families = [(family, ", ".join(abilities(each)) or "-") for family, each in capabilities.items()]
    return "\n".join(
        [
            in_columns(rows),
            "",
            in_columns([*families, ("every family", EVERY_FAMILY)]),
            "",
            f"recipes: {', '.join(listing.recipes)}",
            "other models of these families are named by repo id, such as openai/whisper-small",
        ]
    )


def as_json(listing: Catalog) -> str:
    """Format the catalog as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(listing), indent=2).decode()


def as_markdown(listing: Catalog) -> str:
    """Format the catalog as two Markdown tables: models with their sizes, and capabilities of their families."""
    rows = [("name", "family", "parameters", "languages", "licence", *(f"{each}, MB" for each in _PRECISIONS))]
    for model in listing.models:
        megabytes = [f"{size / 1e6:.0f}" if (size := model.bytes.get(each)) else "" for each in _PRECISIONS]
        note = f" ({model.note})" if model.note else ""
        rows.append(
            (
                f"`{model.name}`{note}",
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
    return f"{_table(rows)}\n\n{_table(families)}\n"


def _table(rows: list[tuple[str, ...]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


def _parameters(model: Entry) -> str:
    return rounded(model.parameters) if model.parameters else "?"


def _languages(model: Entry) -> str:
    return f"{len(model.languages)}" if len(model.languages) > 3 else ", ".join(model.languages)


def _source(model: Entry) -> str:
    if model.bundled:
        return "bundled"
    return f"{model.repo} at {model.revision[:_REVISION]}" if model.revision else f"{model.repo}, needs --revision"
