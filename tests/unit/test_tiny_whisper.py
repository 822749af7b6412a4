"""Targets, scenes, training and published files of the small Whisper."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from export.checkpoints import CheckpointFolder
from export.families.whisper.exporter import Whisper
from runtime.features.log_mel import LogMelConfig
from runtime.features.log_mel import log_mel as runtime_log_mel
from tests.conftest import REPOSITORY
from tools.tiny.dataset import Corpus, Item, generate, phoneme_table
from tools.tiny.loop import Plan
from tools.tiny.whisper import publish
from tools.tiny.whisper.model import HOP, WINDOW, log_mel, untrained
from tools.tiny.whisper.targets import NOTHING, Writer, phrases, times, usual
from tools.tiny.whisper.tokenizer import POSITIONS, train_tokenizer
from tools.tiny.whisper.train import ClipBatches, Scenes, Trainee, WindowBatches

TEXT = "Jon lives in the office. It is 37 degrees."
# The article has no mark, and the number has two, of which the second is not another number.
WORDS = [
    (0.5, "Jon"),
    (0.8, "lives"),
    (1.1, "in"),
    (1.4, "office"),
    (2.5, "It"),
    (2.6, "is"),
    (2.8, "37"),
    (3.0, "7 "),
    (3.3, "degrees"),
]
PHONEMES = [(0.0, "_"), (0.5, "dZ"), (1.9, "s"), (2.0, "_"), (2.5, "I"), (3.7, "z"), (3.9, "_")]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus") / "c"
    generate(folder, 48, 4, workers=1)
    return Corpus(folder)


@pytest.fixture
def item() -> Item:
    return Item("en", TEXT, "Names: Jon.", ["Jon"], "en-us+m1", 0, 64_000, WORDS, PHONEMES)


def read(tokenizer: Tokenizer, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def test_sentences_start_with_a_word_and_end_with_a_sound(item: Item) -> None:
    assert times(item) == [(0.5, 2.0), (2.5, 3.9)]


def test_tokens_have_the_times_of_their_words(item: Item, tokenizer: Tokenizer) -> None:
    first, second = phrases(item, tokenizer, usual(item))
    assert read(tokenizer, first.tokens) == " John lives in the office."
    assert read(tokenizer, second.tokens) == " It is 37 degrees."
    for phrase in (first, second):
        begins = [begin for begin, _ in phrase.spans]
        assert begins == sorted(begins)
        assert all(phrase.start - 1e-6 <= begin <= end <= phrase.end + 1e-6 for begin, end in phrase.spans)
    pieces = [tokenizer.decode([token]) for token in second.tokens]
    assert second.spans[pieces.index("3")][0] == pytest.approx(2.8)
    assert first.later(10.0).spans[0][0] == pytest.approx(10.5)


def test_names_have_the_spelling_of_a_context_or_the_default(item: Item, tokenizer: Tokenizer) -> None:
    assert usual(item).startswith("John ")
    assert read(tokenizer, phrases(item, tokenizer, item.text)[0].tokens).startswith(" Jon ")


def test_rows_have_the_order_of_whisper(item: Item, tokenizer: Tokenizer) -> None:
    writer, sentences = Writer(tokenizer), phrases(item, tokenizer, item.text)
    row = writer.speech("en", sentences, timed=True, context=writer.text_ids(item.context), cut=5.0)
    assert read(tokenizer, row.ids) == (
        "<|startofprev|> Names: Jon.<|startoftranscript|><|en|><|transcribe|><|0.50|> Jon lives in the office.<|2.00|>"
        "<|2.50|> It is 37 degrees.<|3.90|><|5.00|><|endoftext|>"
    )
    start = row.ids.index(writer.start)
    learned = [target for target in row.targets if target >= 0]
    # Before the text only the language is a target.
    assert learned == [row.ids[start + 1], *row.ids[start + 3 :]]
    assert row.targets[start] == row.ids[start + 1]
    plain = writer.speech("en", sentences, timed=False, cut=None)
    assert read(tokenizer, plain.ids) == (
        "<|startoftranscript|><|en|><|transcribe|><|notimestamps|> Jon lives in the office. It is 37 degrees."
        "<|endoftext|>"
    )


def test_rows_without_speech_have_the_no_speech_token_and_a_stop(tokenizer: Tokenizer) -> None:
    writer = Writer(tokenizer)
    for timed in (False, True):
        row = writer.silence("ru", timed=timed, wrong=300)
        assert row.targets[0] == writer.no_speech
        assert row.targets[-2] == writer.stop
        assert NOTHING not in writer.silence("ru", timed=True, wrong=300).targets
    # Decoding rules forbid an empty text: the stop follows the token that is written instead.
    plain = writer.silence("ru", timed=False, wrong=300)
    index = plain.ids.index(300)
    assert plain.targets[index - 1 : index + 1] == [NOTHING, writer.stop]


def test_windows_have_whole_sentences_and_the_start_of_a_cut_one(corpus: Corpus, tokenizer: Tokenizer) -> None:
    scenes = Scenes([corpus], tokenizer, phoneme_table(corpus.items))
    zero, cuts = scenes.writer.zero, 0
    for seed in range(12):
        scene = scenes.window(np.random.default_rng(seed))
        assert len(scene.wave) <= WINDOW
        stamps = [token - zero for token in scene.row.ids if token >= zero]
        assert stamps == sorted(stamps)
        assert all(0 <= stamp <= POSITIONS for stamp in stamps)
        assert len({item.language for item, _ in scene.placed}) == 1
        cuts += len(stamps) % 2
    assert cuts  # sentences that end after the window have only a start


@pytest.mark.slow
def test_the_training_encoder_equals_that_of_the_model(corpus: Corpus, tokenizer: Tokenizer) -> None:
    """On a whole window; all weights have gradients, for clips and for windows."""
    phonemes = phoneme_table(corpus.items)
    trainee = Trainee(tokenizer, len(phonemes) + 1)
    clips = ClipBatches(corpus, tokenizer, phonemes, Plan(steps=2, batch=3), seconds=(0, 4.5), latest=900)
    windows = WindowBatches([corpus], tokenizer, phonemes, Plan(steps=2, batch=1))
    batch = windows.make(0)
    assert batch.features.shape == (1, 128, 2 * POSITIONS)
    with torch.no_grad():
        reference = trainee.asr.model.encoder(batch.features).last_hidden_state
        torch.testing.assert_close(trainee.encode(batch.features, batch.first), reference, rtol=1e-4, atol=1e-4)
    for source in (clips.make(0), batch):
        trainee.zero_grad()
        terms = trainee(source)
        assert terms.keys() == {"text", "phonemes", "guide"}
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        for name, parameter in trainee.named_parameters():
            if "embed_positions" not in name or "decoder" in name:
                assert parameter.grad is not None, name
                assert torch.isfinite(parameter.grad).all(), name


def test_training_and_runtime_have_the_same_features(speech: np.ndarray) -> None:
    samples = 60_000 // HOP * HOP
    clips = [speech[:20_000], speech[20_000:60_000]]
    features = log_mel(clips, samples).numpy()
    for row, clip in enumerate(clips):
        reference = runtime_log_mel(clip, LogMelConfig("whisper-log-mel", 16_000, 400, 160, 128, samples))
        assert np.abs(features[row] - reference).max() < 1e-3


def test_the_exporter_reads_published_checkpoints(tmp_path: Path, tokenizer: Tokenizer) -> None:
    out = tmp_path / "checkpoint"
    publish.write_checkpoint(untrained(tokenizer, 1), tokenizer, out, REPOSITORY / "LICENSE")
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json", "LICENSE"} <= names
    assert sum(path.stat().st_size for path in out.iterdir()) < 12e6
    loaded = Whisper(CheckpointFolder(out, "", None))
    assert [language.code for language in loaded.languages] == ["en", "ru", "zh"]
    generation = json.loads((out / "generation_config.json").read_text())
    assert tokenizer.token_to_id("<|0.00|>") == generation["no_timestamps_token_id"] + 1
    assert loaded.parameters["no_speech_id"] == tokenizer.token_to_id("<|nospeech|>")
    # No token that a sentence needs is suppressed.
    needed = tokenizer.encode(" It's 12:40, isn't it? Yes! 你好，再见。Привет.", add_special_tokens=False).ids
    assert not set(needed) & set(generation["suppress_tokens"])
