"""Training of the small Whisper: text, and beside it phonemes of the encoder's rows and the time of each token.

Without the phonemes the decoder learns the grammar of the sentences and ignores the audio. A head of cross-attention
that is guided to the time of each token learns to attend to the audio much sooner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from tools.tiny.dataset import Corpus, Item, phonemes_at
from tools.tiny.loop import Order, Plan
from tools.tiny.sentences import LANGUAGES
from tools.tiny.synth import augment, noise_only
from tools.tiny.whisper.model import RATE, ROW, WINDOW, log_mel, untrained
from tools.tiny.whisper.targets import ANY, NOTHING, UNKNOWN, Phrase, Row, Writer, padded, phrases, usual
from tools.tiny.whisper.tokenizer import POSITIONS, token_id

Floats = npt.NDArray[np.float32]

NOISE_SHARE, CONTEXT_SHARE, PREVIOUS_SHARE, MASK_SHARE = 0.03, 0.6, 0.06, 0.4
PHONEME_WEIGHT = 0.6
# Rows of silence after the speech in the phoneme loss; all of them would outweigh the speech.
TAIL_ROWS = 15
# Rows beside a token that a guided head may also attend to.
MARGIN = 3


@dataclass(frozen=True, slots=True)
class Guide:
    """Settings of the losses besides plain cross-entropy.

    ``heads`` are (layer, token) pairs: the first head of the layer is guided to the time of the input token (0) or of
    the next token (1), with ``weight``. ``blur`` timestamps on both sides of the right one count as partly right: most
    of the 1501 are rare, and so learn from their neighbors. ``doubt`` is the share of the stop's probability that goes
    to all tokens of text where there is no speech: decoding rules forbid that stop, and discard only a text with a low
    probability.
    """

    heads: tuple[tuple[int, int], ...] = ((0, 0), (1, 1))
    weight: float = 0.2
    blur: int = 0
    doubt: float = 0.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Features [B, 128, 2T], first [B] (index in a window of each clip's first row), phonemes [B, T] (-100: any), ids
    [B, S] and targets [B, S] as in :class:`tools.tiny.whisper.targets.Row`, spans [B, S, 2] (rows of each token;
    negative: unknown).
    """

    features: Tensor
    first: Tensor
    phonemes: Tensor
    ids: Tensor
    targets: Tensor
    spans: Tensor


