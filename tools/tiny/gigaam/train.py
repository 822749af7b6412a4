"""Training of the small GigaAM: CTC, and beside it phonemes and letters frame by frame.

CTC alone does not know the frames of letters, and takes thousands of steps to find them. espeak reports the start of
each word, so the frames of letters are nearly known: with them the model writes text after a few hundred steps, and the
first letter of a word comes at the start of the word. Inside a word the frames are a guess (:func:`letter_frames`), so
their weight falls, and CTC alone decides in the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.families.gigaam.exporter import read_settings, sizes_of
from export.families.gigaam.model import GigaAMCtc, valid_frames
from tools.tiny.dataset import SILENT, Corpus, Item, phonemes_at, sounding
from tools.tiny.gigaam.model import BLANK, FRAME, RATE, WIDTH, config, letters, log_mel
from tools.tiny.loop import Order, Plan
from tools.tiny.synth import augment, noise_only

Ints = npt.NDArray[np.int64]

# First with the frames of letters; then without them, since they spread a letter's probability over two frames.
PLANS = {"learned": Plan(steps=2300), "settled": Plan(steps=200, peak=3e-4, warmup=10, seed=8)}

NOISE_SHARE = 0.02
PHONEME_WEIGHT = 0.3
# Weight of the letter loss at the first step of a plan, and from its middle on.
LETTER_WEIGHTS = {"learned": (1.0, 0.02), "settled": (0.0, 0.0)}
CTC_WEIGHT = 0.5
IGNORED = -100
# A frame of 40 ms is longer than many phonemes, so it has two labels, this far (seconds) from its center.
LABEL_OFFSETS = (-0.01, 0.01)
# Mean and standard deviation of the corpus's log-mels, which the published front end does not normalize.
MEAN, SPREAD = -10.0, 6.0


class Trainee(nn.Module):
    """The model, and a temporary phoneme head on the second last layer."""

    def __init__(self, phonemes: int, seed: int = 7) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.asr = GigaAMCtc(sizes_of(read_settings(config(), Path("config.json"))))
        weight, bias = (self.asr.get_parameter(f"encoder.pre_encode.conv.0.{name}") for name in ("weight", "bias"))
        with torch.no_grad():
            weight.div_(SPREAD)
            bias.sub_(MEAN * weight.sum((1, 2, 3)))
        self.phoneme_head = nn.Linear(WIDTH, len(LABEL_OFFSETS) * phonemes)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted terms of the loss: CTC, letters and phonemes."""
        encoder = self.asr.encoder
        with torch.autocast("cpu", enabled=False):
            x, lengths = encoder.pre_encode(batch.features, batch.lengths)
        valid = valid_frames(lengths, x.shape[1])
        bias = ((valid - 1.0) * 1e4)[:, None, None]
        cos, sin = encoder.cos[: x.shape[1]], encoder.sin[: x.shape[1]]
        for index, layer in enumerate(encoder.layers):
            x = layer(x, cos, sin, bias, valid[:, :, None])
            if index == len(encoder.layers) - 2:
                inner = x
        rows = valid > 0
        phonemes = self.phoneme_head(inner[rows]).reshape(-1, self.phoneme_head.out_features // len(LABEL_OFFSETS))
        phoneme_loss = F.cross_entropy(phonemes.float(), batch.phonemes.reshape(-1), ignore_index=IGNORED)
        log_probs = self.asr.head.decoder_layers(x).float().log_softmax(-1)
        letter_loss = F.nll_loss(log_probs[rows], batch.letters, ignore_index=IGNORED)
        ctc = F.ctc_loss(
            log_probs.transpose(0, 1), batch.targets, lengths, batch.target_lengths, BLANK, zero_infinity=True
        )
        return {
            "ctc": CTC_WEIGHT * ctc,
            "letters": batch.letter_weight * letter_loss,
            "phonemes": PHONEME_WEIGHT * phoneme_loss,
        }


@dataclass(frozen=True, slots=True)
class Batch:
    """features [B,64,T], lengths [B], targets [B,S] and their lengths, phonemes [valid rows, 2], letters [valid rows].

    Rows are the encoder's valid frames of all clips.
    """

    features: Tensor
    lengths: Tensor
    targets: Tensor
    target_lengths: Tensor
    phonemes: Tensor
    letters: Tensor
    letter_weight: float


class Batches:
    """Batches that depend on the seed and the step alone."""

    def __init__(
        self, corpora: Sequence[Corpus], phonemes: dict[str, int], plan: Plan, letter_weights: tuple[float, float]
    ) -> None:
        self.phonemes, self.plan, self.letter_weights = phonemes, plan, letter_weights
        chosen = [(corpus, suited(corpus.items)) for corpus in corpora]
        self._home = {id(item): corpus for corpus, items in chosen for item in items}
        self.order = Order([item for _, items in chosen for item in items], plan)

    def make(self, step: int) -> Batch:
        """Return the batch of ``step``."""
        rng = np.random.default_rng((self.plan.seed, 1, step))
        clips = []
        items: list[Item | None] = []
        for spoken in self.order.batch(step):
            if rng.random() < NOISE_SHARE:
                clips.append(noise_only(rng))
                items.append(None)
            else:
                clips.append(augment(self._home[id(spoken)].samples(spoken), rng))
                items.append(spoken)
        features, lengths = log_mel(clips)
        if rng.random() < 0.5:
            low, width = int(rng.integers(0, 58)), int(rng.integers(1, 7))
            features[:, low : low + width] = features.mean((1, 2), keepdim=True)
        targets = [letters(item.text) if item else [] for item in items]
        padded = torch.zeros(len(items), max(1, *map(len, targets)), dtype=torch.int64)
        for row, target in enumerate(targets):
            padded[row, : len(target)] = torch.tensor(target)
        counts = [-(-int(length) // 4) for length in lengths]
        phonemes, frames = [], []
        for item, count in zip(items, counts, strict=True):
            times = (np.arange(count) * FRAME + 0.01)[:, None] + np.array(LABEL_OFFSETS)
            phonemes.append(phonemes_at(item, times, self.phonemes) if item else np.zeros(times.shape, np.int64))
            frames.append(letter_frames(item, count) if item else np.full(count, BLANK))
        return Batch(
            features,
            lengths,
            padded,
            torch.tensor([len(target) for target in targets]),
            torch.from_numpy(np.concatenate(phonemes)),
            torch.from_numpy(np.concatenate(frames)),
            letter_weight(step, self.plan, self.letter_weights),
        )


def suited(items: Sequence[Item]) -> list[Item]:
    """Return Russian items without words that depend on a context, which this family does not take."""
    return [item for item in items if item.language == "ru" and not item.hot]


def letter_weight(step: int, plan: Plan, weights: tuple[float, float]) -> float:
    """Return the weight of the letter loss: linear from the first to the last by the middle of the plan."""
    first, last = weights
    return first + (last - first) * min(1.0, 2 * step / plan.steps)


def letter_frames(item: Item, count: int) -> Ints:
    """Return the letter or blank of each of ``count`` frames; :data:`IGNORED` in words with too few frames.

    The first letter of a word is in the frame nearest to its start, the others are spread evenly to the end of its last
    sound, and the space is in the frame before the next word. A word that would have no frame of its own (``и`` and
    ``у`` can take 40 ms) starts earlier.
    """
    frames = np.full(count, BLANK, np.int64)
    sounds = [(start, label in SILENT) for start, label in sounding(item)]
    words = [(start, letters(word)) for start, word in item.words]
    firsts = [round(start / FRAME) for start, _ in words]
    for index in range(len(firsts) - 2, -1, -1):
        firsts[index] = max(0, min(firsts[index], firsts[index + 1] - 2))
    for index, ((start, word), first) in enumerate(zip(words, firsts, strict=True)):
        last = index + 1 == len(words)
        until = item.count / RATE if last else words[index + 1][0]
        end = next((at for at, silent in sounds if silent and start < at < until), until)
        # First frame after this word, which holds the space.
        limit = min(count, round(end / FRAME) + 1) if last else firsts[index + 1] - 1
        indices = _spread(word, first, (end - start) / FRAME, limit)
        if indices is None:
            frames[first : min(limit, count)] = IGNORED
        else:
            frames[indices] = word
        if not last and 0 <= limit < count and limit > first:
            frames[limit] = 0
    return frames


def _spread(word: list[int], first: int, span: float, limit: int) -> list[int] | None:
    """Return a frame for each letter in [first, limit), with a frame between equal letters; None without room."""
    gaps = [0] + [1 + (letter == before) for before, letter in pairwise(word)]
    if first + sum(gaps) >= limit:
        return None
    indices = [first + round(span * index / len(word)) for index in range(len(word))]
    for index in range(1, len(word)):
        indices[index] = max(indices[index], indices[index - 1] + gaps[index])
    at = limit
    for index in range(len(word) - 1, -1, -1):
        indices[index] = min(indices[index], at - (gaps[index + 1] if index + 1 < len(word) else 1))
        at = indices[index]
    return indices
