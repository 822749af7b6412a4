"""Labels, features, training and card of the small Parakeet."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.decoding.tdt import Floats, Ints, States, TdtRules, greedy_tdt
from runtime.features.nemo_mel import NemoMelConfig, nemo_mel
from tools.tiny.dataset import Corpus, Item, generate, phoneme_table
from tools.tiny.loop import Plan
from tools.tiny.parakeet.__main__ import CHECKPOINT
from tools.tiny.parakeet.labels import (
    FRAME_SECONDS,
    LONGEST,
    Visit,
    character_times,
    token_frames,
    usual_spelling,
    walk,
)
from tools.tiny.parakeet.measure import MAX_ERROR_RATE, MIN_EMPTY
from tools.tiny.parakeet.model import encode, encoded_frames, log_mel, new_model
from tools.tiny.parakeet.tokenizer import BLANK, VOCABULARY, texts, train_tokenizer
from tools.tiny.parakeet.train import LANGUAGES, Batches, Trainee

TOKENIZER = train_tokenizer(texts(LANGUAGES, seed=3, count=3_000))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    generate(folder, 18, 5, workers=1, context=0.0, joined=0.5)
    return Corpus(folder)


@pytest.fixture(scope="module")
def items(corpus: Corpus) -> list[Item]:
    return [item for item in corpus.items if item.language in LANGUAGES]


class WalkNetworks:
    """Networks with the right token and duration at each step of a walk; token ids are indices, 99 is the blank."""

    blank = 99

    def __init__(self, visits: list[Visit]) -> None:
        self.visits = {(visit.frame, visit.before): visit for visit in visits}

    def start(self, rows: int) -> States:
        return States(np.zeros((1, rows, 1), np.float32), np.zeros((1, rows, 1), np.float32))

    def step(self, tokens: Ints, states: States, frames: Floats) -> tuple[Floats, Floats, States]:
        before = 0 if tokens[0] == self.blank else int(tokens[0]) + 1
        visit = self.visits[int(frames[0, 0]), before]
        logits, spans = np.zeros((1, 100), np.float32), np.zeros((1, LONGEST + 1), np.float32)
        logits[0, self.blank if visit.token is None else visit.token] = 1.0
        spans[0, visit.duration] = 1.0
        return logits, spans, states


INDICES = st.integers(1, 60).flatmap(
    lambda frames: st.tuples(st.just(frames), st.lists(st.integers(0, frames - 1), max_size=9).map(sorted))
)


@given(INDICES)
def test_the_decoder_emits_each_token_at_its_frame(frames_and_indices: tuple[int, list[int]]) -> None:
    """The walk matches the decoding loop of the runtime."""
    frames, indices = frames_and_indices
    rules = TdtRules(WalkNetworks.blank, tuple(range(LONGEST + 1)), 10)
    encoded = [np.arange(frames, dtype=np.float32)[:, None]]
    ((_, hypothesis),) = greedy_tdt(WalkNetworks(walk(indices, frames)), encoded, rules)
    assert hypothesis.tokens == list(range(len(indices)))
    assert hypothesis.starts == indices


@given(INDICES, st.integers(0, 9))
def test_a_walk_with_wrong_steps_has_all_tokens_and_returns_to_the_path(
    frames_and_indices: tuple[int, list[int]], seed: int
) -> None:
    frames, indices = frames_and_indices
    visits = walk(indices, frames, np.random.default_rng(seed), stray=0.5)
    assert [visit.token for visit in visits if visit.token is not None] == list(range(len(indices)))
    for visit in visits:
        if visit.token is None:
            assert 1 <= visit.duration <= LONGEST
            assert visit.before == len(indices) or visit.frame + visit.duration <= indices[visit.before]
        else:
            assert visit.frame >= indices[visit.token]
            following = indices[visit.token + 1] if visit.token + 1 < len(indices) else frames
            assert visit.duration == min(LONGEST, max(0, following - visit.frame))


def test_tokens_are_at_the_times_of_their_words(items: list[Item]) -> None:
    """The first token of a word is within half a frame of its mark."""
    for item in items:
        length = encoded_frames(item.count // 160)
        ids, indices = token_frames(item, TOKENIZER, length)
        assert TOKENIZER.decode(ids) == item.text
        assert indices == sorted(indices)
        assert indices[-1] < length
        times = character_times(item)
        cursor = 0
        for start, label in item.words:
            index = item.text.find(label, cursor)
            if index < 0 or (index and item.text[index - 1] != " "):
                continue  # the last digit of a number, or a word that espeak joins with the next one
            cursor = index + len(label)
            assert times[index] == start
        starts = {start: frame for (start, _), frame in zip(TOKENIZER.encode(item.text).offsets, indices, strict=True)}
        first, label = item.words[0]
        assert item.text.startswith(label)
        assert abs(starts[0] * FRAME_SECONDS - first) <= FRAME_SECONDS / 2 + 1e-6


def test_names_have_their_default_spelling_without_a_context() -> None:
    marks = [(0.1, "Call"), (0.4, "Jon"), (0.8, "and"), (0.9, "Ann")]
    item = Item("en", "Call Jon and Ann.", "Jon, Ann", ["Jon", "Ann"], "en-us+m1", 0, 16_000, marks, [])
    usual = usual_spelling(item)
    assert usual.text == "Call John and Anne."
    assert [label for _, label in usual.words] == ["Call", "John", "and", "Anne"]
    plain = Item("en", "Call Jonas.", "", [], "en-us+m1", 0, 16_000, [], [])
    assert usual_spelling(plain) is plain


def test_numbers_and_punctuation_are_tokens_of_their_own() -> None:
    assert TOKENIZER.get_vocab_size() == VOCABULARY
    assert TOKENIZER.token_to_id(BLANK) == VOCABULARY - 1
    assert TOKENIZER.encode("at 12:40.").tokens[-6:] == ["▁1", "2", ":", "4", "0", "."]


def test_training_and_runtime_have_the_same_features(speech: np.ndarray) -> None:
    clips = [speech[:20_000], speech[:100], speech[20_000:60_000], np.zeros(3_000, np.float32)]
    features, frames = log_mel(clips)
    config = NemoMelConfig("nemo-log-mel", 16_000, 512, 400, 160, features.shape[-1], 0.97)
    for row, clip in enumerate(clips):
        reference = nemo_mel(clip, config)
        assert frames[row] == len(reference)
        assert np.abs(features[row, : len(reference)].numpy() - reference).max() < 2e-3
        assert not features[row, len(reference) :].any()


@torch.no_grad()
def test_the_training_encoder_equals_the_reference(speech: np.ndarray) -> None:
    model = new_model(1).eval()
    features, frames = log_mel([speech[:40_000], speech[:16_000], speech[:1_600]])
    ours, lengths = encode(model.encoder, features, frames)
    reference = model.encoder(features, torch.arange(features.shape[1]) < frames[:, None])
    assert lengths.tolist() == reference.attention_mask.sum(-1).tolist()
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(ours[row, :length], reference.last_hidden_state[row, :length], rtol=0, atol=1e-4)


@torch.no_grad()
def test_padding_does_not_affect_training(speech: np.ndarray) -> None:
    """Outputs and running statistics of the batch norms are independent of padding."""
    features, frames = log_mel([speech[:40_000], speech[:16_000]])
    results = []
    for padding in (0, 333):
        model = new_model(1).train()
        hidden, lengths = encode(model.encoder, torch.nn.functional.pad(features, (0, 0, 0, padding)), frames)
        results.append(
            (hidden[0, : lengths[0]], hidden[1, : lengths[1]], model.encoder.layers[1].conv.norm.running_var)
        )
    for plain, padded in zip(*results, strict=True):
        torch.testing.assert_close(plain, padded, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_batches_are_of_both_languages_and_the_loss_goes_down(corpus: Corpus, items: list[Item]) -> None:
    phonemes = phoneme_table(items)
    batches = Batches([corpus], (0,), TOKENIZER, phonemes, Plan(steps=2, batch=len(items)))
    batch, again = batches.make(0), batches.make(0)
    assert torch.equal(batch.features, again.features)
    assert torch.equal(batch.right, again.right)
    inputs = {row: batch.tokens[row].tolist() for row in range(len(items))}
    assert all(ids[0] == VOCABULARY - 1 for ids in inputs.values())
    for row in range(len(items)):
        before = batch.before[batch.rows == row].tolist()
        assert all(later - earlier in (0, 1) for earlier, later in pairwise(before))
    trainee = Trainee(len(phonemes) + 1).train()
    optimizer = torch.optim.AdamW(trainee.parameters(), lr=2e-3)
    losses = []
    for _ in range(10):
        terms = trainee(batch)
        total = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < 0.8 * losses[0]


def test_the_card_meets_the_targets() -> None:
    lines = (CHECKPOINT / "README.md").read_text(encoding="utf-8").splitlines()
    rows = {line.split("|")[1].strip(): line.split("|")[2:] for line in lines if line.startswith("| ")}
    for name in LANGUAGES.values():
        assert float(rows[name][0].strip(" %")) <= 100 * MAX_ERROR_RATE
    assert float(rows["empty text on clips without speech"][0].split("%")[0]) >= 100 * MIN_EMPTY
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) < 12e6
    config = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))
    assert config["languages"] == list(LANGUAGES.values())


def test_the_licence_is_that_of_the_project() -> None:
    project = Path(__file__).resolve().parents[2] / "LICENSE"
    assert (CHECKPOINT / "LICENSE").read_text(encoding="utf-8") == project.read_text(encoding="utf-8")
