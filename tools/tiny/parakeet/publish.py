"""The checkpoint's folder: weights in fp16, configuration, tokenizer, processor, licence, model card."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import (
    ParakeetFeatureExtractor,
    ParakeetForTDT,
    ParakeetProcessor,
    ParakeetTokenizer,
)

from tools.tiny.loop import Plan
from tools.tiny.parakeet.model import MELS
from tools.tiny.parakeet.tokenizer import PAD, UNKNOWN
from tools.tiny.parakeet.train import LANGUAGES

# Longest segment the model is asked to hear at once: what it was trained on.
SEGMENT_SECONDS = 15.0

CARD = """\
---
license: apache-2.0
language: [en, ru]
pipeline_tag: automatic-speech-recognition
---
# parakeet-tdt-tiny

A speech recognizer of {parameters:.1f} M parameters in the architecture of Parakeet TDT (`ParakeetForTDT` of
transformers, fp16), for seeing the whole pipeline work offline and for measuring what export and quantization cost. It
understands synthetic speech of a small domain — a voice assistant's commands, times, numbers, names and places in
English and Russian — and nothing else: **it is of no use on real recordings.**

Encoder: Fast Conformer of 4 layers, width 160, 5 heads, feed-forward 640, convolutions of 9 frames, eightfold
subsampling by 32 channels (a frame is 80 ms), 80 mel bands. Prediction network: 2 LSTM layers of 160. Joint network of
160 with durations from 0 to 4. BPE of 512 entries with capitals and punctuation, the blank last.

## Data
{utterances:,} utterances ({hours:.0f} hours) of random sentences, spoken by espeak-ng 1.51 in {voices} voice
variants with random speed and pitch, some of them joined up to 16 s, with silence, gain and noise; 2 % of what is heard
in training is noise without speech. No recording of a person was used.

## Training
{steps:,} batches of {batch} utterances, AdamW at a peak of {peak:g}, warm-up and cosine, bf16 autocast, one thread.
espeak tells when each word and phoneme is said, so each token has a frame, and with it the decoder's loop one path: the
loss is the cross-entropy of token and duration at each place of that path, from which training strays by a frame now
and then. Beside it, frame-level cross-entropy of espeak's phonemes on the encoder's output through a head that is
thrown away. `python -m tools.tiny.parakeet make` does all of it again.

## Accuracy
Greedy, the exported float32 artifact in the runtime, on held-out utterances: new seeds, 40 % in a voice variant that
training never heard, with the same gain and noise. `python -m tools.tiny.parakeet evaluate` prints this table again.

{table}

Words are counted without case and punctuation. Of names that sound alike the usual spelling is written.

## Licence
Apache-2.0. The weights were trained from random values; nothing was taken from another model.
"""


def write_checkpoint(model: ParakeetForTDT, tokenizer: Tokenizer, out: Path, licence: Path) -> None:
    """Everything but the card, into a hidden folder that then takes the place of ``out``."""
    work = out.with_name(f".{out.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    model.config.languages = list(LANGUAGES.values())
    model.config.segment_seconds = SEGMENT_SECONDS
    # Generation picks among all of the joint network's outputs: durations must not be taken for tokens.
    durations = range(model.config.vocab_size, model.config.vocab_size + len(model.config.durations))
    model.generation_config.suppress_tokens = list(durations)
    model.generation_config.decoder_start_token_id = model.config.blank_token_id
    model.to(torch.float16).save_pretrained(work)
    processor(tokenizer).save_pretrained(work)
    shutil.copy(licence, work / "LICENSE")
    for path in work.iterdir():
        path.chmod(0o644)  # safetensors makes its file private
    shutil.rmtree(out, ignore_errors=True)
    work.rename(out)


def processor(tokenizer: Tokenizer) -> ParakeetProcessor:
    """transformers' processor around the small tokenizer."""
    text = ParakeetTokenizer(tokenizer_object=tokenizer, unk_token=UNKNOWN, pad_token=PAD)
    return ParakeetProcessor(ParakeetFeatureExtractor(feature_size=MELS), text, decoder_type="tdt")


def write_card(
    out: Path, table: str, *, parameters: int, utterances: int, hours: float, voices: int, plan: Plan
) -> None:
    """``README.md`` of the checkpoint."""
    card = CARD.format(
        table=table,
        parameters=parameters / 1e6,
        utterances=utterances,
        hours=hours,
        voices=voices,
        steps=plan.steps,
        batch=plan.batch,
        peak=plan.peak,
    )
    (out / "README.md").write_text(card, encoding="utf-8")
