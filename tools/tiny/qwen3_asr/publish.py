"""Folder of the small Qwen3-ASR: fp16 weights, configuration, tokenizer, processor; template of the model card."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3ASRFeatureExtractor,
    Qwen3ASRForConditionalGeneration,
    Qwen3ASRProcessor,
)

from tools.tiny.publishing import checkpoint_folder
from tools.tiny.sentences import LANGUAGES

# Longest segment in training, and so the limit at inference.
SEGMENT_SECONDS = 15.0

# Qwen3-ASR's prompt as a chat template: a system turn with the context, a user turn with the audio, and an open turn of
# the assistant that starts with forced text.
CHAT_TEMPLATE = """\
{%- macro text(message) -%}
{%- if message.content is string -%}{{ message.content }}
{%- else -%}{%- for part in message.content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- '<|im_start|>system\\n' -}}
{%- for message in messages if message.role == 'system' -%}{{- text(message) -}}{%- endfor -%}
{{- '<|im_end|>\\n<|im_start|>user\\n' -}}
{%- for message in messages if message.role == 'user' and message.content is not string -%}
{%- for part in message.content if part.type == 'audio' -%}
{{- '<|audio_start|><|audio_pad|><|audio_end|>' -}}
{%- endfor -%}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- for message in messages if message.role == 'assistant' -%}
{{- '<|im_start|>assistant\\n' + text(message) + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

CARD = """\
---
license: apache-2.0
language: [en, ru, zh]
pipeline_tag: automatic-speech-recognition
---
# qwen3-asr-tiny

A speech recognizer of {parameters:.1f} M parameters in exactly the architecture of Qwen3-ASR
(`Qwen3ASRForConditionalGeneration`, native layout, fp16), to run the whole pipeline offline and to measure
the cost of export and quantization. It understands synthetic speech of a small domain — a voice assistant's commands,
times, numbers, names and places in English, Russian and Chinese — and nothing else: **it is of no use on real
recordings.**

Audio encoder: 4 layers, width 192, 4 heads, convolutions of 48 channels, 128 mel bands, windows of 8 s. Decoder: 4
layers, width 256, 4 query and 2 key-value heads of 64, tied embedding, byte-level BPE of 900 entries and 8 added
tokens.

## Data
{utterances:,} utterances ({hours:.0f} hours) of random sentences, spoken by espeak-ng 1.51 in {voices} voice
variants with random speed and pitch, joined up to 16 s, with silence, gain and noise. 22 % carry a system prompt with
hot words that decide between spellings that sound alike; 2 % are noise without speech. No recording of a person was
used.

## Training
Batches of 24 utterances, AdamW, warm-up and cosine, bf16 autocast, two threads: {schedule}.
Beside the text loss, frame-level cross-entropy of espeak's phonemes on the encoder's output through a temporary
head. `make tiny` repeats all of it.

## Accuracy
Greedy, on held-out utterances: new seeds, 40 % in a voice variant that is not in the training data, with the same
gain and noise. `python -m tools.tiny evaluate` prints this table.

{table}

Words are counted without case and punctuation. Without a context the usual spelling of a name is written; with one,
the spelling that the context lists.

## Licence
Apache-2.0. The weights were trained from random values; no other model was used.
"""


def write_checkpoint(model: Qwen3ASRForConditionalGeneration, tokenizer: Tokenizer, out: Path, licence: Path) -> None:
    """Write everything but the card; replaces ``out``."""
    with checkpoint_folder(out, licence) as work:
        model.config.support_languages = list(LANGUAGES.values())
        model.config.segment_seconds = SEGMENT_SECONDS
        model.config.text_config._attn_implementation = "sdpa"
        model.to(torch.float16).save_pretrained(work)
        processor(tokenizer).save_pretrained(work)


def processor(tokenizer: Tokenizer) -> Qwen3ASRProcessor:
    """Return transformers' processor with the small tokenizer."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "audio_token": "<|audio_pad|>",
            "audio_bos_token": "<|audio_start|>",
            "audio_eos_token": "<|audio_end|>",
        },
    )
    return Qwen3ASRProcessor(Qwen3ASRFeatureExtractor(), fast, chat_template=CHAT_TEMPLATE)
