"""Parse execution providers with their options, and find out which of them are available.

A provider's options are those of ONNX Runtime (for OpenVINO its properties). Options of the user override the defaults
of :mod:`runtime.ort.provider_options`. Unknown options are an error, because ONNX Runtime silently ignores many.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import onnxruntime as ort

from runtime.errors import ProviderError
from runtime.ort import ep_plugins as plugins
from runtime.ort.ep_plugins import Plugin
from runtime.ort.provider_options import FIXED_WINDOWS, OPTIONS, PROPERTY, Options


class _Provider(msgspec.Struct, frozen=True):
    """A provider.

    Attributes:
        execution_provider: ONNX Runtime's name.
        install: how to install it, for messages.
        plugin: the plugin package that contains it, if there is one.
    """

    execution_provider: str
    install: str
    plugin: Plugin | None = None


_PROVIDERS = {
    "cpu": _Provider("CPUExecutionProvider", "part of every onnxruntime"),
    "cuda": _Provider("CUDAExecutionProvider", "pip install 'onnxruntime-gpu[cuda,cudnn]' in place of onnxruntime"),
    "tensorrt": _Provider(
        "TensorrtExecutionProvider",
        "pip install 'onnxruntime-gpu[cuda,cudnn]' in place of onnxruntime, and tensorrt",
    ),
    "coreml": _Provider("CoreMLExecutionProvider", "part of onnxruntime on macOS"),
    "openvino": _Provider(
        "OpenVINOExecutionProvider",
        "pip install 'asr-deploy[openvino]' for hardware made by Intel, or onnxruntime-openvino in place of "
        "onnxruntime for other processors",
        Plugin(
            "onnxruntime-ep-openvino",
            "onnxruntime_ep_openvino",
            "hardware made by Intel; for other processors pip install onnxruntime-openvino in place of onnxruntime",
        ),
    ),
    "directml": _Provider(
        "DmlExecutionProvider", "pip install onnxruntime-directml in place of onnxruntime, on Windows"
    ),
    "webgpu": _Provider(
        "WebGpuExecutionProvider",
        "pip install onnxruntime-ep-webgpu, and on Linux the Vulkan loader (libvulkan1) and a GPU's driver",
        Plugin(
            "onnxruntime-ep-webgpu",
            "onnxruntime_ep_webgpu",
            "a GPU with a Vulkan, D3D12 or Metal driver, and on Linux the Vulkan loader (libvulkan1)",
        ),
    ),
}
_SHORT = {provider.execution_provider: name for name, provider in _PROVIDERS.items()}


class ProviderSpec(msgspec.Struct, frozen=True):
    """Execution provider and options that the user chose: short name, and options without the defaults."""

    name: str = "cpu"
    options: dict[str, str] = {}

    @property
    def execution_provider(self) -> str:
        """ONNX Runtime's name of the provider."""
        return _PROVIDERS[self.name].execution_provider

    @property
    def fixed_windows(self) -> bool:
        """Whether the encoder gets one window of full width at a time."""
        return (OPTIONS[self.name].defaults | self.options).get(FIXED_WINDOWS, "0") == "1"

    @property
    def device(self) -> tuple[str, int]:
        """Device of its tensors as ``onnxruntime.OrtValue`` names it: ``("cuda", id)`` or ``("cpu", 0)``."""
        if self.name in ("cuda", "tensorrt"):
            return "cuda", int(self.options.get("device_id", "0"))
        return "cpu", 0

    def __str__(self) -> str:
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}:{options}" if options else self.name


