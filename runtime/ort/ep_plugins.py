"""Execution providers that come as plugin libraries in packages of their own, beside stock onnxruntime.

A plugin is registered once a process and then declares the devices it can use. It may be installed and declare none:
OpenVINO's (1.8.1) takes processors, GPUs and NPUs that Intel made, and no others.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from typing import Any

import msgspec
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from runtime.errors import ProviderError

_registered: set[str] = set()
_registering = threading.Lock()  # graphs may be opened side by side


class Plugin(msgspec.Struct, frozen=True):
    """A package that has a plugin library: its name for pip, its module, and what hardware it takes."""

    package: str
    module: str
    hardware: str

    @property
    def installed(self) -> bool:
        """Whether the package is there."""
        return importlib.util.find_spec(self.module) is not None

    @property
    def version(self) -> str | None:
        """The installed package's version."""
        import importlib.metadata  # slow to import, and seldom needed

        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None


def register(plugin: Plugin) -> None:
    """Load a plugin's library into this process, once.

    Raises:
        ProviderError: ONNX Runtime cannot load it.
    """
    with _registering:
        if plugin.module in _registered:
            return
        library = importlib.import_module(plugin.module).get_library_path()
        try:
            ort.register_execution_provider_library(plugin.module, library)
        except (ort_errors.Fail, ort_errors.InvalidArgument, ort_errors.RuntimeException, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ProviderError(
                f"onnxruntime {ort.__version__} cannot load the plugin {plugin.package} {plugin.version} ({reason}); "
                f"install versions that fit: pip install --upgrade onnxruntime {plugin.package}"
            ) from None
        _registered.add(plugin.module)


def devices(execution_provider: str) -> list[Any]:
    """Devices (``onnxruntime.OrtEpDevice``) that a registered plugin, or one built in, declares."""
    return [device for device in ort.get_ep_devices() if device.ep_name == execution_provider]


def is_registered(execution_provider: str) -> bool:
    """Whether some plugin in this process, registered here or by others, declares devices for a provider."""
    return any("library_path" in device.ep_metadata for device in devices(execution_provider))


def device_lines() -> list[str]:
    """What ONNX Runtime reports of this machine: provider, kind of device, maker and name."""
    lines = []
    for device in ort.get_ep_devices():
        hardware = device.device
        name = device.ep_metadata.get("FULL_DEVICE_NAME") or hardware.metadata.get("Description") or ""
        said = " ".join(filter(None, (hardware.type.name, hardware.vendor, name)))
        lines.append(f"{device.ep_name}: {said}")
    return lines
