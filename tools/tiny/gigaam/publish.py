"""The checkpoint's folder: weights in fp16 in the published layout, configuration, licence, model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from export.checkpoints import PICKLED
from export.families.gigaam.exporter import FILTERS, WINDOW
from export.families.gigaam.model import GigaAMCtc
from runtime.features.htk_log_mel import htk_mel_filters
from tools.tiny.gigaam.model import HEADS, LAYERS, MELS, N_FFT, RATE, WIDTH, config

CARD = """\
---
license: apache-2.0
language: [ru]
pipeline_tag: automatic-speech-recognition
---
# gigaam-v3-tiny

A speech recognizer of {parameters:.1f} M parameters in exactly the architecture of GigaAM v3 with its CTC head
(the layout of `ai-sage/GigaAM-v3`, revision `ctc`, fp16), for seeing the whole pipeline work offline and for measuring
what export and quantization cost. It understands synthetic Russian speech of a small domain — a voice assistant's
commands, times, numbers, names and places — and nothing else: **it is of no use on real recordings.**

Conformer of {layers} layers, width {width}, {heads} heads, {mels} mel bands, one encoder frame every 40 ms. It writes
lower case without punctuation, as the real one does; its vocabulary has `ё` and the ten digits too, which the published
one lacks, because the corpus writes numbers in digits.

## Data
{utterances:,} Russian utterances ({hours:.0f} hours) of random sentences, spoken by espeak-ng 1.51 in {voices} voice
variants with random speed and pitch, joined up to 16 s, with silence, gain and noise. 2 % are noise without speech.
No recording of a person was used.

## Training
AdamW, warm-up and cosine, bf16 autocast, one thread: {schedule}.
Beside CTC, frame by frame, the cross-entropy of espeak's phonemes through a head that is thrown away, and, before the
last batches, that of the letters, spread over the words whose starts espeak tells. `python -m tools.tiny.gigaam make`
does all of it again.

## Accuracy
Greedy, exported to float32 and transcribed by the runtime without voice activity detection, on held-out utterances: new
seeds, 40 % in a voice variant that training never heard, with the same gain and noise.
`python -m tools.tiny.gigaam evaluate` prints this table again.

{table}

Words are counted without case and punctuation. Starts of words are compared with those of espeak.

## Licence
Apache-2.0. The weights were trained from random values; nothing was taken from another model.
"""


def tensors(model: GigaAMCtc) -> dict[str, torch.Tensor]:
    """The weights by published name, shape and precision, and the front end's tables, as published files carry them."""
    made = {
        f"model.{name}": parameter.detach().half().reshape(model.published_shape(name)).contiguous()
        for name, parameter in model.named_parameters()
    }
    made[f"model.{WINDOW}"] = torch.hann_window(N_FFT)
    made[f"model.{FILTERS}"] = torch.from_numpy(htk_mel_filters(MELS, N_FFT, RATE).T).float().contiguous()
    return made


def write_checkpoint(model: GigaAMCtc, out: Path, licence: Path) -> None:
    """Everything but the card, into a hidden folder that then takes the place of ``out``."""
    work = out.with_name(f".{out.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    described = json.dumps(config(), ensure_ascii=False, indent=2)
    (work / "config.json").write_text(described + "\n", encoding="utf-8")
    torch.save(tensors(model), work / PICKLED)
    shutil.copyfile(licence, work / "LICENSE")
    shutil.rmtree(out, ignore_errors=True)
    work.rename(out)


def write_card(
    out: Path,
    table: str,
    *,
    parameters: int,
    utterances: int,
    hours: float,
    voices: int,
    schedule: str,
) -> None:
    """``README.md`` of the checkpoint."""
    card = CARD.format(
        table=table,
        parameters=parameters / 1e6,
        layers=LAYERS,
        width=WIDTH,
        heads=HEADS,
        mels=MELS,
        utterances=utterances,
        hours=hours,
        voices=voices,
        schedule=schedule,
    )
    (out / "README.md").write_text(card, encoding="utf-8")
