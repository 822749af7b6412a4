"""Model card of an artifact: authors and licence of the weights, and what was changed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from export.checkpoints import Checkpoint
from runtime.model.manifest import Language, Source

CARD, LICENCE = "README.md", "LICENSE"
LICENCES = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "MIT": "https://opensource.org/license/mit",
}
HUB = "https://huggingface.co"
_WIDTH = 120  # characters of a line
# The text of the MIT license as SPDX has it, below the copyright line.
_MIT = """\
Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


def licence_text(checkpoint: Checkpoint) -> str | None:
    """Return the text of a checkpoint's licence; None if it or its copyright line is unknown.

    The MIT license requires copyright line and text in every copy. Only some layouts of a checkpoint have them.
    """
    if checkpoint.licence != "MIT" or not checkpoint.copyright:
        return None
    return f"MIT License\n\n{checkpoint.copyright}\n\n{_MIT}"


def model_card(checkpoint: Checkpoint, source: Source, languages: Sequence[Language]) -> str:
    """Write the card: Markdown with the front matter that the hub reads. Quantization adds its own section later.

    Licences with attribution require the author, a link to the work, the licence and its address, a note of changes,
    and that no endorsement is implied (CC BY 4.0, section 3 a). For a checkpoint in a local folder the origin of the
    weights is unknown, and ``source.repo`` is the folder's name, unless their hash is that of a known conversion.

    Args:
        checkpoint: the checkpoint by its name.
        source: the source recorded in the manifest.
        languages: languages of the model.
    """
    local = source.repo != checkpoint.repo
    front = [f"license: {checkpoint.licence.lower() if checkpoint.licence in LICENCES else 'other'}"]
    if not local and not checkpoint.bundled:
        front.append(f"base_model: {checkpoint.repo}")
    front.append(f"language: [{', '.join(repr(language.code) for language in languages)}]")
    front += ["pipeline_tag: automatic-speech-recognition", "library_name: onnx"]
    return f"""---
{chr(10).join(front)}
---

# {checkpoint.name}

Graphs of a speech recognition model for ONNX Runtime, of the family `{checkpoint.family}`, made with asr-deploy:
`python -m runtime transcribe audio.wav --model FOLDER` turns audio into text with them.

## Licence

{_local(checkpoint, source) if local else _published(checkpoint, source)}

## Changes

- The checkpoint's weights were converted to float32 and written as ONNX graphs, some of them folded into one another.
  `manifest.json` has the graphs, and how far they are from the original.
"""


def _model(checkpoint: Checkpoint) -> str:
    """Name, link and author of the published model."""
    model = f"`{checkpoint.repo}`" if checkpoint.bundled else f"[{checkpoint.repo}]({HUB}/{checkpoint.repo})"
    return f"{model} by {checkpoint.author or 'its authors'}"


def _licence(checkpoint: Checkpoint) -> str:
    """Name of the licence, with a link if it is known."""
    address = LICENCES.get(checkpoint.licence)
    return f"[{checkpoint.licence}]({address})" if address else checkpoint.licence


def _wrapped(text: str) -> str:
    """Break a paragraph into lines, not inside names with hyphens."""
    return textwrap.fill(text, _WIDTH, break_on_hyphens=False)


def _published(checkpoint: Checkpoint, source: Source) -> str:
    """Licence section for the published weights."""
    revision = f", at revision `{source.revision}`" if source.revision else ""
    others = f", and {checkpoint.author or 'they'} did not make or endorse this conversion"
    made = checkpoint.conversions.get(source.weights_sha256)
    converted = f"\n{_wrapped(f'They come from a copy that was {made}.')}" if made else ""
    text = f" `{LICENCE}` has its text." if checkpoint.copyright else ""
    return f"""The weights are those of {_model(checkpoint)}{revision},
under {_licence(checkpoint)}.{text}{converted}

Whoever passes this folder on does so under that licence: with this notice, the name of the author, the links to the
model and to the licence, and with what they changed themselves. The weights come without any
warranty{"" if checkpoint.bundled else others}."""


def _local(checkpoint: Checkpoint, source: Source) -> str:
    """Licence section for weights from a local folder."""
    return f"""The weights are those of a folder, `{source.repo}`, that was given as the model
{_model(checkpoint)}.
That model is under {_licence(checkpoint)}; if the weights are others, such as
some that were trained on from them, their own licence holds as well.

Whoever passes this folder on keeps this notice, says whose weights these are, and what they changed themselves. The
weights come without any warranty, and nobody named here made or endorses this conversion."""