class AskedProviders(msgspec.Struct, frozen=True):
    """Provider options of a command line, with the names of :meth:`runtime.Transcriber.from_artifact`'s arguments."""

    provider: tuple[str, ...] = ("cpu",)
    encoder_provider: tuple[str, ...] | None = None
    decoder_provider: tuple[str, ...] | None = None

    @classmethod
    def of(
        cls, provider: list[str] | None, encoder_provider: list[str] | None, decoder_provider: list[str] | None
    ) -> AskedProviders:
        """Make it from repeatable options of the command line; None for an option that was not used."""
        by_role = (tuple(texts) if texts else None for texts in (encoder_provider, decoder_provider))
        return cls(tuple(provider or ("cpu",)), *by_role)

    @property
    def text(self) -> str:
        """The providers as the user wrote them, such as ``cuda, encoder openvino:device_type=GPU``."""
        by_role = {"encoder": self.encoder_provider, "decoder": self.decoder_provider}
        roles = [f"{role} {' + '.join(texts)}" for role, texts in by_role.items() if texts]
        return ", ".join([" + ".join(self.provider), *roles])


Providers = tuple[ProviderSpec, ...]


class Availability(msgspec.Struct, frozen=True):
    """Whether a provider is available: built into the installed onnxruntime, or a plugin that has a device.

    Attributes:
        name: the provider's short name.
        is_available: whether it can be used.
        reason: where it comes from, or why it is not available and how to install it.
        plugin: name and version of the installed plugin package, if there is one.
    """

    name: str
    is_available: bool
    reason: str
    plugin: str | None = None


def availability(name: str) -> Availability:
    """Find out whether a provider is available. Loads its plugin if one is installed.

    Args:
        name: the provider's short name.
    """
    provider = _PROVIDERS[name]
    if _is_built_in(provider.execution_provider):
        return Availability(name, True, "in this onnxruntime")
    plugin = provider.plugin
    if plugin is None or not plugin.installed:
        return Availability(name, False, provider.install)
    version = f"{plugin.package} {plugin.version}"
    try:
        plugins.register(plugin)
    except ProviderError as error:
        return Availability(name, False, str(error), version)
    if not plugins.devices(provider.execution_provider):
        return Availability(
            name,
            False,
            f"{version} is installed but finds no device here; it supports {plugin.hardware}",
            version,
        )
    return Availability(name, True, f"plugin {version}", version)


def is_built_in(spec: ProviderSpec) -> bool:
    """Whether the installed onnxruntime was built with the provider; otherwise it is a plugin."""
    return _is_built_in(spec.execution_provider)


def _is_built_in(execution_provider: str) -> bool:
    """Whether a provider is built in. ONNX Runtime lists a registered plugin with a device as available, too."""
    return execution_provider in ort.get_available_providers() and not plugins.is_registered(execution_provider)


def plugin_device(spec: ProviderSpec, settings: Mapping[str, str]) -> Any:
    """Return the device (``onnxruntime.OrtEpDevice``) on which a plugin's provider runs.

    Args:
        spec: the provider.
        settings: all its options; ``device_type`` selects the device.

    Raises:
        ProviderError: the provider is not available.
        ProviderError: the provider has no device of the type ``device_type``.
    """
    status = availability(spec.name)
    if not status.is_available:
        raise ProviderError(f"provider {spec.name!r} is not available here ({status.reason})")
    devices = plugins.devices(spec.execution_provider)
    device_type = settings.get("device_type")
    for device in devices:
        if device_type in (None, device.device.type.name):
            return device
    types = ", ".join(device.device.type.name for device in devices)
    raise ProviderError(f"provider {spec.name!r} has no device of the type {device_type}; it has {types}")


def available_providers() -> list[str]:
    """Return the short names of the available providers."""
    return [name for name in _PROVIDERS if availability(name).is_available]


def describe_providers() -> list[Availability]:
    """Return the availability of every known provider, with how to install those that are missing."""
    return [availability(name) for name in _PROVIDERS]


def short_name(execution_provider: str) -> str:
    """Return the short name for ONNX Runtime's name; an unknown name is returned unchanged."""
    return _SHORT.get(execution_provider, execution_provider)


def parse_provider(text: str) -> ProviderSpec:
    """Parse ``NAME`` or ``NAME:key=value,…`` and check that the provider is available.

    Raises:
        ProviderError: the provider is unknown; the message lists the available ones.
        ProviderError: the provider is not available; the message lists the available ones.
        ProviderError: an option is malformed, unknown or has an invalid value.
    """
    spec = read_provider(text)
    status = availability(spec.name)
    if not status.is_available:
        raise ProviderError(
            f"provider {spec.name!r} is not available here ({status.reason}); "
            f"available here: {', '.join(available_providers())}"
        )
    return spec


