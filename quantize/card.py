"""Describe quantization in the model card of an artifact."""

from __future__ import annotations

from pathlib import Path

from runtime.model.manifest import Gate

CARD = "README.md"
_RELATION = "base_model_relation: quantized\n"


def add_quantization_note(folder: Path, parent: str, name: str, recipe: str, gate: Gate) -> None:
    """Add a note about quantization to the model card in ``folder``.

    The parent's text, with its author and licence, is kept. Does nothing when ``folder`` has no card.

    Args:
        folder: Artifact folder with the parent's card.
        parent: Name of the parent artifact, replaced in the card's title.
        name: Name of the quantized artifact.
        recipe: Name of the recipe.
        gate: Comparison with the parent, whose texts and error rates the note has.
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
    card.write_text(text + _accuracy(gate), encoding="utf-8")


def _accuracy(gate: Gate) -> str:
    """Section of the card with texts and error rates beside the parent's; empty if they were not compared."""
    if gate.words_differ is None:
        return ""
    rows = []
    for rate in gate.error_rates:
        interval = ""
        if rate.rise_low is not None and rate.rise_high is not None:
            interval = f"{100 * rate.rise_low:+.2f} to {100 * rate.rise_high:+.2f}"
        rows.append(f"| {rate.language} | {rate.unit} | {rate.parent:.2%} | {rate.quantized:.2%} | {interval} |\n")
    return (
        "\n## Accuracy\n\n"
        f"Compared with the parent on {gate.evaluation}.\n"
        f"The texts differ in {gate.words_differ.summary} of the parent's text.\n"
        "Errors against the reference texts, with the 95 % interval of the rise in points:\n\n"
        f"| language | unit | parent | this model | rise |\n|---|---|---|---|---|\n{''.join(rows)}"
    )
