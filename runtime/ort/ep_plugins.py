"""Register execution providers that are installed as plugin packages beside stock onnxruntime, and list their devices.

A plugin is registered once in a process and then declares the devices that it can use. An installed plugin may declare
none: OpenVINO's plugin (1.8.1) supports only processors, GPUs and NPUs made by Intel.
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
_registration_lock = threading.Lock()  # several graphs may be opened at once


class Plugin(msgspec.Struct, frozen=True):
    """Package with a plugin library.

    Attributes:
        package: its name for pip.
        module: its Python module.
        hardware: hardware that it supports, for messages.
    """

    package: str
    module: str
    hardware: str

    @property
    def installed(self) -> bool:
        """Whether the package is installed."""
        return importlib.util.find_spec(self.module) is not None

    @property
    def version(self) -> str | None:
        """Version of the installed package, or None."""
        import importlib.metadata  # slow to import, and rarely needed

        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None


def register(plugin: Plugin) -> None:
    """Load a plugin's library into this process unless it is loaded already.

    Raises:
        ProviderError: ONNX Runtime cannot load it.
    """
    with _registration_lock:
        if plugin.module in _registered:
            return
        library = importlib.import_module(plugin.module).get_library_path()
        try:
            ort.register_execution_provider_library(plugin.module, library)
        except (ort_errors.Fail, ort_errors.InvalidArgument, ort_errors.RuntimeException, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ProviderError(
                f"onnxruntime {ort.__version__} cannot load the plugin {plugin.package} {plugin.version} ({reason}); "
                f"install compatible versions: pip install --upgrade onnxruntime {plugin.package}"
            ) from None
        _registered.add(plugin.module)


def devices(execution_provider: str) -> list[Any]:
    """Return the devices (``onnxruntime.OrtEpDevice``) of a provider that is built in or a registered plugin."""
    return [device for device in ort.get_ep_devices() if device.ep_name == execution_provider]


def is_registered(execution_provider: str) -> bool:
    """Whether a plugin in this process, registered by this module or by other code, has devices for a provider."""
    return any("library_path" in device.ep_metadata for device in devices(execution_provider))


def device_lines() -> list[str]:
    """Return one line for each device of this machine: provider, kind of device, vendor and name."""
    lines = []
    for device in ort.get_ep_devices():
        hardware = device.device
        name = device.ep_metadata.get("FULL_DEVICE_NAME") or hardware.metadata.get("Description") or ""
        words = " ".join(filter(None, (hardware.type.name, hardware.vendor, name)))
        lines.append(f"{device.ep_name}: {words}")
    return lines
