"""What ``info`` says about a model, and ``providers`` about a machine."""

from __future__ import annotations

import platform

import onnxruntime

from runtime.artifact import Manifest, Quantization
from runtime.cpu import lacks_vnni
from runtime.plugins import device_lines
from runtime.providers import describe_providers
from runtime.threads import usable_cores

_SATURATES = {
    True: "this processor has no VNNI: its 8-bit products can saturate; quantize with --reduce-range for it",
    None: "an x86 processor without VNNI needs a model quantized with --reduce-range; whether this is one is unknown",
}


def describe(manifest: Manifest, size: int, *, prepared: bool = False) -> str:
    """The summary that ``info`` prints; ``prepared`` says whether ``prepare`` was run for this machine."""
    source = manifest.source
    languages = [f"{language.name} ({language.code})" for language in manifest.languages]
    lines: dict[str, str] = {
        "model": f"{manifest.name} ({manifest.family})",
        "source": f"{source.repo}, {f'revision {source.revision}' if source.revision else 'from a folder'}",
        "licence": source.licence,
        "size": f"{size / 1e6:.1f} MB",
        "quantization": manifest.quantization.recipe if manifest.quantization else "none (float32)",
        "prepared": "for this machine" if prepared else "no; `prepare` makes it load faster on this machine",
        "languages": f"{len(languages)}: {', '.join(languages)}",
    }
    for role, graph in manifest.graphs.items():
        parity = manifest.parity.get(role)
        checked = (
            f", at most {parity.max_abs_difference:.1e} from the reference in {len(parity.cases)} cases"
            if parity
            else ""
        )
        lines[role] = f"{graph.file}{' with external data' if graph.data else ''}{checked}"
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
    """What ``providers`` prints: the processor, then each execution provider, and how to get those that are absent."""
    lines = {
        "machine": f"{platform.system()} {platform.machine()}, {usable_cores()} cores for this process",
        "8 bits": _VNNI[lacks_vnni()],
        "onnxruntime": onnxruntime.__version__,
    }
    for found in describe_providers():
        lines[found.name] = found.reason if found.here else f"not here: {found.reason}"
    devices = device_lines()
    width = max(map(len, lines))
    listed = [f"{key:<{width}}  {value}" for key, value in lines.items()]
    return "\n".join(
        [*listed, *(f"{'device' if not place else '':<{width}}  {line}" for place, line in enumerate(devices))]
    )


def _quantization_lines(quantization: Quantization) -> dict[str, str]:
    """What was done to the graphs, and what the gate measured."""
    gate = quantization.gate
    lines = {}
    for role, graph in quantization.graphs.items():
        parts = [f"{count} {what}" for what, count in graph.nodes.items()]
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
    for rate in gate.error_rates:
        lines[f"{rate.language} {rate.unit}"] = f"{rate.quantized:.2%} wrong, the parent {rate.parent:.2%}"
    if gate.exceeded:
        lines["forced"] = f"kept although {'; '.join(gate.exceeded)}"
    if quantization.needs_vnni:
        warning = _SATURATES.get(lacks_vnni())
        if warning:
            lines["warning"] = warning
    elif quantization.integer_products:
        lines["reduced range"] = "7-bit weights in integer products: right on processors without VNNI"
    return lines
