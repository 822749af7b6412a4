"""Small random Parakeet checkpoints, made with transformers' classes. Their texts are noise, but differ by audio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    ParakeetCTCConfig,
    ParakeetFeatureExtractor,
    ParakeetForCTC,
    ParakeetForTDT,
    ParakeetProcessor,
    ParakeetTDTConfig,
    ParakeetTokenizer,
)

VOCABULARY = 48
BLANK = VOCABULARY - 1
PAD = 2
ENCODER = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "subsampling_conv_channels": 8,
    "num_mel_bins": 16,
}
SPECIALS = ("<unk>", "<s>", "<pad>", "<blank>")
PIECES = [
    *("▁", "▁a", "▁the", "▁Wort", "▁дом", "▁é", "▁1", "▁¿", "▁-"),
    *("b", "c", "d", "ing", "ция", "ñ", "7", "t", "▁und", "s", "ß"),
    *(",", ".", "?", "'", "...", "<0xC3>", "<0xA9>", "<0xE2>"),
]


def tokenizer(blank: int = BLANK) -> Tokenizer:
    """Tokenizer of SentencePiece pieces, byte pieces and special tokens; the blank is the last id."""
    pieces = list(SPECIALS[:3]) + PIECES
    pieces += [f"x{index}" for index in range(blank - len(pieces))]
    bpe = Tokenizer(
        models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[], unk_token="<unk>")
    )
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    bpe.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bpe.add_special_tokens([AddedToken(each, special=True, normalized=False) for each in SPECIALS])
    assert bpe.token_to_id("<blank>") == blank
    return bpe


def lively(model: Any, seed: int) -> Any:
    """Give a model random weights whose outputs differ from frame to frame."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not tensor.is_floating_point():
            continue
        scale = tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 0.2
        values = torch.randn(tensor.shape, generator=generator) * scale
        if "norm" in name and name.endswith("weight"):
            values = values + 1
        if name.endswith("running_var"):
            values = values.abs() + 0.5
        tensor.data = values
    return model.eval()


@torch.no_grad()
def standardize(model: Any, layer: Any, scale: float) -> None:
    """Scale ``layer`` so that its output for encoder frames varies around 0 in every channel."""
    noise = torch.randn(1, 1600, ENCODER["num_mel_bins"], generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool1d(noise.transpose(1, 2), 9, 1, 4).transpose(1, 2) * 3
    output = layer(model.encoder(smooth).last_hidden_state)[0]
    spread = output.std(0) / scale
    layer.weight /= spread.reshape(-1, *[1] * (layer.weight.dim() - 1))
    layer.bias.copy_((layer.bias - output.mean(0)) / spread)


def tdt_model(seed: int = 14, *, blank_bias: float = 3.0, stay_bias: float = -0.5, **changes: Any) -> ParakeetForTDT:
    """A transducer whose texts have blanks, and tokens with duration 0, but few of these in a row."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "blank_token_id": BLANK,
        "pad_token_id": PAD,
        "decoder_hidden_size": 20,
        "num_decoder_layers": 2,
        "max_symbols_per_step": 40,  # large, because the reference has no limit and texts must be equal
        "encoder_config": ENCODER,
    } | changes
    model = lively(ParakeetForTDT(ParakeetTDTConfig(**sizes)), seed)
    standardize(model, model.encoder_projector, 1.5)
    with torch.no_grad():
        model.decoder.embedding.weight *= 4
        model.decoder.decoder_projector.weight *= 4  # so that a token changes the next one at the same frame
        model.joint.head.weight *= 2
        model.joint.head.bias[model.config.blank_token_id] += blank_bias
        model.joint.head.bias[model.config.vocab_size] += stay_bias
    # transformers' generate chooses among all outputs of the joint network: keep durations out of the tokens.
    durations = range(model.config.vocab_size, model.config.vocab_size + len(model.config.durations))
    model.generation_config.suppress_tokens = list(durations)
    model.generation_config.decoder_start_token_id = model.config.blank_token_id
    return model


def ctc_model(seed: int = 1) -> ParakeetForCTC:
    """A CTC model with a class for each token; the last is the blank."""
    model = lively(
        ParakeetForCTC(ParakeetCTCConfig(vocab_size=VOCABULARY, pad_token_id=BLANK, encoder_config=ENCODER)), seed
    )
    standardize(model, model.ctc_head, 3.0)
    with torch.no_grad():
        model.ctc_head.bias[BLANK] += 2.5
    return model


def processor(kind: str) -> ParakeetProcessor:
    """Feature extractor and tokenizer of a checkpoint: ``tdt`` or ``ctc``."""
    pad = "<blank>" if kind == "ctc" else "<pad>"
    text = ParakeetTokenizer(tokenizer_object=tokenizer(), unk_token="<unk>", pad_token=pad)
    extract = ParakeetFeatureExtractor(feature_size=ENCODER["num_mel_bins"])
    return ParakeetProcessor(extract, text, decoder_type=kind)


def write(model: Any, folder: Path) -> Path:
    """Write a checkpoint folder in the layout of the hub."""
    model.save_pretrained(folder)
    processor("ctc" if isinstance(model, ParakeetForCTC) else "tdt").save_pretrained(folder)
    return folder
