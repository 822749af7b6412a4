"""The card of an artifact: whose weights these are, under which licence, and what was done to them."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.artifact import Language, Source

CARD = "README.md"
LICENCES = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "MIT": "https://opensource.org/license/mit",
}
HUB = "https://huggingface.co"


def model_card(name: str, family: str, source: Source, languages: Sequence[Language], *, local: bool) -> str:
    """Markdown with the front matter that the hub reads; quantization adds what it did.

    Licences that ask for attribution ask for the author, where the work is, the licence and its address, that changes
    are named, and that nobody is said to endorse them (CC BY 4.0, section 3 a). ``local``: the checkpoint was a folder,
    whose weights only the giver knows; ``source.repo`` is its name then.
    """
    address = LICENCES.get(source.licence)
    licence = f"[{source.licence}]({address})" if address else source.licence
    front = [f"license: {source.licence.lower() if address else 'other'}"]
    if source.revision:
        front.append(f"base_model: {source.repo}")
    front.append(f"language: [{', '.join(repr(language.code) for language in languages)}]")
    front += ["pipeline_tag: automatic-speech-recognition", "library_name: onnx"]
    return f"""---
{chr(10).join(front)}
---

# {name}

Graphs of a speech recognition model for ONNX Runtime, of the family `{family}`, made with asr-deploy:
`python -m runtime transcribe audio.wav --model FOLDER` turns audio into text with them.

## Licence

{_local(source, licence, name) if local else _published(source, licence)}

## Changes

- The checkpoint's weights were converted to float32 and written as ONNX graphs, some of them folded into one another.
  `manifest.json` has the graphs, and how far they are from the original.
"""


def _published(source: Source, licence: str) -> str:
    by = f" by {source.author}" if source.author else ""
    where = f"[{source.repo}]({HUB}/{source.repo})" if source.revision else f"`{source.repo}`"
    revision = f", at revision `{source.revision}`" if source.revision else ""
    apart = f", and {source.author or 'its authors'} did not make or endorse this conversion" if source.revision else ""
    return f"""The weights are those of {where}{by}{revision},
under {licence}.

Whoever passes this folder on does so under that licence: with this notice, the name of the author, the links to the
model and to the licence, and with what they changed themselves. The weights come without any warranty{apart}."""


def _local(source: Source, licence: str, name: str) -> str:
    by = f" by {source.author}" if source.author else ""
    return f"""The weights are those of a folder, `{source.repo}`, that was given as the model `{name}`{by}.
That model is under {licence}; if the weights are others, such as
some that were trained on from them, their own licence holds as well.

Whoever passes this folder on keeps this notice, says whose weights these are, and what they changed themselves. The
weights come without any warranty, and nobody named here made or endorses this conversion."""
