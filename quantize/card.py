"""Describe quantization in the model card of an artifact."""

from __future__ import annotations

from pathlib import Path

CARD = "README.md"
_RELATION = "base_model_relation: quantized\n"


def add_quantization_note(folder: Path, parent: str, name: str, recipe: str) -> None:
    """Add a note about quantization to the model card in ``folder``.

    The parent's text, with its author and licence, is kept. Does nothing when ``folder`` has no card.

    Args:
        folder: Artifact folder with the parent's card.
        parent: Name of the parent artifact, replaced in the card's title.
        name: Name of the quantized artifact.
        recipe: Name of the recipe.
    """
    card = folder / CARD
    if not card.is_file():
        return
    text = card.read_text(encoding="utf-8").replace(f"\n# {parent}\n", f"\n# {name}\n", 1)
    if "\nbase_model: " in text and _RELATION not in text:
        text = text.replace("\nlanguage: ", f"\n{_RELATION}language: ", 1)
    text += (
        f"- The graphs were then quantized by the recipe `{recipe}`: numbers have fewer bits, and the output differs.\n"
        "  `manifest.json` has under `quantization` what was done to each graph, and how much that changes.\n"
    )
    card.write_text(text, encoding="utf-8")
