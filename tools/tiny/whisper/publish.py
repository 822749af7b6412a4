"""Folder of the small Whisper in the published layout: fp16 weights, configurations, tokenizer; card template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, WhisperForConditionalGeneration

from tools.tiny.publishing import checkpoint_folder
from tools.tiny.sentences import LANGUAGES
from tools.tiny.whisper.model import CONTEXT, HOP, MELS, N_FFT, RATE, ROW
from tools.tiny.whisper.tokenizer import POSITIONS, token_id

# Symbols that no sentence contains; published checkpoints suppress symbols that are not speech.
SYMBOLS = '"#()*+/;<=>@[\\]^_`{|}~'
# Largest first timestamp in steps of 0.02 s: 1 s.
MAX_INITIAL_TIMESTAMP = 50
NEVER_WRITTEN = (
    "<|startoftranscript|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
)

CARD = """\
---
license: apache-2.0
language: [en, ru, zh]
pipeline_tag: automatic-speech-recognition
---
# whisper-turbo-tiny

A speech recognizer of {parameters:.1f} M parameters in exactly the architecture of Whisper large-v3-turbo
(`WhisperForConditionalGeneration`: 128 mel bands, windows of 30 s, few decoder layers; fp16), to run the whole
pipeline offline and to measure the cost of export and quantization. It understands synthetic speech of a small
domain — a voice assistant's commands, times, numbers, names and places in English, Russian and Chinese — and nothing
else: **it is of no use on real recordings.**

Encoder: 4 layers, decoder: 3 layers; width 192, 3 heads of 64, inner width 768. Byte-level BPE of 900 entries, and
Whisper's special tokens with 1501 timestamps in the published order. It detects the language, writes timestamps of
sentences, and takes a text as previous context, in which hot words select between spellings. It cannot translate.

## Data
{utterances:,} utterances ({hours:.0f} hours) of random sentences, spoken by espeak-ng 1.51 in {voices} voice
variants with random speed and pitch, with silence, gain and noise; 3 % of the clips are noise without speech.
No recording of a person was used.

## Training
AdamW, warm-up and cosine, bf16 autocast, one thread:

{schedule}

Except for windows, the encoder runs on the rows that the clips of a batch need. Up to half of the texts have
timestamps. Beside the loss of the text, frame-level cross-entropy of espeak's phonemes on the
encoder's output through a temporary head, and a loss that guides one head of cross-attention in each decoder
layer to the time of the previous or the next token.
`python -m tools.tiny.whisper make` repeats all of it. The phases of this run were added one after
the other, according to errors on the held-out set.

## Accuracy
Greedy, exported in float32 and transcribed by the runtime without voice activity detection, on held-out utterances:
new seeds, 40 % in a voice variant that is not in the training data, with the same gain and noise.
`python -m tools.tiny.whisper evaluate` prints this table.

{table}

Words are counted without case and punctuation. Without a context the usual spelling of a name is written; with one,
the spelling that the context lists.

## Licence
Apache-2.0. The weights were trained from random values; no other model was used.
"""


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """``generation_config.json`` with the keys of the published ones."""

    def known(token: str) -> int:
        return token_id(tokenizer, token)

    stop = known("<|endoftext|>")
    symbols = {token for symbol in SYMBOLS for token in (symbol, f"Ġ{symbol}") if tokenizer.token_to_id(token)}
    return {
        # Published checkpoints also suppress the space, which is never a token of its own before a word there. Here it
        # is, before words whose first letter is merged with no other token.
        "begin_suppress_tokens": [stop],
        "bos_token_id": stop,
        "decoder_start_token_id": known("<|startoftranscript|>"),
        "eos_token_id": stop,
        "is_multilingual": True,
        "lang_to_id": {f"<|{code}|>": known(f"<|{code}|>") for code in LANGUAGES},
        "max_initial_timestamp_index": MAX_INITIAL_TIMESTAMP,
        "max_length": CONTEXT,
        "no_timestamps_token_id": known("<|notimestamps|>"),
        "pad_token_id": stop,
        "prev_sot_token_id": known("<|startofprev|>"),
        "return_timestamps": False,
        "suppress_tokens": sorted(map(known, (*symbols, *NEVER_WRITTEN))),
        "task_to_id": {"transcribe": known("<|transcribe|>")},  # the only trained task
    }


def preprocessor_config() -> dict[str, Any]:
    """``preprocessor_config.json``: the front end of large-v3."""
    return {
        "chunk_length": POSITIONS * ROW // RATE,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": MELS,
        "hop_length": HOP,
        "n_fft": N_FFT,
        "n_samples": POSITIONS * ROW,
        "nb_max_frames": POSITIONS * ROW // HOP,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
        "sampling_rate": RATE,
    }


def tokenizer_config() -> dict[str, Any]:
    """``tokenizer_config.json``, by which transformers opens ``tokenizer.json``."""
    end = "<|endoftext|>"
    return {
        "bos_token": end,
        "eos_token": end,
        "model_max_length": CONTEXT,
        "pad_token": end,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": end,
    }


def write_checkpoint(model: WhisperForConditionalGeneration, tokenizer: Tokenizer, out: Path, licence: Path) -> None:
    """Write everything but the card; replaces ``out``."""
    with checkpoint_folder(out, licence) as work:
        model.generation_config = GenerationConfig()
        model.to(torch.float16).save_pretrained(work)
        tokenizer.save(str(work / "tokenizer.json"))
        for name, content in (
            ("generation_config.json", generation_config(tokenizer)),
            ("preprocessor_config.json", preprocessor_config()),
            ("tokenizer_config.json", tokenizer_config()),
        ):
            (work / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
