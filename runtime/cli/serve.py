"""Command ``serve``: HTTP and WebSocket server compatible with OpenAI's audio API."""

from __future__ import annotations

import importlib
import math
import os
import re
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from runtime.cli.common import (
    BatchOption,
    DecoderProviderOption,
    EncoderProviderOption,
    MemoryOption,
    ProviderOption,
    SegmentOption,
    ThreadsOption,
    VadOption,
    guarded,
    parse_bytes,
)
from runtime.engines.base import DEFAULT_BATCH
from runtime.errors import OptionError, PackageMissingError
from runtime.model.bundled import default_model
from runtime.server.limits import Limits
from runtime.transcriber import Transcriber

_MODULES = ("starlette", "uvicorn", "python_multipart", "prometheus_client", "websockets")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]*")
_HOST = re.compile(r"[A-Za-z0-9._-]+")
_LIMITS = Limits()
_MAX_UPLOAD_MB = _LIMITS.max_upload_bytes / 1e6
_MAX_GRACE = 86_400


class LogFormat(StrEnum):
    """Format of the log on standard error."""

    text = "text"
    json = "json"


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="[NAME=]DIR",
            help="Model folder, optionally with a name for clients. Repeat it to serve several models; the first is "
            "the default. [default: the bundled model]",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all interfaces.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free port.")] = 8000,
    provider: ProviderOption = None,
    encoder_provider: EncoderProviderOption = None,
    decoder_provider: DecoderProviderOption = None,
    threads: ThreadsOption = None,
    max_batch: BatchOption = DEFAULT_BATCH,
    memory: MemoryOption = None,
    segment_seconds: SegmentOption = None,
    vad: VadOption = True,
    api_keys_file: Annotated[
        Path | None,
        typer.Option(
            help="File with API keys, one per line; # starts a comment. The variable ASR_DEPLOY_API_KEYS may hold more "
            "keys, separated by commas."
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Host name that browsers may use for this server, in addition to IP addresses and local names; only "
            "needed without keys. Repeat it for several names.",
        ),
    ] = None,
    max_upload_mb: Annotated[float, typer.Option(help="Maximum size of a file in MB.")] = _MAX_UPLOAD_MB,
    max_audio_seconds: Annotated[
        float, typer.Option(help="Maximum duration of a file in seconds.")
    ] = _LIMITS.max_audio_seconds,
    max_queue: Annotated[
        int, typer.Option(help="Maximum number of unfinished requests per model; further ones get status 429.")
    ] = _LIMITS.max_queue,
    max_streams: Annotated[int, typer.Option(help="Maximum number of live streams per model.")] = _LIMITS.max_streams,
    max_connections: Annotated[int, typer.Option(help="Maximum number of open connections.")] = _LIMITS.max_connections,
    deadline: Annotated[float, typer.Option(help="Maximum duration of a request in seconds.")] = _LIMITS.deadline,
    grace: Annotated[float, typer.Option(help="Seconds that accepted requests get to finish at shutdown.")] = 30.0,
    log_text: Annotated[bool, typer.Option("--log-text", help="Write transcripts to the log.")] = False,
    log_format: Annotated[LogFormat, typer.Option(help="Format of the log.")] = LogFormat.text,
) -> None:
    """Serve models over HTTP and WebSocket, compatible with OpenAI's audio API, with a web page to try them.

    The first SIGTERM or Ctrl+C finishes accepted requests and stops; the second stops at once.
    """
    with guarded():
        _check_packages()
        from runtime.server.keys import read_keys, readable_by_others
        from runtime.server.logs import configure_logging
        from runtime.server.metrics import Metrics
        from runtime.server.scheduling.service import Service
        from runtime.server.serve import bind, is_loopback, url
        from runtime.server.serve import serve as serve_until_stopped
        from runtime.server.settings import Settings

        if not 0 < max_upload_mb < math.inf:
            raise OptionError(f"--max-upload-mb must be positive, not {max_upload_mb:g}")
        limits = Limits(
            max_queue=max_queue,
            max_streams=max_streams,
            max_upload_bytes=int(max_upload_mb * 1e6),
            max_audio_seconds=max_audio_seconds,
            deadline=deadline,
            max_connections=max_connections,
        )
        if not 0 <= grace <= _MAX_GRACE:
            raise OptionError(f"--grace must be from 0 to {_MAX_GRACE} s, not {grace:g}")
        settings = Settings(
            read_keys(api_keys_file, os.environ),
            limits,
            log_text,
            vad,
            grace,
            (host.lower(), *_host_names(allow_host or [])),
        )
        folders = _folders(model or [str(default_model())])
        with bind(host, port) as bound:
            if api_keys_file is not None and readable_by_others(api_keys_file):
                _warn(f"{api_keys_file}: other users can read these keys; run chmod 600 on the file")
            if not settings.keys and not is_loopback(host):
                _warn(f"anyone who can reach {host} may use this server; require a key with --api-keys-file")
            metrics = Metrics()
            services: dict[str, Service] = {}
            for name, folder in folders:
                transcriber = Transcriber.from_artifact(
                    folder,
                    provider=provider or "cpu",
                    encoder_provider=encoder_provider,
                    decoder_provider=decoder_provider,
                    threads=threads,
                    max_batch=max_batch,
                    memory=parse_bytes(memory),
                    segment_seconds=segment_seconds,
                    vad=vad,
                )
                name = name or transcriber.artifact.manifest.name
                if name in services:
                    raise OptionError(f"two models are named {name!r}; rename one with --model NAME=DIR")
                services[name] = Service(name, transcriber, limits, metrics)
            configure_logging(log_format.value)
            ready = f"{url(bound, host)} serves {', '.join(services)}"
            serve_until_stopped(services, settings, metrics, bound, lambda: typer.echo(ready, err=True))


def _check_packages() -> None:
    """Import the packages of the extra ``serve``.

    Raises:
        PackageMissingError: one of them cannot be imported.
    """
    for module in _MODULES:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise PackageMissingError(
                f"serve needs additional packages ({error}): pip install 'asr-deploy[serve]'"
            ) from None


def _host_names(names: Iterable[str]) -> tuple[str, ...]:
    """Normalize host names for comparison: lower case, without a trailing dot.

    Raises:
        OptionError: a value is more than a host name, such as a URL.
    """
    for name in names:
        if not _HOST.fullmatch(name):
            raise OptionError(f"--allow-host {name}: give only a host name such as asr.example.org, without a port")
    return tuple(name.lower().removesuffix(".") for name in names)


def _folders(values: Iterable[str]) -> list[tuple[str | None, Path]]:
    """Split each ``[NAME=]DIR`` into name, or None, and folder. An existing folder may have = in its name.

    Raises:
        OptionError: a name has invalid characters.
        OptionError: a name is given twice.
    """
    folders: list[tuple[str | None, Path]] = []
    for value in values:
        name, equals, folder = value.partition("=")
        if not equals or Path(value).is_dir():
            folders.append((None, Path(value)))
            continue
        if not _NAME.fullmatch(name):
            raise OptionError(
                f"--model {value}: a name consists of letters, digits and ._:/- and starts with a letter or digit"
            )
        if name in (known for known, _ in folders):
            raise OptionError(f"two models are named {name!r}; give each a different name")
        folders.append((name, Path(folder)))
    return folders


def _warn(message: str) -> None:
    typer.echo(f"warning: {message}", err=True)
