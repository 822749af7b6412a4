"""The corpora that every small checkpoint is trained on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from tools.tiny.dataset import Corpus, generate
from tools.tiny.loop import Plan

log = logging.getLogger("tiny")

TRAIN_SEED = 1


@dataclass(frozen=True, slots=True)
class Phase:
    """A corpus, and the plan by which the small Qwen3-ASR is trained on it after the phase before."""

    name: str
    utterances: int
    seed: int
    joined: float
    plan: Plan


# Single sentences first, then mostly several joined ones: a single phase left the error rate on those at 20 %.
PHASES = (
    Phase("sentences", 36_000, TRAIN_SEED, 0.16, Plan(steps=6_000)),
    Phase("passages", 16_000, 2, 0.6, Plan(steps=1_600, peak=1e-3, warmup=100, seed=8)),
)


def prepared(work: Path) -> list[Corpus]:
    """Return the corpora of :data:`PHASES` in ``work``, generated if they do not exist."""
    corpora = []
    for phase in PHASES:
        if not (work / phase.name / "index.json").exists():
            log.info("%s: generating %d utterances", phase.name, phase.utterances)
            generate(work / phase.name, phase.utterances, phase.seed, joined=phase.joined)
        corpora.append(Corpus(work / phase.name))
    return corpora
