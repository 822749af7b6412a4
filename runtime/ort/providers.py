"""Execution providers: what there is, what was asked, with which options.

A provider's options are ONNX Runtime's own (OpenVINO's: its properties), with defaults that suit this work; what is
given overrides them. Unknown ones are an error here, because ONNX Runtime ignores many in silence.
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
    """ONNX Runtime's name, how to get it where it is absent, and the package of its plugin, if it is one."""

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
        "pip install 'asr-deploy[openvino]' for hardware that Intel made, or onnxruntime-openvino in place of "
        "onnxruntime for other processors",
        Plugin(
            "onnxruntime-ep-openvino",
            "onnxruntime_ep_openvino",
            "hardware that Intel made; pip install onnxruntime-openvino in place of onnxruntime takes other processors",
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
    """An execution provider as it was asked for: its short name and the options that were given."""

    name: str = "cpu"
    options: dict[str, str] = {}

    @property
    def execution_provider(self) -> str:
        """ONNX Runtime's name for it."""
        return _PROVIDERS[self.name].execution_provider

    @property
    def fixed_windows(self) -> bool:
        """Whether the encoder's windows have one size, always."""
        return (OPTIONS[self.name].defaults | self.options).get(FIXED_WINDOWS, "0") == "1"

    @property
    def device(self) -> tuple[str, int]:
        """Where its tensors live, as ``onnxruntime.OrtValue`` names it: ``cuda`` and an id, or ``cpu``."""
        if self.name in ("cuda", "tensorrt"):
            return "cuda", int(self.options.get("device_id", "0"))
        return "cpu", 0

    def __str__(self) -> str:
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}:{options}" if options else self.name


class AskedProviders(msgspec.Struct, frozen=True):
    """What a command line asked for: arguments of :meth:`runtime.Transcriber.from_artifact` by the same names."""

    provider: tuple[str, ...] = ("cpu",)
    encoder_provider: tuple[str, ...] | None = None
    decoder_provider: tuple[str, ...] | None = None

    @classmethod
    def of(
        cls, provider: list[str] | None, encoder_provider: list[str] | None, decoder_provider: list[str] | None
    ) -> AskedProviders:
        """From options that can be repeated; None where one was not given."""
        apart = (tuple(each) if each else None for each in (encoder_provider, decoder_provider))
        return cls(tuple(provider or ("cpu",)), *apart)

    @property
    def text(self) -> str:
        """As it was written: ``cpu``, or ``cuda, encoder openvino:device_type=GPU``."""
        apart = {"encoder": self.encoder_provider, "decoder": self.decoder_provider}
        said = [f"{role} {' + '.join(asked)}" for role, asked in apart.items() if asked]
        return ", ".join([" + ".join(self.provider), *said])


Providers = tuple[ProviderSpec, ...]


class Available(msgspec.Struct, frozen=True):
    """Whether a provider can be asked for here: built into this onnxruntime, or a plugin with a device.

    ``reason`` says why not and how to get it, in a clause.
    """

    name: str
    here: bool
    reason: str
    plugin: str | None = None


def availability(name: str) -> Available:
    """Find out whether a provider can be asked for here; loads its plugin when there is one."""
    provider = _PROVIDERS[name]
    if _is_built_in(provider.execution_provider):
        return Available(name, True, "in this onnxruntime")
    plugin = provider.plugin
    if plugin is None or not plugin.installed:
        return Available(name, False, provider.install)
    version = f"{plugin.package} {plugin.version}"
    try:
        plugins.register(plugin)
    except ProviderError as error:
        return Available(name, False, str(error), version)
    if not plugins.devices(provider.execution_provider):
        return Available(
            name,
            False,
            f"{version} is installed and finds no device here: it takes {plugin.hardware}",
            version,
        )
    return Available(name, True, f"plugin {version}", version)


def is_built_in(spec: ProviderSpec) -> bool:
    """Whether this onnxruntime was built with the provider; otherwise it is a plugin."""
    return _is_built_in(spec.execution_provider)


