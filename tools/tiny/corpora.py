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
    """A corpus and the plan by which the small Qwen3-ASR is trained on it, from where the phase before ended."""

    name: str
    utterances: int
    seed: int
    joined: float
    plan: Plan


# One sentence at a time is learned first; then mostly several, which one phase alone left at 20 % errors.
PHASES = (
    Phase("sentences", 36_000, TRAIN_SEED, 0.16, Plan(steps=6_000)),
    Phase("passages", 16_000, 2, 0.6, Plan(steps=1_600, peak=1e-3, warmup=100, seed=8)),
)


def prepared(work: Path) -> list[Corpus]:
    """The corpora of :data:`PHASES` below ``work``, generated where they are not there yet."""
    found = []
    for phase in PHASES:
        if not (work / phase.name / "index.json").exists():
            log.info("%s: generating %d utterances", phase.name, phase.utterances)
            generate(work / phase.name, phase.utterances, phase.seed, joined=phase.joined)
        found.append(Corpus(work / phase.name))
    return found
