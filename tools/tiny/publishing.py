"""Folders of small checkpoints: replaced as a whole, with a licence and a model card."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from tools.tiny.dataset import Item
from tools.tiny.synth import RATE, VARIANTS


@contextmanager
def checkpoint_folder(out: Path, licence: Path) -> Iterator[Path]:
    """Yield a hidden folder to write to; with ``licence`` added, it replaces ``out`` at the end."""
    work = out.with_name(f".{out.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    yield work
    shutil.copyfile(licence, work / "LICENSE")
    for path in work.iterdir():
        path.chmod(0o644)  # safetensors creates private files
    shutil.rmtree(out, ignore_errors=True)
    work.rename(out)


def write_card(out: Path, card: str, model: nn.Module, items: Sequence[Item], **values: object) -> None:
    """Write the model card ``README.md``.

    Args:
        out: folder of the checkpoint.
        card: template for :meth:`str.format`, with the fields ``parameters`` (in millions), ``utterances``, ``hours``
            and ``voices`` besides those of ``values``.
        model: the trained model.
        items: utterances that it was trained on.
        values: further fields.
    """
    text = card.format(
        parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        utterances=len(items),
        hours=sum(item.count for item in items) / RATE / 3600,
        voices=len(VARIANTS),
        **values,
    )
    (out / "README.md").write_text(text, encoding="utf-8")