class Trainee(nn.Module):
    """The model and a temporary phoneme head."""

    def __init__(self, tokenizer: Tokenizer, phonemes: int, seed: int = 7) -> None:
        super().__init__()
        self.asr = untrained(tokenizer, seed)
        # Measured: faster on a CPU than fused attention for a few hundred rows, and no slower for more.
        self.asr.set_attn_implementation("eager")
        self.phoneme_head = nn.Linear(self.asr.config.d_model, phonemes)
        self.guide = Guide()
        self._zero, self._stop = token_id(tokenizer, "<|0.00|>"), token_id(tokenizer, "<|endoftext|>")
        self._seen: dict[str, Tensor] = {}
        for layer, block in enumerate(self.asr.model.decoder.layers):
            attention = block.encoder_attn
            for name in ("q_proj", "k_proj"):
                getattr(attention, name).register_forward_hook(self._keep(f"{layer}.{name}"))

    def _keep(self, name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            self._seen[name] = output

        return hook

    def encode(self, features: Tensor, first: Tensor) -> Tensor:
        """Encode features [B, 128, 2T] of less than a window with the encoder's modules; return rows [B, T, width]."""
        encoder = self.asr.model.encoder
        hidden = F.gelu(encoder.conv2(F.gelu(encoder.conv1(features)))).transpose(1, 2)
        # Rows after the end of a window are padding for longer clips of the batch.
        indices = (first[:, None] + torch.arange(hidden.shape[1])).clamp(max=POSITIONS - 1)
        hidden = hidden + encoder.embed_positions.weight[indices]
        for layer in encoder.layers:
            hidden = layer(hidden, None)
        rows: Tensor = encoder.layer_norm(hidden)
        return rows

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted terms of the loss: text, phonemes and guided heads."""
        rows = self.encode(batch.features, batch.first)
        labeled = batch.phonemes >= 0
        phoneme_loss = F.cross_entropy(self.phoneme_head(rows[labeled]).float(), batch.phonemes[labeled])
        hidden = self.asr.model.decoder(
            input_ids=batch.ids, encoder_hidden_states=rows, use_cache=False
        ).last_hidden_state
        learned = batch.targets != ANY
        text_loss = self._text(self.asr.proj_out(hidden[learned]).float(), batch.targets[learned])
        guide = torch.stack([self._guide(layer, batch.spans[:, ahead:]) for layer, ahead in self.guide.heads]).mean()
        return {"text": text_loss, "phonemes": PHONEME_WEIGHT * phoneme_loss, "guide": self.guide.weight * guide}

    def _text(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of ``logits`` [N, vocab], for timestamps blurred over their neighbors."""
        nothing = targets == NOTHING
        targets = targets.masked_fill(nothing, self._stop)
        blur, doubt, logs = self.guide.blur, self.guide.doubt, F.log_softmax(logits, -1)
        far = torch.arange(-blur, blur + 1)
        near = (blur + 1.0 - far.abs()) / (blur + 1) ** 2
        stamps = targets >= self._zero
        around = (targets[stamps, None] + far).clamp(self._zero, logits.shape[-1] - 1)
        right = logs[~stamps].gather(1, targets[~stamps, None]).sum() + (logs[stamps].gather(1, around) * near).sum()
        silent = logs[nothing]
        right = right + doubt * (silent[:, : self._stop].mean(-1) - silent[:, self._stop]).sum()
        return -right / len(targets)

    def _guide(self, layer: int, spans: Tensor) -> Tensor:
        """Return the negative logarithm of the first head's attention inside ``spans`` [B, ≤S, 2]."""
        attention = self.asr.model.decoder.layers[layer].encoder_attn
        size = attention.head_dim
        queries = self._seen[f"{layer}.q_proj"][:, : spans.shape[1], :size] * attention.scaling
        scores = (queries @ self._seen[f"{layer}.k_proj"][..., :size].transpose(1, 2)).float()
        index = torch.arange(scores.shape[-1])
        inside = (index >= spans[..., :1] - MARGIN) & (index <= spans[..., 1:] + MARGIN)
        known = spans[..., 0] >= 0
        chosen = scores.masked_fill(~inside, -1e4).logsumexp(-1) - scores.logsumexp(-1)
        mean: Tensor = -chosen[known].clamp(min=-12).mean()
        return mean


@dataclass(frozen=True, slots=True)
class Scene:
    """Audio with its targets. ``placed`` are utterances with their starts in seconds; ``first`` is the index of the row
    where the audio starts.
    """

    wave: Floats
    placed: list[tuple[Item, float]]
    row: Row
    first: int = 0


class Scenes:
    """Maker of scenes from corpora, with one tokenizer."""

    def __init__(self, corpora: Sequence[Corpus], tokenizer: Tokenizer, phonemes: dict[str, int]) -> None:
        self.writer, self.phonemes = Writer(tokenizer), phonemes
        self._corpora = corpora
        self.by_language = {
            code: [(corpus, item) for corpus in corpora for item in corpus.items if item.language == code]
            for code in LANGUAGES
        }

    def noise(self, rng: np.random.Generator) -> Scene:
        """Return a scene without speech."""
        wave, wrong = noise_only(rng), int(rng.integers(0, self.writer.stop))
        language = list(LANGUAGES)[int(rng.integers(3))]
        return Scene(wave, [], self.writer.silence(language, timed=rng.random() < 0.5, wrong=wrong))

    def clip(
        self, corpus: Corpus, item: Item, rng: np.random.Generator, *, latest: int = 0, timed: float = 0.5
    ) -> Scene:
        """Return a scene of one utterance, sometimes with its context or with a text before.

        It starts at a random row below ``latest``; ``timed`` is the probability of timestamps.
        """
        context, text = self._context(item, rng)
        first = int(rng.integers(0, latest)) if latest and rng.random() < 0.6 else 0
        first = min(first, POSITIONS - item.count // ROW - 100)
        sentences = [phrase.later(first * ROW / RATE) for phrase in phrases(item, self.writer.tokenizer, text)]
        row = self.writer.speech(item.language, sentences, timed=rng.random() < timed, context=context, cut=None)
        # A length with small prime factors, for a fast Fourier transform of the noise.
        wave = np.pad(corpus.samples(item), (0, -item.count % (RATE // 10)))
        return Scene(augment(wave, rng), [(item, 0.0)], row, first)

    def window(self, rng: np.random.Generator) -> Scene:
        """Return a scene of several utterances of one language with pauses; the last may exceed the window."""
        pool = self.by_language[list(LANGUAGES)[int(rng.integers(3))]]
        timed, seconds = rng.random() < 0.7, rng.uniform(6.0, 38.0)
        wave = np.zeros(WINDOW, np.float32)
        placed: list[tuple[Item, float]] = []
        sentences: list[Phrase] = []
        cut: float | None = None
        at = rng.uniform(0.0, 0.5)
        language = ""
        even = rng.random() < 0.6
        while at < min(seconds, 29.0) and cut is None:
            corpus, item = pool[int(rng.integers(len(pool)))]
            shifted = [phrase.later(at) for phrase in phrases(item, self.writer.tokenizer, usual(item))]
            if shifted[-1].end > 29.9:
                if not timed:
                    break
                cut = next(phrase.start for phrase in shifted if phrase.end > 29.9)
            language = item.language
            start = round(at * RATE)
            samples = corpus.samples(item)[: WINDOW - start]
            gain = 1.0 if even else 10 ** (rng.uniform(-8, 0) / 20)
            wave[start : start + len(samples)] += samples * np.float32(gain)
            placed.append((item, at))
            sentences += [phrase for phrase in shifted if phrase.end <= 29.9]
            at += item.count / RATE + (rng.uniform(0.0, 1.2) if rng.random() < 0.85 else rng.uniform(1.0, 5.0))
        if cut is not None and cut > 29.9:
            cut = None
        wave = augment(wave[: min(WINDOW, -(-round(at * RATE) // ROW) * ROW)], rng)
        context: list[int] = []
        if rng.random() < 0.25:
            _, before = pool[int(rng.integers(len(pool)))]
            context = self.writer.text_ids(usual(before))
        row = self.writer.speech(language, sentences, timed=timed, context=context, cut=cut)
        return Scene(wave, placed, row)

    def _context(self, item: Item, rng: np.random.Generator) -> tuple[list[int], str]:
        if item.context and rng.random() < CONTEXT_SHARE:
            return self.writer.text_ids(item.context), item.text
        context: list[int] = []
        if rng.random() < PREVIOUS_SHARE:
            _, before = self.by_language[item.language][int(rng.integers(len(self.by_language[item.language])))]
            context = self.writer.text_ids(usual(before))
        return context, usual(item)

    def batch(self, scenes: Sequence[Scene], samples: int, rng: np.random.Generator) -> Batch:
        """Return a batch of scenes, padded with silence to ``samples``, a multiple of ``ROW``."""
        features = log_mel([scene.wave for scene in scenes], samples)
        for row in range(len(scenes)):
            if rng.random() < MASK_SHARE:
                low, width = int(rng.integers(0, 116)), int(rng.integers(1, 13))
                features[row, low : low + width] = 0.0
        labels = np.full((len(scenes), samples // ROW), -100, np.int64)
        times = np.arange(samples // ROW) * ROW / RATE
        for row, scene in enumerate(scenes):
            labels[row, : len(scene.wave) // ROW + TAIL_ROWS] = 0
            for item, start in scene.placed:
                inside = (times >= start) & (times < start + item.count / RATE)
                labels[row, inside] = phonemes_at(item, times[inside] - start, self.phonemes)
        ids, targets, spans = padded([scene.row for scene in scenes], self.writer.stop)
        first = np.array([scene.first for scene in scenes])
        rows = np.where(spans == UNKNOWN[0], -1.0, np.round(spans * RATE / ROW) - first[:, None, None])
        return Batch(
            features,
            torch.from_numpy(first),
            torch.from_numpy(labels),
            torch.from_numpy(ids),
            torch.from_numpy(targets),
            torch.from_numpy(rows),
        )


class ClipBatches:
    """Batches of utterances of similar length, with little silence, or with up to a window of it."""

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        phonemes: dict[str, int],
        plan: Plan,
        *,
        seconds: tuple[float, float] = (0.0, float("inf")),
        latest: int = 0,
        timed: float = 0.5,
        silent: bool = False,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        """Select the utterances.

        Args:
            corpus: where they come from.
            tokenizer: of the targets.
            phonemes: class of each phoneme.
            plan: of the training.
            seconds: range of durations.
            latest: largest first row, as in :meth:`Scenes.clip`.
            timed: probability of timestamps.
            silent: add silence up to anywhere in the window, mostly little. The model must find the speech among the
                rows of a window, most of them silent; it learns that sooner from short windows, which also cost less.
            shares: share of each language that is used; all if None.
        """
        self.plan, self._corpus, self._latest, self._timed = plan, corpus, latest, timed
        self._scenes, self._silent = Scenes([corpus], tokenizer, phonemes), silent
        low, high = seconds
        items = [item for item in corpus.items if low * RATE < item.count <= high * RATE]
        if shares is not None:
            chosen = np.random.default_rng(plan.seed).random(len(items))
            items = [item for item, index in zip(items, chosen, strict=True) if index < shares[item.language]]
        self._order = Order(items, plan)

    def make(self, step: int) -> Batch:
        """Return the batch of ``step``."""
        rng = np.random.default_rng((self.plan.seed, 1, step))
        scenes = [
            self._scenes.noise(rng)
            if rng.random() < NOISE_SHARE
            else self._scenes.clip(self._corpus, item, rng, latest=self._latest, timed=self._timed)
            for item in self._order.batch(step)
        ]
        longest = max(len(scene.wave) for scene in scenes)
        if self._silent:
            more = int(rng.random() ** 2 * (WINDOW - longest))
        else:
            more = int(rng.uniform(0, 1.5) * RATE) if rng.random() < 0.5 else 0
        return self._scenes.batch(scenes, -(-(longest + more) // ROW) * ROW, rng)


class WindowBatches:
    """Batches of whole windows: full ones, and ones with a single utterance followed by silence."""

    NOISE = 0.1

    def __init__(
        self,
        corpora: Sequence[Corpus],
        tokenizer: Tokenizer,
        phonemes: dict[str, int],
        plan: Plan,
        *,
        full: float = 0.5,
        timed: float = 0.5,
    ) -> None:
        """Set the share of full windows, and the probability of timestamps in the others."""
        self.plan, self._full, self._timed = plan, full, timed
        self._scenes = Scenes(corpora, tokenizer, phonemes)

    def make(self, step: int) -> Batch:
        """Return the batch of ``step``."""
        rng = np.random.default_rng((self.plan.seed, 2, step))
        scenes = []
        for _ in range(self.plan.batch):
            kind = rng.random()
            if kind < self.NOISE:
                scenes.append(self._scenes.noise(rng))
            elif kind < self.NOISE + self._full:
                scenes.append(self._scenes.window(rng))
            else:
                pool = self._scenes.by_language[list(LANGUAGES)[int(rng.integers(3))]]
                scenes.append(self._scenes.clip(*pool[int(rng.integers(len(pool)))], rng, timed=self._timed))
        return self._scenes.batch(scenes, WINDOW, rng)
