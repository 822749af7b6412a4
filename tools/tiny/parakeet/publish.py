"""Folder of the small Parakeet: fp16 weights, configuration, tokenizer, processor; template of the model card."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import (
    ParakeetFeatureExtractor,
    ParakeetForTDT,
    ParakeetProcessor,
    ParakeetTokenizer,
)

from tools.tiny.parakeet.model import MELS
from tools.tiny.parakeet.tokenizer import PAD, UNKNOWN
from tools.tiny.parakeet.train import LANGUAGES
from tools.tiny.publishing import checkpoint_folder

# Longest segment in training, and so the limit at inference.
SEGMENT_SECONDS = 15.0

CARD = """\
---
license: apache-2.0
language: [en, ru]
pipeline_tag: automatic-speech-recognition
---
# parakeet-tdt-tiny

A speech recognizer of {parameters:.1f} M parameters in the architecture of Parakeet TDT (`ParakeetForTDT` of
transformers, fp16), to run the whole pipeline offline and to measure the cost of export and quantization. It
understands synthetic speech of a small domain — a voice assistant's commands, times, numbers, names and places in
English and Russian — and nothing else: **it is of no use on real recordings.**

Encoder: Fast Conformer of 4 layers, width 160, 5 heads, feed-forward 640, convolutions of 9 frames, eightfold
subsampling by 32 channels (a frame is 80 ms), 80 mel bands. Prediction network: 2 LSTM layers of 160. Joint network of
160 with durations from 0 to 4. BPE of 512 entries with capitals and punctuation, the blank last.

## Data
{utterances:,} utterances ({hours:.0f} hours) of random sentences, spoken by espeak-ng 1.51 in {voices} voice
variants with random speed and pitch, some of them joined up to 16 s, with silence, gain and noise; 2 % of the clips in
training are noise without speech. No recording of a person was used.

## Training
{steps:,} batches of {batch} utterances, AdamW at a peak of {peak:g}, warm-up and cosine, bf16 autocast, one thread.
espeak reports the time of each word and phoneme, so each token has a frame, and the decoder's loop has one path: the
loss is the cross-entropy of token and duration at each step of that path. Some steps in training go one frame too far
or not far enough. Beside it, frame-level cross-entropy of espeak's phonemes on the encoder's output through a temporary
head. `python -m tools.tiny.parakeet make` repeats all of it.

## Accuracy
Greedy, the exported float32 artifact in the runtime, on held-out utterances: new seeds, 40 % in a voice variant that
is not in the training data, with the same gain and noise. `python -m tools.tiny.parakeet evaluate` prints this table.

{table}

Words are counted without case and punctuation. Names that sound alike have their default spelling.

## Licence
Apache-2.0. The weights were trained from random values; no other model was used.
"""


def write_checkpoint(model: ParakeetForTDT, tokenizer: Tokenizer, out: Path, licence: Path) -> None:
    """Write everything but the card; replaces ``out``."""
    with checkpoint_folder(out, licence) as work:
        model.config.languages = list(LANGUAGES.values())
        model.config.segment_seconds = SEGMENT_SECONDS
        # transformers takes the maximum over all outputs of the joint network, in which durations follow the tokens.
        durations = range(model.config.vocab_size, model.config.vocab_size + len(model.config.durations))
        model.generation_config.suppress_tokens = list(durations)
        model.generation_config.decoder_start_token_id = model.config.blank_token_id
        model.to(torch.float16).save_pretrained(work)
        processor(tokenizer).save_pretrained(work)


def processor(tokenizer: Tokenizer) -> ParakeetProcessor:
    """Return transformers' processor with the small tokenizer."""
    text = ParakeetTokenizer(tokenizer_object=tokenizer, unk_token=UNKNOWN, pad_token=PAD)
    return ParakeetProcessor(ParakeetFeatureExtractor(feature_size=MELS), text, decoder_type="tdt")
