"""Training loop of all small checkpoints: plan, order of the data, steps, and states on disk.

The order of the data and every augmentation depend on the seed and the step alone, so an interrupted run continues
with the same results.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tools.tiny.dataset import Item

log = logging.getLogger("tiny")


@dataclass(frozen=True, slots=True)
class Plan:
    """Hyperparameters of a training."""

    steps: int
    batch: int = 24
    peak: float = 2e-3
    warmup: int = 250
    weight_decay: float = 0.05
    seed: int = 7


class Source(Protocol):
    """A source of batches."""

    plan: Plan

    def make(self, step: int) -> Any:
        """Return the batch of ``step``; called in another thread."""
        ...


class Order:
    """Order of the data: clips of similar length in one batch, batches shuffled in each epoch."""

    def __init__(self, items: list[Item], plan: Plan) -> None:
        self.items, self.plan = items, plan
        self.per_epoch = len(items) // plan.batch
        self._epoch = (-1, np.zeros((0, 0), np.int64))

    def batch(self, step: int) -> list[Item]:
        """Return the items of the batch of ``step``."""
        epoch, batch = divmod(step, self.per_epoch)
        if self._epoch[0] != epoch:
            rng = np.random.default_rng((self.plan.seed, epoch))
            size = self.plan.batch
            order = rng.permutation(len(self.items))[: self.per_epoch * size]
            for start in range(0, len(order), size * 25):
                pool = order[start : start + size * 25]
                order[start : start + size * 25] = sorted(pool, key=lambda i: self.items[i].count)
            self._epoch = (epoch, rng.permutation(order.reshape(-1, size)))
        return [self.items[index] for index in self._epoch[1][batch]]


def learning_rate(step: int, plan: Plan) -> float:
    """Return the learning rate of ``step``: linear warm-up, then a cosine to 1 % of the peak."""
    if step < plan.warmup:
        return plan.peak * (step + 1) / plan.warmup
    progress = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return plan.peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def train(
    trainee: nn.Module, batches: Source, state: Path, save_every: int = 200
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train by the plan of ``batches``, from ``state`` if it exists.

    Args:
        trainee: a module that returns the terms of the loss by name.
        batches: the source of batches.
        state: file to load from and to save to.
        save_every: steps between saves.

    Yields:
        After each save the number of finished steps, and the means of all terms and the seconds of a step since the
        last save.
    """
    plan = batches.plan
    decay = [p for p in trainee.parameters() if p.ndim >= 2]
    rest = [p for p in trainee.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": plan.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=plan.peak,
        betas=(0.9, 0.98),
    )
    first = 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        trainee.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = int(saved["step"])
    sums: dict[str, float] = {}
    since, began = 0, time.monotonic()
    trainee.train()
    ahead = ThreadPoolExecutor(1)  # prepares the next batch during a step
    following = ahead.submit(batches.make, first)
    for step in range(first, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, plan)
        batch = following.result()
        following = ahead.submit(batches.make, step + 1)
        with torch.autocast("cpu", torch.bfloat16):
            terms: Mapping[str, Tensor] = trainee(batch)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        optimizer.step()
        for name, term in terms.items():
            sums[name] = sums.get(name, 0.0) + term.item()
        since += 1
        done = step + 1
        if done % save_every == 0 or done == plan.steps:
            temporary = state.with_suffix(".tmp")
            torch.save({"model": trainee.state_dict(), "optimizer": optimizer.state_dict(), "step": done}, temporary)
            os.replace(temporary, state)
            means = {name: value / since for name, value in sums.items()}
            yield done, means | {"seconds": (time.monotonic() - began) / since}
            trainee.train()
            sums, since, began = {}, 0, time.monotonic()


def run(trainee: nn.Module, batches: Source, state: Path, save_every: int = 200) -> None:
    """Train to the end of the plan, and log the means after each save."""
    for done, means in train(trainee, batches, state, save_every):
        terms = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
        log.info("%s: step %d of %d: %s", state.stem, done, batches.plan.steps, terms)
