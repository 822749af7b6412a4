"""The card of an artifact: whose weights these are, under which licence, and what was done to them."""

from __future__ import annotations

from runtime.artifact import Source

CARD = "README.md"
LICENCES = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "MIT": "https://opensource.org/license/mit",
}


def model_card(name: str, family: str, source: Source) -> str:
    """Markdown with the front matter that the hub reads; it holds for what is quantized from the artifact, too.

    Licences that ask for attribution ask for the author, the licence and its address, and that changes are named.
    """
    address = LICENCES.get(source.licence)
    licence = f"[{source.licence}]({address})" if address else source.licence
    revision = f" at revision `{source.revision}`" if source.revision else ""
    return f"""---
license: {source.licence.lower()}
pipeline_tag: automatic-speech-recognition
library_name: onnx
---

# {name}

Graphs of the speech recognition model `{source.repo}`{revision} for ONNX Runtime, of the family `{family}`, made with
asr-deploy: `python -m runtime transcribe audio.wav --model FOLDER` turns audio into text with them.

## Licence

The weights are those of `{source.repo}`, by its authors, under {licence}. Whoever passes this folder on does so under
that licence and keeps this notice.

## Changes

The checkpoint's weights were converted to float32 and written as ONNX graphs, some of them folded into one another.
`manifest.json` has the graphs, how far they are from the original, and under `quantization` what was done to them
afterwards, if anything was.
"""
