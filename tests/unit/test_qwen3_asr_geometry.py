"""Number of encoder rows for audio of any length, compared with the reference's functions."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen3_asr.modeling_qwen3_asr import _get_feat_extract_output_lengths

from export.families.qwen3_asr.encoder import window_token_count
from runtime.families.qwen3_asr.engine import Qwen3AsrEngine
from runtime.families.qwen3_asr.windows import Geometry
from runtime.features.log_mel import LogMelConfig, frame_count, log_mel
from runtime.transcriber import Transcriber

CONFIG = LogMelConfig("whisper-log-mel", 16_000, 400, 160, 128, 8_000)
GEOMETRY = Geometry(chunk_frames=100, chunk_tokens=13, window_frames=800)
TEN_MINUTES = 600 * 16_000


def reference_frames(samples: int) -> int:
    """Return the length of the extractor's mask: one entry per hop of the padded samples, without a partial one."""
    padded = max(samples, 8_000)
    return len(range(0, padded, 160)) - (1 if padded % 160 else 0)


@given(st.integers(1, TEN_MINUTES))
@settings(max_examples=500, deadline=None)
def test_any_length_gives_the_reference_number_of_tokens(samples: int) -> None:
    frames = frame_count(samples, CONFIG)
    assert frames == reference_frames(samples)
    expected = int(_get_feat_extract_output_lengths(torch.tensor(frames)))
    assert GEOMETRY.tokens(frames) == expected
    assert int(window_token_count(torch.tensor(frames))) == expected
    # Cutting the frames into windows does not change the number of tokens.
    windows = [min(800, frames - start) for start in range(0, frames, 800)]
    assert sum(GEOMETRY.tokens(width) for width in windows) == expected


@given(st.integers(1, 40_000))
@settings(max_examples=25, deadline=None)
def test_frame_count_is_the_number_of_feature_frames(samples: int) -> None:
    features = log_mel(np.zeros(samples, np.float32), CONFIG)
    assert features.shape == (128, frame_count(samples, CONFIG))


@given(st.integers(1, 27 * 16_000))
@settings(max_examples=15, deadline=None)
def test_the_engine_returns_the_expected_number_of_rows(transcriber: Transcriber, samples: int) -> None:
    engine = transcriber._engine
    assert isinstance(engine, Qwen3AsrEngine)
    rows = engine.encode(log_mel(np.zeros(samples, np.float32), CONFIG))
    assert rows.shape == (GEOMETRY.tokens(frame_count(samples, CONFIG)), engine.parameters.hidden_size)
    assert np.isfinite(rows).all()
