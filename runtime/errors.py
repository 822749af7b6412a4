"""The runtime's errors: each is an :class:`AsrError` and the builtin exception that it is.

The command line turns an :class:`AsrError` into one sentence on standard error and exit code 2.
"""

from __future__ import annotations


class AsrError(Exception):
    """Base of everything this project raises on purpose."""


class ArtifactNotFoundError(AsrError, FileNotFoundError):
    """No such artifact folder, or a file that its manifest names is missing."""


class ArtifactInvalidError(AsrError, ValueError):
    """The manifest, or a file of the artifact, is not what the manifest says."""


class AudioNotFoundError(AsrError, FileNotFoundError):
    """No such audio file."""


class AudioInvalidError(AsrError, ValueError):
    """The audio cannot be decoded, is empty, truncated, or holds samples that are no numbers."""


class AudioUnsupportedError(AsrError, ImportError):
    """The container needs an optional package that is not installed."""


class DatasetNotFoundError(AsrError, FileNotFoundError):
    """No such folder of recordings, or nothing in it that has a reference text."""


class DatasetInvalidError(AsrError, ValueError):
    """An index or a reference text is malformed, or points outside its folder."""


class PackageMissingError(AsrError, ImportError):
    """An optional package that this needs is not installed."""


class DeviceError(AsrError, OSError):
    """A microphone is not there, is in use, or was unplugged."""


class OptionError(AsrError, ValueError):
    """An option's value is unknown, or this model cannot do what it asks for."""


class CapabilityError(OptionError):
    """A model cannot do what an option asks for; ``option`` is its name in :meth:`Transcriber.transcribe`."""

    def __init__(self, message: str, option: str) -> None:
        super().__init__(message, option)
        self.option = option

    def __str__(self) -> str:
        return str(self.args[0])


class ProviderError(AsrError, RuntimeError):
    """An execution provider is unknown, not available, or did not become active."""


class MeasurementError(AsrError, RuntimeError):
    """A process that was to measure something ended without a result."""


class OutputError(AsrError, OSError):
    """Results cannot be written, or what lies there was not made by this batch."""


class WorkerError(AsrError, RuntimeError):
    """A worker process cannot be started, or died."""


class ComparisonError(AsrError, RuntimeError):
    """What providers are to be compared with could not be measured itself."""
