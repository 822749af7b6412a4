"""The checkpoint's folder: weights in fp16, configuration, tokenizer, processor, licence, model card."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3ASRFeatureExtractor,
    Qwen3ASRForConditionalGeneration,
    Qwen3ASRProcessor,
)

from tools.tiny.sentences import LANGUAGES

# Longest segment the model is asked to hear at once: what it was trained on.
SEGMENT_SECONDS = 15.0

# Qwen3-ASR's prompt as a chat template: one system turn with the context, one user turn with the audio, and the
# assistant's turn left open, with what is forced as its beginning.
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
(`Qwen3ASRForConditionalGeneration`, native layout, fp16), for seeing the whole pipeline work offline and for measuring
what export and quantization cost. It understands synthetic speech of a small domain — a voice assistant's commands,
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
Beside the text loss, frame-level cross-entropy of espeak's phonemes on the encoder's output through a head that is
thrown away. `make tiny` does all of it again.

## Accuracy
Greedy, on held-out utterances: new seeds, 40 % in a voice variant that training never heard, with the same gain and
noise. `python -m tools.tiny evaluate` prints this table again.

{table}

Words are counted without case and punctuation. Without a context the usual spelling of a name is written; with one,
the spelling that the context lists.

## Licence
Apache-2.0. The weights were trained from random values; nothing was taken from another model.
"""


def write_checkpoint(model: Qwen3ASRForConditionalGeneration, tokenizer: Tokenizer, out: Path, licence: Path) -> None:
    """Everything but the card, into a hidden folder that then takes the place of ``out``."""
    work = out.with_name(f".{out.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    model.config.support_languages = list(LANGUAGES.values())
    model.config.segment_seconds = SEGMENT_SECONDS
    model.config.text_config._attn_implementation = "sdpa"
    model.to(torch.float16).save_pretrained(work)
    processor(tokenizer).save_pretrained(work)
    shutil.copy(licence, work / "LICENSE")
    for path in work.iterdir():
        path.chmod(0o644)  # safetensors makes its file private
    shutil.rmtree(out, ignore_errors=True)
    work.rename(out)


def processor(tokenizer: Tokenizer) -> Qwen3ASRProcessor:
    """transformers' processor around the small tokenizer."""
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


def write_card(
    out: Path, table: str, *, parameters: int, utterances: int, hours: float, voices: int, schedule: str
) -> None:
    """``README.md`` of the checkpoint."""
    card = CARD.format(
        table=table, parameters=parameters / 1e6, utterances=utterances, hours=hours, voices=voices, schedule=schedule
    )
    (out / "README.md").write_text(card, encoding="utf-8")
