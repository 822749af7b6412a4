"""Names of weight files, by which their formats are told apart."""

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLED = "pytorch_model.bin"
CTRANSLATE2 = "model.bin"
# Suffix of files that hold tensors and settings, such as OpenAI's.
PT = ".pt"
