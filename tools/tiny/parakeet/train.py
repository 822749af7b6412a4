"""Training of the small Parakeet: cross-entropy along the decoder's path, and phonemes on the encoder's output.

Every token has a frame (:mod:`tools.tiny.parakeet.labels`), so the joint network runs on the steps of one path, not on
the whole lattice, at almost no cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from tools.tiny.dataset import Corpus, Item, phonemes_at
from tools.tiny.loop import Order, Plan
from tools.tiny.parakeet.labels import FRAME_SECONDS, token_frames, usual_spelling, walk
from tools.tiny.parakeet.model import MELS, encode, encoded_frames, log_mel, new_model
from tools.tiny.synth import augment, noise_only

LANGUAGES = {"en": "English", "ru": "Russian"}
PLAN = Plan(steps=4_000, batch=16, warmup=300)
# Two batches of the first corpus, of single sentences, then one of the second: about the ratio of their sizes.
TURNS = (0, 0, 1)
NOISE_SHARE = 0.02
STRAY = 0.15
# Share of wrong tokens at the input of the prediction network, so that the model recovers from errors.
WRONG_SHARE = 0.1
DURATION_WEIGHT, PHONEME_WEIGHT = 0.5, 0.6
# A frame of 80 ms is longer than many phonemes, so it has two labels, this far (seconds) from its center.
LABEL_OFFSETS = (-0.02, 0.02)


class Trainee(nn.Module):
    """The model and a temporary phoneme head."""

    def __init__(self, phonemes: int, seed: int = 7) -> None:
        super().__init__()
        self.asr = new_model(seed)
        self.asr.encoder.subsampling.to(memory_format=torch.channels_last)
        self.phoneme_head = nn.Linear(self.asr.config.encoder_config.hidden_size, len(LABEL_OFFSETS) * phonemes)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted terms of the loss: tokens, durations and phonemes."""
        hidden, frames = encode(self.asr.encoder, batch.features, batch.frames)
        valid = torch.arange(hidden.shape[1]) < frames[:, None]
        phonemes = self.phoneme_head(hidden[valid]).reshape(-1, self.phoneme_head.out_features // len(LABEL_OFFSETS))
        with torch.autocast("cpu", enabled=False):
            predicted = self.asr.decoder(batch.tokens)
        joined = self.asr.encoder_projector(hidden[batch.rows, batch.indices]) + predicted[batch.rows, batch.before]
        logits = self.asr.joint.head(F.relu(joined)).float()
        vocabulary = self.asr.config.vocab_size
        return {
            "tokens": F.cross_entropy(logits[:, :vocabulary], batch.right),
            "durations": DURATION_WEIGHT * F.cross_entropy(logits[:, vocabulary:], batch.durations),
            "phonemes": PHONEME_WEIGHT
            * F.cross_entropy(phonemes.float(), batch.phonemes.reshape(-1), ignore_index=-100),
        }


@dataclass(frozen=True, slots=True)
class Batch:
    """Features [B, T, mels], frames [B], phonemes [valid frames, 2], input tokens of the prediction network [B, U] (a
    blank first), and for each step of a path its row, encoder frame, number of tokens before it, token and duration.
    """

    features: Tensor
    frames: Tensor
    phonemes: Tensor
    tokens: Tensor
    rows: Tensor
    indices: Tensor
    before: Tensor
    right: Tensor
    durations: Tensor


class Batches:
    """Batches that depend on the seed and the step alone; ``turns`` are indices of corpora, repeated."""

    def __init__(
        self,
        corpora: Sequence[Corpus],
        turns: Sequence[int],
        tokenizer: Tokenizer,
        phonemes: dict[str, int],
        plan: Plan,
    ) -> None:
        self.corpora, self.turns = corpora, turns
        self.tokenizer, self.phonemes, self.plan = tokenizer, phonemes, plan
        self.orders = [Order([each for each in corpus.items if each.language in LANGUAGES], plan) for corpus in corpora]
        self.blank = tokenizer.get_vocab_size() - 1

    def make(self, step: int) -> Batch:
        """Return the batch of ``step``."""
        rng = np.random.default_rng((self.plan.seed, 1, step))
        clips: list[np.ndarray] = []
        items: list[Item | None] = []
        rounds, turn = divmod(step, len(self.turns))
        index = self.turns[turn]
        # Each corpus gives its batches in order, whatever the number of its turns in a round.
        batch = rounds * self.turns.count(index) + self.turns[:turn].count(index)
        for spoken in self.orders[index].batch(batch):
            quiet = rng.random() < NOISE_SHARE
            clips.append(noise_only(rng) if quiet else _augmented(self.corpora[index].samples(spoken), rng))
            items.append(None if quiet else usual_spelling(spoken))
        features, frames = log_mel(clips)
        if rng.random() < 0.5:
            width = int(rng.integers(1, 9))
            low = int(rng.integers(0, MELS - width))
            features[:, :, low : low + width] = 0.0
        inputs, phonemes, visits = [], [], []
        for row, (item, count) in enumerate(zip(items, frames.tolist(), strict=True)):
            length = encoded_frames(count)
            ids, indices = token_frames(item, self.tokenizer, length) if item else ([], [])
            for visit in walk(indices, length, rng, STRAY):
                right = self.blank if visit.token is None else ids[visit.token]
                visits.append((row, visit.frame, visit.before, right, visit.duration))
            wrong = rng.random(len(ids)) < WRONG_SHARE
            inputs.append([self.blank, *np.where(wrong, rng.integers(0, self.blank + 1, len(ids)), ids).tolist()])
            times = np.arange(length)[:, None] * FRAME_SECONDS + np.array(LABEL_OFFSETS)
            phonemes.append(phonemes_at(item, times, self.phonemes) if item else np.zeros(times.shape, np.int64))
        tokens = torch.full((len(inputs), max(map(len, inputs))), self.blank)
        for row, ids in enumerate(inputs):
            tokens[row, : len(ids)] = torch.tensor(ids)
        columns = torch.tensor(visits).unbind(1)
        return Batch(features, frames, torch.from_numpy(np.concatenate(phonemes)), tokens, *columns)


def _augmented(samples: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return samples with random gain and noise.

    They are padded to a length with small prime factors, since the Fourier transform of the noise takes most of the
    time of a batch.
    """
    padded = np.pad(samples, (0, -len(samples) % 4000))
    return augment(padded, rng)[: len(samples)]
