"""Labels, features, training, files and card of the small GigaAM."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.checkpoints import CHECKPOINTS, CheckpointFolder
from export.families.gigaam.exporter import GigaAM
from runtime.features.htk_log_mel import HtkLogMelConfig, htk_log_mel
from tests.conftest import REPOSITORY
from tools.tiny.dataset import Corpus, Item, generate, phoneme_table
from tools.tiny.evaluate import VoiceRates, normalize
from tools.tiny.gigaam.measure import Figures, missed, table
from tools.tiny.gigaam.model import BLANK, LETTERS, letters, log_mel
from tools.tiny.gigaam.publish import write_checkpoint
from tools.tiny.gigaam.train import IGNORED, Batches, Trainee, letter_frames, letter_weight, suited
from tools.tiny.loop import Plan, train
from tools.tiny.sentences import sentence
from tools.tiny.word_times import StartErrors

CHECKPOINT = CHECKPOINTS["gigaam-v3-tiny"].bundled or Path()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    generate(folder, 45, 4, workers=1, joined=0.5)
    return Corpus(folder)


def item(words: Sequence[tuple[float, str]], seconds: float, silences: Sequence[float] = ()) -> Item:
    """Return an item with a phoneme from the start of each word, and silence from each of ``silences``."""
    sounds = sorted([(0.0, "_"), *((start, "a") for start, _ in words), *((start, "_") for start in silences)])
    text = " ".join(word for _, word in words)
    return Item("ru", text, "", [], "ru+m1", 0, int(seconds * 16_000), list(words), sounds)


def as_text(frames: np.ndarray) -> str:
    signs = {BLANK: ".", IGNORED: "?"} | dict(enumerate(LETTERS))
    return "".join(signs[frame] for frame in frames.tolist())


def read(frames: np.ndarray) -> list[int]:
    """Decode frames by greedy CTC."""
    mask = np.concatenate([[True], frames[1:] != frames[:-1]]) & (frames != BLANK)
    ids: list[int] = frames[mask].tolist()
    return ids


def test_letters_are_spread_from_the_start_of_a_word_to_the_end_of_its_sound() -> None:
    spoken = item([(0.20, "Дом"), (0.64, "да")], 1.2, [0.44, 0.80])
    assert as_text(letter_frames(spoken, 30)) == ".....д.о.м..... д.а..........."


def test_equal_letters_in_a_row_have_a_blank_between() -> None:
    spoken = item([(0.0, "33"), (0.12, "ввоз")], 0.4, [0.34])
    frames = letter_frames(spoken, 10)
    assert as_text(frames)[:3] == "?? "  # no room for two threes and the blank between before the space
    assert read(frames[3:]) == letters("ввоз")


def test_a_short_word_keeps_its_first_frame_and_leaves_one_for_the_space() -> None:
    frames = letter_frames(item([(0.0, "и"), (0.08, "вот")], 0.4, [0.3]), 9)
    assert as_text(frames)[:3] == "и в"


def test_a_word_without_a_frame_of_its_own_starts_earlier() -> None:
    spoken = item([(0.0, "он"), (0.2, "и"), (0.24, "вот")], 0.48, [0.4])
    assert as_text(letter_frames(spoken, 12)) == "о.н и во.т.."


def test_frames_of_utterances_decode_to_their_texts(corpus: Corpus) -> None:
    chosen = suited(corpus.items)
    assert len(chosen) >= 10
    for each in chosen:
        frames = letter_frames(each, each.count // 640)
        if IGNORED not in frames:
            assert read(frames) == letters(each.text), each.text
        for (start, word), (following, _) in pairwise(each.words):
            if round(following / 0.04) - round(start / 0.04) > 1:
                assert frames[round(start / 0.04)] in (letters(word)[0], IGNORED)
    assert np.mean(np.concatenate([letter_frames(each, each.count // 640) for each in chosen]) == IGNORED) < 0.03


def test_the_vocabulary_covers_the_corpus() -> None:
    rng = random.Random(3)
    for _ in range(400):
        text = sentence("ru", rng).text
        assert "".join(LETTERS[index] for index in letters(text)) == normalize(text)
    with pytest.raises(ValueError, match="'h'"):
        letters("Hi")


def test_training_uses_only_russian_without_contexts(corpus: Corpus) -> None:
    assert any(each.hot for each in corpus.items if each.language == "ru")
    assert all(each.language == "ru" and not each.hot for each in suited(corpus.items))


def test_training_and_runtime_have_the_same_features(speech: np.ndarray) -> None:
    config = HtkLogMelConfig("htk-log-mel", 16_000, 320, 160, 64, 320)
    clips = [speech[:20_000], speech[:100], speech[20_000:60_010]]
    features, frames = log_mel(clips)
    for row, clip in enumerate(clips):
        reference = htk_log_mel(clip, config)
        assert frames[row] == reference.shape[1]
        # Rounding is largest near silence: the bound is on a natural logarithm of powers down to 1e-9.
        assert np.abs(features[row].numpy()[:, : reference.shape[1]] - reference).max() < 5e-3


@pytest.mark.slow
def test_training_resumes_and_learns(corpus: Corpus, tmp_path: Path) -> None:
    """An interrupted run gives the same weights, and all terms of the loss fall."""
    phonemes = phoneme_table(suited(corpus.items))
    weights, terms = [], []
    for name, rounds in (("once", (8,)), ("twice", (4, 8))):
        for steps in rounds:
            batches = Batches([corpus], phonemes, Plan(steps=8, batch=4, warmup=1), (1.0, 0.5))
            trainee = Trainee(len(phonemes) + 1)
            for done, means in train(trainee, batches, tmp_path / name, save_every=4):
                terms.append(means)
                if done == steps:
                    break
        weights.append({key: value.clone() for key, value in trainee.state_dict().items()})
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=0, atol=0)
    assert all(terms[1][name] < terms[0][name] for name in ("ctc", "letters", "phonemes"))


def test_the_letters_weight_falls_until_the_middle() -> None:
    plan = Plan(steps=100)
    assert [letter_weight(step, plan, (1.0, 0.02)) for step in (0, 25, 50, 99)] == pytest.approx(
        [1.0, 0.51, 0.02, 0.02]
    )


def test_a_written_checkpoint_has_the_trained_weights(tmp_path: Path) -> None:
    trained = Trainee(5).asr
    out = tmp_path / "written"
    write_checkpoint(trained, out, REPOSITORY / "LICENSE")
    family = GigaAM(CheckpointFolder(out, "x", None))
    assert family.parameters["segment_seconds"] == 15.0
    assert family.tokenizer.decode(letters("Ёлка в 7:30")) == "ёлка в 7 30"
    for name, parameter in trained.named_parameters():
        assert torch.equal(family.model.get_parameter(name), parameter.half().float())
    write_checkpoint(trained, out, REPOSITORY / "LICENSE")  # replaces the former one
    assert {path.name for path in out.iterdir()} == {"LICENSE", "config.json", "pytorch_model.bin"}


GOOD = Figures(100, VoiceRates(0.02, 0.02, 0.02), 0.9, 100, 1.0, StartErrors(9, 9, 0.02, 0.01, 0.0, 1.0))


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"rates": VoiceRates(0.05, 0.02, 0.02)}, ("error rate", "0.050", "0.04")),
        ({"empty": 0.9}, ("empty", "0.900", "0.95")),
        ({"starts": StartErrors(9, 0, *[math.nan] * 4)}, ("word starts", "nan", "0.05")),
    ],
)
def test_a_missed_target_is_reported(change: dict[str, Any], facts: tuple[str, ...]) -> None:
    assert missed(GOOD) == []
    (sentence,) = missed(dataclasses.replace(GOOD, **change))
    assert all(fact in sentence for fact in facts)


def test_the_card_meets_the_targets() -> None:
    """The table has the form that `evaluate` prints, and the folder is small."""
    card = (CHECKPOINT / "README.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in card.splitlines() if line.startswith("| ")}
    assert list(rows) == [line.split("|")[1].strip() for line in table(GOOD).splitlines() if line.startswith("| ")]
    assert float(rows["Russian"][0].strip(" %")) <= 4.0
    assert float(rows["empty text on clips without speech"][0].split("%")[0]) >= 95.0
    assert float(rows["starts of words"][0].split()[0]) <= 50
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) < 7e6
