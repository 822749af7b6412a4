"""Corpora, tokenizer, training and card of the small Qwen3-ASR."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from tests.conftest import CHECKPOINT
from tools.tiny.dataset import Corpus, generate, phoneme_table
from tools.tiny.espeak import Espeak
from tools.tiny.evaluate import error_rate, held_out, normalize
from tools.tiny.loop import Plan, train
from tools.tiny.qwen3_asr.model import log_mel, token_counts
from tools.tiny.qwen3_asr.tokenizer import PLAIN, SPECIAL, train_tokenizer
from tools.tiny.qwen3_asr.train import Batches, Trainee
from tools.tiny.sentences import HOMOPHONES, LANGUAGES, chinese_number, sentence
from tools.tiny.synth import HELD_OUT_VOICES, VARIANTS, VOICES, augment, noise_only, utterance


@pytest.fixture(scope="module")
def espeak() -> Espeak:
    return Espeak()


def test_hot_words_of_a_group_sound_alike(espeak: Espeak) -> None:
    """Then the context decides the spelling, not the audio."""
    for language, groups in HOMOPHONES.items():
        for group in groups:
            sounds = {espeak.phonemes(name, VOICES[language][0]) for name in group}
            assert len(sounds) == 1, group


def test_held_out_voices_are_not_in_training(espeak: Espeak) -> None:
    assert not set(HELD_OUT_VOICES.values()) & set(VARIANTS)
    rng = random.Random(1)
    assert all(utterance(espeak, rng, "ru").voice.split("+")[1] in VARIANTS for _ in range(30))
    assert utterance(espeak, rng, "zh", held_out_voice=True).voice.endswith(HELD_OUT_VOICES["zh"])


def test_contexts_select_spellings_and_defaults_apply_without() -> None:
    rng = random.Random(5)
    decided = 0
    for index in range(600):
        language = list(LANGUAGES)[index % 3]
        biased = sentence(language, rng, with_context=True)
        assert biased.context
        for word in biased.hot:
            assert word in biased.text
            assert word in biased.context
        decided += bool(biased.hot)
        plain = sentence(language, rng)
        others = {name for group in HOMOPHONES[language] for name in group[1:]}
        assert not others & set(plain.text.replace(",", " ").replace(".", " ").split())
    assert decided > 250


def test_generation_is_reproducible(tmp_path: Path) -> None:
    for name, workers in (("a", 1), ("b", 2)):
        generate(tmp_path / name, 12, 3, workers=workers, block=5)
    assert (tmp_path / "a" / "index.json").read_bytes() == (tmp_path / "b" / "index.json").read_bytes()
    assert (tmp_path / "a" / "audio.i16").read_bytes() == (tmp_path / "b" / "audio.i16").read_bytes()
    corpus = Corpus(tmp_path / "a")
    assert len(corpus) == 12
    for item in corpus.items:
        assert len(corpus.samples(item)) == item.count <= 16 * 16_000
        times = [start for start, _ in item.words]
        assert times == sorted(times)


def test_marks_are_at_the_start_of_words(espeak: Espeak) -> None:
    """There is silence before the first mark, and sound after it."""
    spoken = utterance(espeak, random.Random(2), "en")
    samples = spoken.samples / 32768
    start = int(spoken.words[0].start * 16_000)
    assert np.abs(samples[: start - 200]).max() < 1e-3
    assert np.abs(samples[start : start + 8_000]).max() > 0.05


def test_chinese_numbers() -> None:
    assert [chinese_number(n) for n in (0, 7, 10, 15, 20, 42, 99)] == [
        "零",
        "七",
        "十",
        "十五",
        "二十",
        "四十二",
        "九十九",
    ]


@pytest.mark.slow
def test_interrupted_training_gives_the_same_weights(tmp_path: Path) -> None:
    """Two steps, then two more from the state on disk, give the weights of four steps in a row."""
    generate(tmp_path / "c", 50, 4, workers=1)
    corpus = Corpus(tmp_path / "c")
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    phonemes = phoneme_table(corpus.items)
    weights = []
    for name, rounds in (("once", (4,)), ("twice", (2, 4))):
        for steps in rounds:
            # the plan has four steps; the first round stops after two
            batches = Batches(corpus, tokenizer, phonemes, Plan(steps=4, batch=4, warmup=1))
            trainee = Trainee(tokenizer, len(phonemes) + 1)
            for done, _ in train(trainee, batches, tmp_path / name, save_every=2):
                if done == steps:
                    break
        weights.append({key: value.clone() for key, value in trainee.state_dict().items()})
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=0, atol=0)


def test_training_and_runtime_have_the_same_features(speech: np.ndarray) -> None:
    from runtime.features.log_mel import LogMelConfig
    from runtime.features.log_mel import log_mel as runtime_log_mel

    clips = [speech[:20_000], speech[:4_000], speech[20_000:60_000]]
    features, frames = log_mel(clips)
    config = LogMelConfig("whisper-log-mel", 16_000, 400, 160, 128, 8_000)
    for row, clip in enumerate(clips):
        reference = runtime_log_mel(clip, config)
        assert frames[row] == reference.shape[1]
        # A batch is padded before its features, so a clip's last two frames may see another edge.
        inner = slice(0, reference.shape[1] - 2)
        assert np.abs(features[row].numpy()[:, inner] - reference[:, inner]).max() < 1e-3
    assert token_counts(torch.tensor([100, 150, 50])).tolist() == [13, 20, 7]


def test_the_card_meets_the_targets() -> None:
    card = (CHECKPOINT / "README.md").read_text(encoding="utf-8")
    rates = {
        line.split("|")[1].split()[0]: line.split("|")[2:]
        for line in card.splitlines()
        if "(words)" in line or "(characters)" in line
    }
    assert set(rates) == {"English", "Russian", "Chinese"}
    assert all(float(cells[0].strip(" %")) <= 3.0 for cells in rates.values())
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) < 14e6


def test_tokenizer_and_metrics() -> None:
    rng = random.Random(1)
    texts = [sentence(language, rng, with_context=True).text for language in LANGUAGES for _ in range(1500)]
    tokenizer = train_tokenizer(texts)
    assert tokenizer.get_vocab_size() == 900 + len(SPECIAL) + len(PLAIN)
    for text in (*texts[:20], "ünïcode 🎉 <asr_text>"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert normalize("Wake ME up, at 7:30!") == "wake me up at 7 30"
    assert error_rate("en", ["one two three four"], ["One, two tree four."]) == 0.25
    assert error_rate("zh", ["今天很热。"], ["今天很冷"]) == 0.25


def test_augmentation_stays_in_range() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        clip = noise_only(rng)
        assert clip.dtype == np.float32
        assert np.abs(clip).max() <= 1
        assert 0.2 * 16_000 < len(clip) <= 8 * 16_000
        loud = augment(np.ones(1000, np.float32), rng)
        assert loud.dtype == np.float32
        assert np.abs(loud).max() <= 1


def test_held_out_sets_are_reproducible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.tiny.evaluate.UTTERANCES", 6)
    monkeypatch.setattr("tools.tiny.evaluate.CONTEXT_UTTERANCES", 6)
    first, again = held_out(tmp_path / "a"), held_out(tmp_path / "b")
    assert [item.text for item in first.items] == [item.text for item in again.items]
    np.testing.assert_array_equal(first.clips[3], again.clips[3])
    assert all(item.context for item in first.context_items)
    assert len(first.noise) == 100
