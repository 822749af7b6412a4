"""Greedy CTC decoding of frames, with the place and the probability of each token.

A frame's class is a token or the blank; a run of one token is that token once, and a blank between two runs keeps them
apart (Graves et al., Connectionist Temporal Classification, 2006, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from runtime.decoding.frames import FrameHypothesis

Floats = npt.NDArray[np.float32]


def greedy_ctc(logits: Floats, blank: int) -> FrameHypothesis:
    """The tokens of one clip: the most probable class of each frame, runs joined, blanks left out.

    A token's frames are those of its run. Its log-probability is that of the run's surest frame: at the edges the model
    passes from one class to another, and says little there about whether it heard the token.

    Args:
        logits: [frames, classes] of valid frames alone, normalized to log-probabilities or not. Of equal ones the first
            counts.
        blank: the class that is no token.
    """
    if not len(logits):
        return FrameHypothesis([], [], [], [])
    best = logits.argmax(axis=1)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(best)) + 1])
    ends = np.append(starts[1:], len(best))
    peaks = np.maximum.reduceat(_log_probabilities(logits, best, blank), starts)
    kept = best[starts] != blank
    return FrameHypothesis(
        tokens=best[starts[kept]].tolist(),
        starts=starts[kept].tolist(),
        ends=ends[kept].tolist(),
        log_probabilities=peaks[kept].tolist(),
    )


def greedy_ctc_rows(logits: Floats, lengths: Sequence[int], blank: int) -> Iterator[FrameHypothesis]:
    """:func:`greedy_ctc` of each clip of a batch: ``logits`` [clips, frames, classes], and their valid frames."""
    for row, length in zip(logits, lengths, strict=True):
        yield greedy_ctc(row[:length], blank)


def _log_probabilities(logits: Floats, best: npt.NDArray[np.intp], blank: int) -> Floats:
    """Log-probability [frames] of each frame's best class; of blank frames, which nobody asks for, minus infinity.

    Most frames are blank, and the vocabulary may be large: that is why they are left out.
    """
    found = np.full(len(best), -np.inf, np.float32)
    frames = np.flatnonzero(best != blank)
    rows = logits[frames]
    peaks = rows[np.arange(len(frames)), best[frames]]
    found[frames] = -np.log(np.exp(rows - peaks[:, None]).sum(axis=1))
    return found
