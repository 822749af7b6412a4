"""Whisper's feature extraction, which is the same for every size but for the number of mel channels."""

# A checkpoint's preprocessor_config.json must have the same values.
FRONT_END = {"sampling_rate": 16_000, "n_fft": 400, "hop_length": 160}
# Feature frames in one encoder position: the stride of the second convolution.
FRAMES_PER_POSITION = 2
