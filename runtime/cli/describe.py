"""Describe families and models for ``info``, and the machine for ``providers``."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import onnxruntime

from runtime.engines.capabilities import Capabilities
from runtime.families import FAMILIES, declared
from runtime.host.cpu import lacks_vnni
from runtime.model.manifest import Manifest, Quantization
from runtime.ort.ep_plugins import device_lines
from runtime.ort.providers import describe_providers
from runtime.ort.threads import usable_cores

# Warnings about 8-bit products, by the value of `lacks_vnni`.
_SATURATES = {
    True: "this processor has no VNNI: its 8-bit products can saturate; quantize with --reduce-range for it",
    None: "an x86 processor without VNNI needs a model quantized with --reduce-range; whether this is one is unknown",
}

# Labels of the capabilities, in the order in which they are listed.
LABELS = {
    "context": "context",
    "language": "language option",
    "language_detection": "language detection",
    "words": "word timestamps",
    "timestamps": "segment timestamps",
    "translation": "translation",
    "long_form": "long form",
    "forcing": "forced text",
}
EVERY_FAMILY = "audio of any length, batches, live streams"


def abilities(capabilities: Capabilities, *, missing: bool = False) -> list[str]:
    """List the labels of the capabilities that a model has, or of those that are ``missing``."""
    return [label for name, label in LABELS.items() if getattr(capabilities, name) is not missing]


def in_columns(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of cells as lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def describe_families() -> str:
    """Return the table of capabilities by family that ``info`` prints without a model.

    A family has a capability if at least one of its models has it.
    """
    families = {family: declared(family) for family in FAMILIES}
    rows = [["", *families]]
    for name, label in LABELS.items():
        rows.append([label, *("yes" if getattr(declaration, name) else "-" for declaration in families.values())])
    return f"{in_columns(rows)}\n\nevery family: {EVERY_FAMILY}"


def describe(manifest: Manifest, size: int, capabilities: Capabilities, *, prepacked: bool = False) -> str:
    """Return the summary of a model that ``info`` prints.

    Args:
        manifest: manifest of the model.
        size: size of its files in bytes.
        capabilities: capabilities of the model.
        prepacked: whether ``prepare`` was run for this machine.
    """
    source = manifest.source
    languages = [f"{language.name} ({language.code})" for language in manifest.languages]
    lines: dict[str, str] = {
        "model": f"{manifest.name} ({manifest.family})",
        "source": f"{source.repo}, {f'revision {source.revision}' if source.revision else 'from a folder'}",
        "licence": f"{source.licence}{f', by {source.author}' if source.author else ''}",
        "size": f"{size / 1e6:.1f} MB",
        "parameters": f"{source.parameters:,}" if source.parameters else "not recorded; export the model again",
        "quantization": manifest.quantization.recipe if manifest.quantization else "none (float32)",
        "prepared": "for this machine" if prepacked else "no; `prepare` makes it load faster on this machine",
        "languages": f"{len(languages)}: {', '.join(languages)}",
        "can": ", ".join([*abilities(capabilities), EVERY_FAMILY]),
        "cannot": ", ".join(abilities(capabilities, missing=True)) or "-",
    }
    for role, graph in manifest.graphs.items():
        parity = manifest.parity.get(role)
        agreement = f", {parity.summary} in {len(parity.cases)} cases" if parity else ""
        lines[role] = f"{graph.file}{' with external data' if graph.data else ''}{agreement}"
    if manifest.quantization:
        lines |= _quantization_lines(manifest.quantization)
    lines["made with"] = ", ".join(f"{name} {version}" for name, version in manifest.tools.items())
    width = max(map(len, lines))
    return "\n".join(f"{key:<{width}}  {value}" for key, value in lines.items())


_VNNI = {
    False: "8-bit products cannot saturate",
    True: "without VNNI: 8-bit products can saturate",
    None: "VNNI unknown",
}


def describe_machine() -> str:
    """Return the processor, each execution provider with how to install it, and the devices, for ``providers``."""
    lines = {
        "machine": f"{platform.system()} {platform.machine()}, {usable_cores()} cores for this process",
        "8 bits": _VNNI[lacks_vnni()],
        "onnxruntime": onnxruntime.__version__,
    }
    for provider in describe_providers():
        lines[provider.name] = provider.reason if provider.is_available else f"not available: {provider.reason}"
    devices = device_lines()
    width = max(map(len, lines))
    listed = [f"{key:<{width}}  {value}" for key, value in lines.items()]
    return "\n".join(
        [*listed, *(f"{'device' if not index else '':<{width}}  {line}" for index, line in enumerate(devices))]
    )


def _quantization_lines(quantization: Quantization) -> dict[str, str]:
    """Describe the quantized graphs and the measurements of the gate."""
    gate = quantization.gate
    lines = {}
    for role, graph in quantization.graphs.items():
        parts = [f"{count} {method}" for method, count in graph.nodes.items()]
        if graph.smoothed:
            parts.append(f"{graph.smoothed} inputs smoothed")
        if graph.fallbacks:
            parts.append(f"{len(graph.fallbacks)} fell back to weight-only")
        lines[f"{role} nodes"] = ", ".join(parts)
    errors = [f"{role} {error:.4f}" for role, error in gate.relative_error.items()]
    lines["relative error"] = f"{', '.join(errors)} of the parent's outputs"
    lines["evaluated on"] = gate.evaluation
    if gate.identical is not None:
        lines["identical"] = f"{gate.identical:.1%} of the utterances have the parent's tokens"
    if gate.words_differ is not None:
        lines["words that differ"] = f"{gate.words_differ.summary} from the parent's text"
    for rate in gate.error_rates:
        interval = ""
        if rate.rise_low is not None and rate.rise_high is not None:
            low, high = 100 * rate.rise_low, 100 * rate.rise_high
            interval = f" (95 % interval of the difference {low:+.2f} to {high:+.2f} points)"
        lines[f"{rate.language} {rate.unit}"] = f"{rate.quantized:.2%} wrong, the parent {rate.parent:.2%}{interval}"
    if gate.exceeded:
        lines["forced"] = f"kept although {'; '.join(gate.exceeded)}"
    if quantization.needs_vnni:
        warning = _SATURATES.get(lacks_vnni())
        if warning:
            lines["warning"] = warning
    elif quantization.integer_products:
        lines["reduced range"] = "7-bit weights in integer products: cannot saturate on processors without VNNI"
    return lines
