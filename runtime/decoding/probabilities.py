"""Log-probabilities of chosen tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def log_softmax_at(logits: Floats, best: npt.NDArray[Any], chosen: npt.NDArray[Any] | None = None) -> Floats:
    """Log-softmax of each row of ``logits`` at its chosen entry.

    Args:
        logits: [rows, classes] float32.
        best: index [rows] of each row's largest entry; subtracting it keeps the exponentials finite.
        chosen: index [rows] of the entry to evaluate; ``best`` when None.

    Returns:
        Log-probabilities [rows] float32, at most 0.
    """
    rows = np.arange(len(logits))
    peaks = logits[rows, best]
    totals = np.log(np.exp(logits - peaks[:, None]).sum(axis=1))
    entries = peaks if chosen is None else logits[rows, chosen]
    values: Floats = entries - peaks - totals
    return values
