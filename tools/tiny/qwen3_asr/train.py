"""Training of the small Qwen3-ASR: language-model loss, and beside it frame-level phonemes on the encoder's output.

Without the phoneme loss the decoder learns the grammar of the sentences and ignores the audio.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen3ASRForConditionalGeneration

from export.families.qwen3_asr.encoder import CHUNK_FRAMES, CHUNK_TOKENS, WindowedEncoder, window_token_count
from tools.tiny.dataset import Corpus, Item, phonemes_at
from tools.tiny.loop import Order, Plan
from tools.tiny.qwen3_asr.model import config, log_mel, prompt_ids, token_counts
from tools.tiny.sentences import LANGUAGES
from tools.tiny.synth import augment, noise_only

WINDOW_FRAMES = 800
NOISE_SHARE = 0.02
PHONEME_WEIGHT = 0.6
# A token of 80 ms is longer than many phonemes, so it has two labels, this far (seconds) from its center.
LABEL_OFFSETS = (-0.02, 0.02)


class Trainee(nn.Module):
    """The model, its windowed encoder, and a temporary phoneme head."""

    def __init__(self, tokenizer: Tokenizer, phonemes: int, seed: int = 7) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.asr = Qwen3ASRForConditionalGeneration(config(tokenizer))
        # Measured on a CPU: both make the backward pass of convolutions and attention over a hundred rows faster.
        for conv in ("conv2d1", "conv2d2", "conv2d3"):
            getattr(self.asr.model.audio_tower, conv).to(memory_format=torch.channels_last)
        self.asr.model.language_model.config._attn_implementation = "eager"
        self.phoneme_head = nn.Linear(self.asr.config.audio_config.d_model, len(LABEL_OFFSETS) * phonemes)
        self.windows = WindowedEncoder(self.asr.model.audio_tower, self.asr.model.multi_modal_projector)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted terms of the loss: text and phonemes."""
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
        text_loss = F.cross_entropy(logits.float(), batch.targets[:, 1:][batch.targets[:, 1:] >= 0])
        return {"text": text_loss, "phonemes": PHONEME_WEIGHT * phoneme_loss}


@dataclass(frozen=True, slots=True)
class Batch:
    """Features [W, 128, T], lengths [W], valid [W, rows], phonemes [valid rows, 2]; ids, attention, targets [B, S]."""

    features: Tensor
    lengths: Tensor
    valid: Tensor
    phonemes: Tensor
    ids: Tensor
    attention: Tensor
    targets: Tensor


class Batches:
    """Batches that depend on the seed and the step alone."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, phonemes: dict[str, int], plan: Plan) -> None:
        self.corpus, self.tokenizer, self.phonemes, self.plan = corpus, tokenizer, phonemes, plan
        self.order = Order(corpus.items, plan)

    def make(self, step: int) -> Batch:
        """Return the batch of ``step``."""
        rng = np.random.default_rng((self.plan.seed, 1, step))
        clips, rows = [], []
        items: list[Item | None] = []
        for spoken in self.order.batch(step):
            if rng.random() < NOISE_SHARE:
                clips.append(noise_only(rng))
                items.append(None)
            else:
                clips.append(augment(self.corpus.samples(spoken), rng))
                items.append(spoken)
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
        """Return the phoneme classes [count, 2] around the center of each token."""
        token = np.arange(count)
        center = token // CHUNK_TOKENS + token % CHUNK_TOKENS * 0.08
        times = center[:, None] + np.array(LABEL_OFFSETS)
        return phonemes_at(item, times, self.phonemes) if item else np.zeros(times.shape, np.int64)


def cut_windows(features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Cut features [B, 128, T] with frames [B] into windows [W, 128, ≤800] in order of clips, with frames [W]."""
    width = min(WINDOW_FRAMES, features.shape[-1])
    features = F.pad(features, (0, -features.shape[-1] % width))
    batch, mels, total = features.shape
    windows = features.reshape(batch, mels, total // width, width).transpose(1, 2).reshape(-1, mels, width)
    lengths = (frames[:, None] - torch.arange(total // width) * width).clamp(0, width).reshape(-1)
    return windows[lengths > 0], lengths[lengths > 0]
