"""The small GigaAM: configuration, vocabulary, and the front end in torch for batches of clips.

The published vocabulary has neither ``ё`` nor digits. The corpus writes both, and all families are evaluated on its
texts, so the small vocabulary has them too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from runtime.features.htk_log_mel import LEAST_POWER, MOST_POWER, htk_mel_filters
from tests.helpers.gigaam_checkpoint import configuration
from tools.tiny.evaluate import normalize

RATE, HOP, MELS, N_FFT = 16_000, 160, 64, 320
# Duration of an encoder frame in seconds.
FRAME = 0.04
LAYERS, WIDTH, HEADS = 4, 160, 4
# Longest segment in training, and so the limit at inference.
SEGMENT_SECONDS = 15.0

LETTERS = [" ", *(chr(ord("а") + index) for index in range(32)), "ё", *"0123456789"]
BLANK = len(LETTERS)

_IDS = {letter: index for index, letter in enumerate(LETTERS)}
_WINDOW = torch.hann_window(N_FFT)
_FILTERS = torch.from_numpy(htk_mel_filters(MELS, N_FFT, RATE)).float()


def config() -> dict[str, Any]:
    """Return ``config.json``. Widths are multiples of 32, so that every quantization block size divides them."""
    described = configuration("ctc", n_layers=LAYERS, d_model=WIDTH, n_heads=HEADS)
    inner = described["cfg"]["model"]["cfg"]
    inner["head"]["num_classes"] = BLANK + 1
    inner["decoding"]["vocabulary"] = LETTERS
    inner["model_name"] = "v3_ctc_tiny"
    return described | {"segment_seconds": SEGMENT_SECONDS}


def letters(text: str) -> list[int]:
    """Return the ids of a text in lower case without punctuation.

    Raises:
        ValueError: ``text`` has a character that the vocabulary lacks.
    """
    try:
        return [_IDS[letter] for letter in normalize(text)]
    except KeyError as error:
        raise ValueError(f"{text!r} has {error.args[0]!r}, which is not in the vocabulary") from None


def log_mel(clips: Sequence[npt.NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
    """Return the ``runtime.features.htk_log_mel`` features [B, 64, T] of clips at 16 kHz, and frames [B]."""
    longest = max(N_FFT, *(len(clip) for clip in clips))
    waves = torch.zeros(len(clips), longest)
    for row, clip in enumerate(clips):
        waves[row, : len(clip)] = torch.from_numpy(clip)
    frames = torch.tensor([(max(N_FFT, len(clip)) - N_FFT) // HOP + 1 for clip in clips])
    power = torch.stft(waves, N_FFT, HOP, window=_WINDOW, center=False, return_complex=True).abs() ** 2
    mel = (_FILTERS @ power).clamp(float(LEAST_POWER), float(MOST_POWER)).log()
    return F.pad(mel, (0, int(frames.max()) - mel.shape[-1])), frames
