"""Divide the real recordings into a bundled subset and the rest: ``python -m tools.real_speech FOLDER``.

``FOLDER`` has an ``index.json`` with ``file``, ``language`` (ISO 639 code) and ``text`` for each recording. The subset
goes to ``tests/data/real`` and is part of the wheel; the rest goes to ``benchmarks/data/real``. Each language's
recordings are sorted by length, and the middle ones of twelve equal parts are bundled, so that short and long ones are
there alike. Every third of these twelve is for calibration, the others are for evaluation.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import soundfile
import typer

from runtime.evaluation.languages import language_name

ROOT = Path(__file__).resolve().parent.parent
BUNDLED, REST = ROOT / "tests" / "data" / "real", ROOT / "benchmarks" / "data" / "real"
#: Bundled recordings of each language.
EACH = 12


class Rights(NamedTuple):
    """Author and licence of a language's recordings."""

    author: str
    years: str
    licence: str


_BY, _BY_SA = "CC-BY-3.0", "CC-BY-SA-3.0"
RIGHTS = {
    "English": Rights("Allison Smith", "2003-2010", _BY_SA),
    "French": Rights("June Wallack", "2006-2008", _BY_SA),
    "Italian": Rights("Carlo Flora", "2012", _BY),
    "Russian": Rights("Maxim Topal", "2010", _BY),
    "Spanish": Rights("Allison Smith", "2003-2010", _BY_SA),
}

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def bundled(lengths: Sequence[tuple[float, str]]) -> dict[str, str]:
    """Choose the bundled recordings of one language.

    Args:
        lengths: Length in seconds and file name of every recording of the language, at least ``EACH``.

    Returns:
        ``calibration`` or ``evaluation`` by file name, for ``EACH`` recordings.
    """
    ordered = sorted(lengths)
    chosen = [ordered[(2 * part + 1) * len(ordered) // (2 * EACH)][1] for part in range(EACH)]
    return {name: "calibration" if part % 3 == 1 else "evaluation" for part, name in enumerate(chosen)}


def entries(folder: Path) -> list[dict[str, Any]]:
    """Describe the recordings of ``folder`` for an index, sorted by file name."""
    described = []
    for entry in json.loads((folder / "index.json").read_text(encoding="utf-8")):
        path = folder / entry["file"]
        language = language_name(entry["language"])
        if language not in RIGHTS:
            raise typer.BadParameter(f"{path}: no author is known for the language {entry['language']!r}")
        described.append(
            {
                "file": entry["file"],
                "language": language,
                "text": entry["text"],
                "seconds": round(soundfile.info(path).duration, 3),
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
        )
    return sorted(described, key=lambda entry: str(entry["file"]))


def splits(described: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return ``calibration`` or ``evaluation`` by file name for the bundled ones of all recordings."""
    result: dict[str, str] = {}
    for language in RIGHTS:
        result |= bundled([(entry["seconds"], entry["file"]) for entry in described if entry["language"] == language])
    return result


@app.command()
def main(
    folder: Annotated[Path, typer.Argument(help="Folder of all recordings with index.json.")],
) -> None:
    """Write both folders anew. LICENSES/README.md in them is kept."""
    described = entries(folder)
    split = splits(described)
    for out, chosen in (
        (BUNDLED, [{**entry, "split": split[entry["file"]]} for entry in described if entry["file"] in split]),
        (REST, [entry for entry in described if entry["file"] not in split]),
    ):
        out.mkdir(parents=True, exist_ok=True)
        for old in out.glob("*.opus"):
            old.unlink()
        for entry in chosen:
            shutil.copyfile(folder / entry["file"], out / entry["file"])
        lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in chosen)
        (out / "index.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    app()
