"""The checkpoint's folder as Whisper's are published: weights in fp16, configurations, tokenizer, licence, card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, WhisperForConditionalGeneration

from tools.tiny.sentences import LANGUAGES
from tools.tiny.whisper.model import CONTEXT, HOP, MELS, N_FFT, RATE, ROW
from tools.tiny.whisper.tokenizer import POSITIONS, token_id

# What no sentence has, as the published lists hold what is no speech.
SYMBOLS = '"#()*+/;<=>@[\\]^_`{|}~'
# The first beginning in timestamps: 1 s.
MAX_INITIAL_TIMESTAMP = 50
NEVER_SAID = (
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
(`WhisperForConditionalGeneration`: 128 mel bands, windows of 30 s, few decoder layers; fp16), for seeing the whole
pipeline work offline and for measuring what export and quantization cost. It understands synthetic speech of a small
domain — a voice assistant's commands, times, numbers, names and places in English, Russian and Chinese — and nothing
else: **it is of no use on real recordings.**

Encoder: 4 layers, decoder: 3 layers; width 192, 3 heads of 64, inner width 768. Byte-level BPE of 900 entries, and
Whisper's special tokens with 1501 timestamps in the published order. It detects the language, says timestamps of
sentences, and takes a text as previous context, in which hot words decide between spellings. It was not taught to
translate.

## Data
{utterances:,} utterances ({hours:.0f} hours) of random sentences, spoken by espeak-ng 1.51 in {voices} voice
variants with random speed and pitch, with silence, gain and noise; 3 % of what it was shown is noise without speech.
No recording of a person was used.

## Training
AdamW, warm-up and cosine, bf16 autocast, one thread:

{schedule}

Where the list does not say windows, the encoder is run on as many rows as the clips of a batch need. Up to half of the
texts have timestamps. Beside the loss of the text, frame-level cross-entropy of espeak's phonemes on the
encoder's output through a head that is thrown away, and a loss that shows one head of cross-attention in each decoder
layer when the token before and the next one are spoken.
`python -m tools.tiny.whisper make` does all of it again. These weights are of a run whose phases were added one after
the other, by what was heard wrong in the held-out set.

## Accuracy
Greedy, exported in float32 and transcribed by the runtime without voice activity detection, on held-out utterances:
new seeds, 40 % in a voice variant that training never heard, with the same gain and noise.
`python -m tools.tiny.whisper evaluate` prints this table again.

{table}

Words are counted without case and punctuation. Without a context the usual spelling of a name is written; with one,
the spelling that the context lists.

## Licence
Apache-2.0. The weights were trained from random values; nothing was taken from another model.
"""


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """``generation_config.json`` with the keys of the published ones."""

    def known(token: str) -> int:
        return token_id(tokenizer, token)

    stop = known("<|endoftext|>")
    symbols = {token for symbol in SYMBOLS for token in (symbol, f"Ġ{symbol}") if tokenizer.token_to_id(token)}
    return {
        # The published ones forbid the space, too. Theirs is never alone before a word; here it is before every word
        # whose first letters were merged with none.
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
        "suppress_tokens": sorted(map(known, (*symbols, *NEVER_SAID))),
        "task_to_id": {"transcribe": known("<|transcribe|>")},  # all that it was taught
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
    """Everything but the card, into a hidden folder that then takes the place of ``out``."""
    work = out.with_name(f".{out.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    model.generation_config = GenerationConfig()
    model.to(torch.float16).save_pretrained(work)
    tokenizer.save(str(work / "tokenizer.json"))
    for name, content in (
        ("generation_config.json", generation_config(tokenizer)),
        ("preprocessor_config.json", preprocessor_config()),
        ("tokenizer_config.json", tokenizer_config()),
    ):
        (work / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.copy(licence, work / "LICENSE")
    for path in work.iterdir():
        path.chmod(0o644)  # safetensors makes its file private
    shutil.rmtree(out, ignore_errors=True)
    work.rename(out)


def write_card(
    out: Path, table: str, *, parameters: int, utterances: int, hours: float, voices: int, schedule: str
) -> None:
    """``README.md`` of the checkpoint."""
    card = CARD.format(
        table=table, parameters=parameters / 1e6, utterances=utterances, hours=hours, voices=voices, schedule=schedule
    )
    (out / "README.md").write_text(card, encoding="utf-8")
