"""Exceptions of the project. Each one derives from :class:`AsrError` and from a matching builtin exception.

The command line reports an :class:`AsrError` as one sentence on standard error and ends with exit code 2.
"""

from __future__ import annotations


class AsrError(Exception):
    """Base class of every error that this project raises on purpose."""


class ArtifactNotFoundError(AsrError, FileNotFoundError):
    """The artifact folder, its manifest or a file listed in the manifest is missing."""


class ArtifactInvalidError(AsrError, ValueError):
    """The manifest is malformed, or a file of the artifact does not match it."""


class AudioNotFoundError(AsrError, FileNotFoundError):
    """The audio file does not exist."""


class AudioInvalidError(AsrError, ValueError):
    """The audio cannot be decoded, is empty or truncated, or has samples that are not finite."""


class AudioUnsupportedError(AsrError, ImportError):
    """The audio container needs an optional package that is not installed."""


class DatasetNotFoundError(AsrError, FileNotFoundError):
    """The folder of recordings does not exist, or has no recording with a reference text."""


class DatasetInvalidError(AsrError, ValueError):
    """An index or a reference text is malformed, or points outside its folder."""


class PackageMissingError(AsrError, ImportError):
    """A feature needs an optional package that is not installed."""


class DeviceError(AsrError, OSError):
    """A microphone does not exist, is in use or was disconnected."""


class OptionError(AsrError, ValueError):
    """An option has an invalid value, or the model does not support it.

    Attributes:
        option: name of the option of :meth:`Transcriber.transcribe`, if it is one.
    """

    def __init__(self, message: str, option: str | None = None) -> None:
        super().__init__(message, option)
        self.option = option

    def __str__(self) -> str:
        return str(self.args[0])


class CapabilityError(OptionError):
    """The model does not support an option of :meth:`Transcriber.transcribe`."""


class ProviderError(AsrError, RuntimeError):
    """An execution provider is unknown, not available, did not become active or failed while it ran."""


class MeasurementError(AsrError, RuntimeError):
    """A process that measures something ended without a result."""


class OutputError(AsrError, OSError):
    """Results cannot be written, or existing output was not written by this batch."""


class WorkerError(AsrError, RuntimeError):
    """A worker process cannot be started, or died."""


class ComparisonError(AsrError, RuntimeError):
    """The baseline of a comparison of providers could not be measured."""
