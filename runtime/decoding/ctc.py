"""Greedy CTC decoding with the frames and the log-probability of each token.

A frame's class is a token or the blank. A run of one token counts once, and a blank between two runs separates them
(Graves et al., Connectionist Temporal Classification, 2006, section 3.1).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runtime.decoding.frames import FrameHypothesis
from runtime.decoding.probabilities import log_softmax_at

Floats = npt.NDArray[np.float32]


def greedy_ctc(logits: Floats, blank: int) -> FrameHypothesis:
    """Decode one clip: take each frame's most probable class, merge runs, drop blanks.

    A token's frames are those of its run, its log-probability is the largest of the run: at the edges of a run the
    model changes from one class to another, which says little about the token.

    Args:
        logits: [frames, classes] float32, valid frames only; logits or log-probabilities. Ties go to the lower class.
        blank: index of the blank class.
    """
    if not len(logits):
        return FrameHypothesis([], [], [], [])
    best = logits.argmax(axis=1)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(best)) + 1])
    ends = np.append(starts[1:], len(best))
    peaks = np.maximum.reduceat(_log_probabilities(logits, best, blank), starts)
    is_token = best[starts] != blank
    return FrameHypothesis(
        tokens=best[starts[is_token]].tolist(),
        starts=starts[is_token].tolist(),
        ends=ends[is_token].tolist(),
        log_probabilities=peaks[is_token].tolist(),
    )


def _log_probabilities(logits: Floats, best: npt.NDArray[np.intp], blank: int) -> Floats:
    """Log-probability [frames] of each frame's best class; -inf for blank frames, whose value is never used.

    Skipping blank frames saves time: they are most frames, and the vocabulary may be large.
    """
    values = np.full(len(best), -np.inf, np.float32)
    frames = np.flatnonzero(best != blank)
    values[frames] = log_softmax_at(logits[frames], best[frames])
    return values
