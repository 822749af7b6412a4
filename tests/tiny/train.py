"""Training of the small checkpoint: language-model loss, and beside it frame-level phonemes on the encoder's output.

Without the phoneme loss the decoder learns the sentences' grammar and ignores the audio. The order of the data and
every augmentation are functions of the seed and the step, so a run that was interrupted continues as if it had not.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen3ASRForConditionalGeneration

from export.families.qwen3_asr_encoder import CHUNK_FRAMES, CHUNK_TOKENS, WindowedEncoder, window_token_count
from tests.tiny.dataset import SILENT, Corpus, Item, sounding
from tests.tiny.model import config, log_mel, prompt_ids, token_counts
from tests.tiny.sentences import LANGUAGES
from tests.tiny.synth import augment, noise_only

WINDOW_FRAMES = 800
NOISE_SHARE = 0.02
# A token spans 80 ms, more than many phonemes: two labels a token, this far (seconds) from its centre.
LABEL_OFFSETS = (-0.02, 0.02)


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides the result, beside the corpus."""

    steps: int
    batch: int = 24
    peak: float = 2e-3
    warmup: int = 250
    weight_decay: float = 0.05
    phoneme_weight: float = 0.6
    seed: int = 7


class Trainee(nn.Module):
    """The model, its windowed encoder, and the throw-away phoneme head."""

    def __init__(self, tokenizer: Tokenizer, phonemes: int, seed: int = 7) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.asr = Qwen3ASRForConditionalGeneration(config(tokenizer))
        # Both measured: the convolutions' backward pass, and attention over a hundred rows, are faster so on a CPU.
        for conv in ("conv2d1", "conv2d2", "conv2d3"):
            getattr(self.asr.model.audio_tower, conv).to(memory_format=torch.channels_last)
        self.asr.model.language_model.config._attn_implementation = "eager"
        self.phoneme_head = nn.Linear(self.asr.config.audio_config.d_model, len(LABEL_OFFSETS) * phonemes)
        self.windows = WindowedEncoder(self.asr.model.audio_tower, self.asr.model.multi_modal_projector)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(language-model loss, phoneme loss)."""
        hidden = self.windows.hidden(batch.features, batch.lengths)
        rows = hidden[batch.valid]
        phonemes = self.phoneme_head(rows).reshape(-1, self.phoneme_head.out_features // len(LABEL_OFFSETS))
        phoneme_loss = F.cross_entropy(phonemes.float(), batch.phonemes.reshape(-1), ignore_index=-100)
        embeds = self.asr.get_input_embeddings()(batch.ids)
        audio = self.windows.projector(rows)
        embeds = embeds.masked_scatter((batch.ids == self.asr.config.audio_token_id)[..., None], audio.to(embeds.dtype))
        output = self.asr.model.language_model(
            inputs_embeds=embeds, attention_mask=batch.attention, use_cache=False
        ).last_hidden_state
        logits = self.asr.lm_head(output[:, :-1][batch.targets[:, 1:] >= 0])
        return F.cross_entropy(logits.float(), batch.targets[:, 1:][batch.targets[:, 1:] >= 0]), phoneme_loss


@dataclass(frozen=True, slots=True)
class Batch:
    """features [W,128,T], lengths [W], valid [W,rows] bool, phonemes [valid rows, 2], ids/attention/targets [B,S]."""

    features: Tensor
    lengths: Tensor
    valid: Tensor
    phonemes: Tensor
    ids: Tensor
    attention: Tensor
    targets: Tensor


class Batches:
    """Deterministic batches: epoch and place follow from the step."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, phonemes: dict[str, int], plan: Plan) -> None:
        self.corpus, self.tokenizer, self.phonemes, self.plan = corpus, tokenizer, phonemes, plan
        self.per_epoch = len(corpus) // plan.batch
        self._epoch = (-1, np.zeros((0, 0), np.int64))

    def order(self, epoch: int) -> np.ndarray:
        """[batches, batch] indices: clips of like length together, the batches themselves shuffled."""
        if self._epoch[0] != epoch:
            rng = np.random.default_rng((self.plan.seed, epoch))
            size = self.plan.batch
            order = rng.permutation(len(self.corpus))[: self.per_epoch * size]
            for start in range(0, len(order), size * 25):
                pool = order[start : start + size * 25]
                order[start : start + size * 25] = sorted(pool, key=lambda i: self.corpus.items[i].count)
            self._epoch = (epoch, rng.permutation(order.reshape(-1, size)))
        return self._epoch[1]

    def make(self, step: int) -> Batch:
        """The batch of ``step``."""
        epoch, place = divmod(step, self.per_epoch)
        rng = np.random.default_rng((self.plan.seed, 1, step))
        clips, rows = [], []
        items: list[Item | None] = []
        for index in self.order(epoch)[place]:
            item = self.corpus.items[index]
            if rng.random() < NOISE_SHARE:
                clips.append(noise_only(rng))
                items.append(None)
            else:
                clips.append(augment(self.corpus.samples(item), rng))
                items.append(item)
        features, frames = log_mel(clips)
        if rng.random() < 0.5:
            low, width = int(rng.integers(0, 116)), int(rng.integers(1, 13))
            features[:, low : low + width] = 0.0
        counts = token_counts(frames).tolist()
        for item, count in zip(items, counts, strict=True):
            prompt = prompt_ids(self.tokenizer, count, item.context if item else "")
            name, text = (LANGUAGES[item.language], item.text) if item else ("None", "")
            answer = self.tokenizer.encode(f"language {name}<asr_text>{text}<|im_end|>", add_special_tokens=False).ids
            rows.append((prompt, list(answer)))
        width = max(len(p) + len(a) for p, a in rows)
        ids = torch.full((len(rows), width), int(self.tokenizer.token_to_id("<|endoftext|>") or 0))
        attention = torch.zeros_like(ids)
        targets = torch.full_like(ids, -100)
        for row, (prompt, answer) in enumerate(rows):
            end = len(prompt) + len(answer)
            ids[row, :end] = torch.tensor(prompt + answer)
            attention[row, :end] = 1
            targets[row, len(prompt) : end] = torch.tensor(answer)
        windowed, lengths = cut_windows(features, frames)
        valid = torch.arange(windowed.shape[-1] // CHUNK_FRAMES * CHUNK_TOKENS) < window_token_count(lengths)[:, None]
        labels = [self._labels(item, count) for item, count in zip(items, counts, strict=True)]
        return Batch(windowed, lengths, valid, torch.from_numpy(np.concatenate(labels)), ids, attention, targets)

    def _labels(self, item: Item | None, count: int) -> np.ndarray:
        """[count, 2] phoneme classes around each token's centre."""
        token = np.arange(count)
        centre = token // CHUNK_TOKENS + token % CHUNK_TOKENS * 0.08
        times = centre[:, None] + np.array(LABEL_OFFSETS)
        if item is None:
            return np.zeros(times.shape, np.int64)
        marks = list(sounding(item))
        starts = np.array([start for start, _ in marks])
        classes = np.array([0 if label in SILENT else self.phonemes.get(label, -100) for _, label in marks])
        labels: np.ndarray = classes[np.clip(np.searchsorted(starts, times, side="right") - 1, 0, None)]
        return labels


def cut_windows(features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """features [B,128,T] and frame counts [B] → windows [W,128,≤800] in order of clips, and their frame counts [W]."""
    width = min(WINDOW_FRAMES, features.shape[-1])
    features = F.pad(features, (0, -features.shape[-1] % width))
    batch, mels, total = features.shape
    windows = features.reshape(batch, mels, total // width, width).transpose(1, 2).reshape(-1, mels, width)
    lengths = (frames[:, None] - torch.arange(total // width) * width).clamp(0, width).reshape(-1)
    return windows[lengths > 0], lengths[lengths > 0]


def learning_rate(step: int, plan: Plan) -> float:
    """Linear warm-up, then a cosine to 1 % of the peak."""
    if step < plan.warmup:
        return plan.peak * (step + 1) / plan.warmup
    progress = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return plan.peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def train(
    trainee: Trainee, batches: Batches, state: Path, save_every: int = 200
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train ``trainee`` by the plan of ``batches``, from ``state`` when it exists.

    Yields (steps done, means since the last yield) at every save.
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
    sums, since, began = np.zeros(2), 0, time.monotonic()
    trainee.train()
    ahead = ThreadPoolExecutor(1)  # features of the next batch while this one is computed
    following = ahead.submit(batches.make, first)
    for step in range(first, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, plan)
        batch = following.result()
        following = ahead.submit(batches.make, step + 1)
        with torch.autocast("cpu", torch.bfloat16):
            language_loss, phoneme_loss = trainee(batch)
        optimizer.zero_grad(set_to_none=True)
        (language_loss + plan.phoneme_weight * phoneme_loss).backward()
        nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        optimizer.step()
        sums += (language_loss.item(), phoneme_loss.item())
        since += 1
        done = step + 1
        if done % save_every == 0 or done == plan.steps:
            temporary = state.with_suffix(".tmp")
            torch.save({"model": trainee.state_dict(), "optimizer": optimizer.state_dict(), "step": done}, temporary)
            os.replace(temporary, state)
            seconds = (time.monotonic() - began) / since
            yield done, {"text": sums[0] / since, "phonemes": sums[1] / since, "seconds": seconds}
            trainee.train()
            sums, since, began = np.zeros(2), 0, time.monotonic()
