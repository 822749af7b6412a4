"""Execution providers: what there is, what was asked, what really runs."""

from __future__ import annotations

from typing import Any

import msgspec
import onnxruntime as ort

from runtime.errors import ProviderError

# Name on the command line → ONNX Runtime's name, and how to get it where it is absent.
_PROVIDERS = {
    "cpu": ("CPUExecutionProvider", "part of every onnxruntime"),
    "cuda": ("CUDAExecutionProvider", "pip install onnxruntime-gpu in place of onnxruntime"),
    "tensorrt": ("TensorrtExecutionProvider", "pip install onnxruntime-gpu in place of onnxruntime, and TensorRT"),
    "coreml": ("CoreMLExecutionProvider", "part of onnxruntime on macOS"),
    "openvino": ("OpenVINOExecutionProvider", "pip install onnxruntime-openvino in place of onnxruntime"),
    "directml": ("DmlExecutionProvider", "pip install onnxruntime-directml in place of onnxruntime, on Windows"),
    "webgpu": ("WebGpuExecutionProvider", "an onnxruntime built with WebGPU"),
}


class ProviderSpec(msgspec.Struct, frozen=True):
    """An execution provider as it was asked for: its short name and its options."""

    name: str = "cpu"
    options: dict[str, str] = {}

    @property
    def execution_provider(self) -> str:
        """ONNX Runtime's name for it."""
        return _PROVIDERS[self.name][0]

    def onnxruntime(self) -> list[Any]:
        """The ``providers`` argument of ``onnxruntime.InferenceSession``."""
        return [(self.execution_provider, dict(self.options))]


def available_providers() -> list[str]:
    """Short names of the providers this onnxruntime has, best first."""
    have = ort.get_available_providers()
    return [name for name, (execution_provider, _) in _PROVIDERS.items() if execution_provider in have]


def describe_providers() -> list[tuple[str, bool, str]]:
    """Every provider that can be asked for: its short name, whether it is here, and how to get it where it is not."""
    have = available_providers()
    return [(name, name in have, how) for name, (_, how) in _PROVIDERS.items()]


def parse_provider(text: str) -> ProviderSpec:
    """Parse ``NAME`` or ``NAME:key=value,…`` and check that the provider is there.

    Raises:
        ProviderError: unknown or not available (the message lists what is), or malformed options.
    """
    name, _, rest = text.strip().partition(":")
    name = name.lower()
    have = ", ".join(available_providers())
    if name not in _PROVIDERS:
        raise ProviderError(f"unknown provider {name!r}; available here: {have}")
    options = {}
    for pair in filter(None, rest.split(",")):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ProviderError(f"provider {name!r}: option {pair!r} is not of the form key=value")
        options[key.strip()] = value.strip()
    if name not in available_providers():
        raise ProviderError(
            f"provider {name!r} is not available in this onnxruntime ({_PROVIDERS[name][1]}); available here: {have}"
        )
    return ProviderSpec(name, options)