def read_provider(text: str) -> ProviderSpec:
    """Parse ``NAME`` or ``NAME:key=value,…`` of a provider that need not be available.

    Raises:
        ProviderError: the provider is unknown.
        ProviderError: an option is malformed, unknown or has an invalid value.
    """
    name, _, rest = text.strip().partition(":")
    name = name.lower()
    if name not in _PROVIDERS:
        raise ProviderError(
            f"unknown provider {name!r}; available here: {', '.join(available_providers())}; "
            f"known: {', '.join(_PROVIDERS)}"
        )
    options: dict[str, str] = {}
    for pair in filter(None, rest.split(",")):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not key:
            raise ProviderError(f"provider {name!r}: option {pair!r} is not of the form key=value")
        if key in options:
            raise ProviderError(f"provider {name!r}: option {key!r} is given twice")
        _check_option(name, OPTIONS[name], key, value)
        options[key] = value
    return ProviderSpec(name, options)


def _check_option(name: str, known: Options, key: str, value: str) -> None:
    if key in (FIXED_WINDOWS, *known.switches) and value not in ("0", "1"):
        raise ProviderError(f"provider {name!r}: option {key!r} must be 0 or 1, not {value!r}")
    if key == "device_id" and not value.isdecimal():
        raise ProviderError(f"provider {name!r}: option {key!r} must be a number, not {value!r}")
    choices = known.choices.get(key)
    if choices and value not in choices:
        raise ProviderError(f"provider {name!r}: option {key!r} must be one of {', '.join(choices)}, not {value!r}")
    if key in known.names or (known.properties and PROPERTY.fullmatch(key)):
        return
    properties = ", and OpenVINO's properties, in capitals" if known.properties else ""
    raise ProviderError(f"provider {name!r} has no option {key!r}; it has {', '.join(sorted(known.names))}{properties}")


def parse_providers(texts: str | Sequence[str]) -> Providers:
    """Parse one provider or several in order of priority. The CPU always comes last and need not be named.

    Raises:
        ProviderError: a provider is unknown or not available, or an option is invalid.
        ProviderError: the list is empty, names a provider twice, or names one after the CPU.
    """
    specs = tuple(map(parse_provider, (texts,) if isinstance(texts, str) else texts))
    check_order(specs)
    return specs


def check_order(specs: Sequence[ProviderSpec]) -> None:
    """Refuse a list in which a provider would get no node.

    Raises:
        ProviderError: the list is empty.
        ProviderError: a provider is named twice.
        ProviderError: a provider is named after the CPU, which takes every node.
    """
    names = [spec.name for spec in specs]
    if not names:
        raise ProviderError("no provider is named; name at least cpu")
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ProviderError(f"provider {name!r} is named twice")
    if "cpu" in names[:-1]:
        raise ProviderError(
            f"provider {names[names.index('cpu') + 1]!r} is named after cpu, which takes every node; "
            "name cpu last, or not at all"
        )


_PAIR = re.compile(r"[^:+,]+=")


def split_list(texts: Iterable[str]) -> list[tuple[str, ...]]:
    """Split ``cpu,openvino:A=1,B=2,tensorrt+cuda`` at commas, and each entry at ``+`` into its providers.

    A part ``key=value`` is an option of the provider before it.
    """
    entries: list[str] = []
    for text in texts:
        for index, part in enumerate(text.split(",")):
            if index and _PAIR.match(part):
                entries[-1] += f",{part}"
            elif part.strip():
                entries.append(part.strip())
    return [tuple(name.strip() for name in entry.split("+")) for entry in entries]


def describe(specs: Sequence[ProviderSpec]) -> str:
    """Return the providers as the user wrote them, joined by ``+``."""
    return "+".join(map(str, specs))
