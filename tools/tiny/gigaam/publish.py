"""Folder of the small GigaAM in the published layout: fp16 weights, configuration; template of the model card."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from export.families.gigaam.exporter import FILTERS, WINDOW
from export.families.gigaam.model import GigaAMCtc
from export.file_names import PICKLED
from runtime.features.htk_log_mel import htk_mel_filters
from tools.tiny.gigaam.model import HEADS, LAYERS, MELS, N_FFT, RATE, WIDTH, config
from tools.tiny.publishing import checkpoint_folder

# Fields of the card.
SIZES = {"layers": LAYERS, "width": WIDTH, "heads": HEADS, "mels": MELS}

CARD = """\
---
license: apache-2.0
language: [ru]
pipeline_tag: automatic-speech-recognition
---
# gigaam-v3-tiny

A speech recognizer of {parameters:.1f} M parameters in exactly the architecture of GigaAM v3 with its CTC head
(the layout of `ai-sage/GigaAM-v3`, revision `ctc`, fp16), to run the whole pipeline offline and to measure
the cost of export and quantization. It understands synthetic Russian speech of a small domain — a voice assistant's
commands, times, numbers, names and places — and nothing else: **it is of no use on real recordings.**

Conformer of {layers} layers, width {width}, {heads} heads, {mels} mel bands, one encoder frame every 40 ms. It writes
lower case without punctuation, as the published model does. Its vocabulary also has `ё` and the ten digits, which the
published one lacks, since the corpus writes numbers in digits.

## Data
{utterances:,} Russian utterances ({hours:.0f} hours) of random sentences, spoken by espeak-ng 1.51 in {voices} voice
variants with random speed and pitch, joined up to 16 s, with silence, gain and noise. 2 % are noise without speech.
No recording of a person was used.

## Training
AdamW, warm-up and cosine, bf16 autocast, one thread: {schedule}.
Beside CTC, frame by frame, the cross-entropy of espeak's phonemes through a temporary head, and, before the last
batches, that of the letters, spread over the words, whose starts espeak reports.
`python -m tools.tiny.gigaam make` repeats all of it.

## Accuracy
Greedy, exported to float32 and transcribed by the runtime without voice activity detection, on held-out utterances: new
seeds, 40 % in a voice variant that is not in the training data, with the same gain and noise.
`python -m tools.tiny.gigaam evaluate` prints this table.

{table}

Words are counted without case and punctuation. Starts of words are compared with those of espeak.

## Licence
Apache-2.0. The weights were trained from random values; no other model was used.
"""


def published_tensors(model: GigaAMCtc) -> dict[str, torch.Tensor]:
    """Return the weights by published name, shape and precision, and the tables of the front end."""
    tensors = {
        f"model.{name}": parameter.detach().half().reshape(model.published_shape(name)).contiguous()
        for name, parameter in model.named_parameters()
    }
    tensors[f"model.{WINDOW}"] = torch.hann_window(N_FFT)
    tensors[f"model.{FILTERS}"] = torch.from_numpy(htk_mel_filters(MELS, N_FFT, RATE).T).float().contiguous()
    return tensors


def write_checkpoint(model: GigaAMCtc, out: Path, licence: Path) -> None:
    """Write everything but the card; replaces ``out``."""
    with checkpoint_folder(out, licence) as work:
        described = json.dumps(config(), ensure_ascii=False, indent=2)
        (work / "config.json").write_text(described + "\n", encoding="utf-8")
        torch.save(published_tensors(model), work / PICKLED)
