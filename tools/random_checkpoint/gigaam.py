"""GigaAM v3 in its published layout."""

from __future__ import annotations

from pathlib import Path

from tests.helpers import gigaam_checkpoint


def write(name: str, out: Path) -> None:
    """Write ``gigaam-v3-ctc``, or ``gigaam-v3-e2e-ctc`` with the small SentencePiece model of the tests."""
    gigaam_checkpoint.write("e2e_ctc" if "-e2e-" in name else "ctc", out)