def _is_built_in(execution_provider: str) -> bool:
    """A plugin that is registered and has a device is among the available providers too, and is not built in."""
    return execution_provider in ort.get_available_providers() and not plugins.is_registered(execution_provider)


def plugin_device(spec: ProviderSpec, settings: Mapping[str, str]) -> Any:
    """The plugin's device (``onnxruntime.OrtEpDevice``) that a provider is to run on.

    Raises:
        ProviderError: it is not available, or has no device of the kind that was asked for.
    """
    found = availability(spec.name)
    if not found.here:
        raise ProviderError(f"provider {spec.name!r} is not available here ({found.reason})")
    devices = plugins.devices(spec.execution_provider)
    wanted = settings.get("device_type")
    for device in devices:
        if wanted in (None, device.device.type.name):
            return device
    have = ", ".join(device.device.type.name for device in devices)
    raise ProviderError(f"provider {spec.name!r} has no device of the type {wanted}; it has {have}")


def available_providers() -> list[str]:
    """Short names of the providers that can be asked for here."""
    return [name for name in _PROVIDERS if availability(name).here]


def describe_providers() -> list[Available]:
    """Every provider that can be asked for, and how to get those that are not here."""
    return [availability(name) for name in _PROVIDERS]


def short_name(execution_provider: str) -> str:
    """The short name of ONNX Runtime's; its own for a provider that cannot be asked for."""
    return _SHORT.get(execution_provider, execution_provider)


def parse_provider(text: str) -> ProviderSpec:
    """Parse ``NAME`` or ``NAME:key=value,…`` and check that the provider is there and knows the options.

    Raises:
        ProviderError: unknown or not available (the message lists what is), or malformed or unknown options.
    """
    spec = read_provider(text)
    found = availability(spec.name)
    if not found.here:
        raise ProviderError(
            f"provider {spec.name!r} is not available here ({found.reason}); "
            f"available here: {', '.join(available_providers())}"
        )
    return spec


def read_provider(text: str) -> ProviderSpec:
    """Parse ``NAME`` or ``NAME:key=value,…``, whether or not the provider is there.

    Raises:
        ProviderError: an unknown provider, or malformed or unknown options.
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
        raise ProviderError(f"provider {name!r}: option {key!r} is 0 or 1, not {value!r}")
    if key == "device_id" and not value.isdecimal():
        raise ProviderError(f"provider {name!r}: option {key!r} is a number, not {value!r}")
    choices = known.choices.get(key)
    if choices and value not in choices:
        raise ProviderError(f"provider {name!r}: option {key!r} is {', '.join(choices)}, not {value!r}")
    if key in known.names or (known.properties and PROPERTY.fullmatch(key)):
        return
    more = ", and OpenVINO's properties, in capitals" if known.properties else ""
    raise ProviderError(f"provider {name!r} has no option {key!r}; it has {', '.join(sorted(known.names))}{more}")


def parse_providers(texts: str | Sequence[str]) -> Providers:
    """Parse one provider or several, in order of priority; the CPU is last whether or not it is named.

    Raises:
        ProviderError: as :func:`parse_provider`; or one is named twice, or one after the CPU, which takes every node.
    """
    given = (texts,) if isinstance(texts, str) else tuple(texts)
    specs = tuple(map(parse_provider, given))
    check_order(specs)
    return specs


def check_order(specs: Sequence[ProviderSpec]) -> None:
    """Refuse a list in which a provider could get no node.

    Raises:
        ProviderError: the list is empty, names one twice, or one after the CPU.
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
    """Split ``cpu,openvino:A=1,B=2,tensorrt+cuda`` into lists of providers: one an entry, several where ``+`` joins.

    A piece ``key=value`` belongs to the provider before it.
    """
    entries: list[str] = []
    for text in texts:
        for index, piece in enumerate(text.split(",")):
            if index and _PAIR.match(piece):
                entries[-1] += f",{piece}"
            elif piece.strip():
                entries.append(piece.strip())
    return [tuple(part.strip() for part in entry.split("+")) for entry in entries]


def describe(specs: Sequence[ProviderSpec]) -> str:
    """Providers as they were asked for, in order."""
    return "+".join(map(str, specs))
