"""What an artifact's card says of its quantization. The parent's card, with author and licence, stays as it is."""

from __future__ import annotations

from pathlib import Path

CARD = "README.md"
_RELATION = "base_model_relation: quantized\n"


def say_quantized(folder: Path, parent: str, name: str, recipe: str) -> None:
    """Add to the card in ``folder``, if the parent had one, that the graphs of ``parent`` became those of ``name``."""
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
