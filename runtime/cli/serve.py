"""``serve``: models behind HTTP and WebSocket, in OpenAI's shapes."""

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
from runtime.server.limits import Limits
from runtime.transcriber import Transcriber, default_model

_MODULES = ("starlette", "uvicorn", "python_multipart", "prometheus_client", "websockets")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]*")
_HOST = re.compile(r"[A-Za-z0-9._-]+")
_LIMITS = Limits()
_LONGEST_GRACE = 86_400


class LogFormat(StrEnum):
    """How the log is written to standard error."""

    text = "text"
    json = "json"


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="[NAME=]DIR",
            help="A model's folder, under its own name or another; repeat it for several, the first is the default. "
            "[default: the small model that comes along]",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks one that is free.")] = 8000,
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
            help="API keys, one a line, # begins a comment; ASR_DEPLOY_API_KEYS may hold more, separated by commas."
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Without keys: a name under which browsers find this server, beside addresses and local names; "
            "repeat it for several.",
        ),
    ] = None,
    max_upload_mb: Annotated[float, typer.Option(help="Largest file, in MB.")] = _LIMITS.max_upload_bytes / 1e6,
    max_audio_seconds: Annotated[float, typer.Option(help="Longest audio of a file.")] = _LIMITS.max_audio_seconds,
    max_queue: Annotated[int, typer.Option(help="Most requests at once for a model; more get 429.")] = (
        _LIMITS.max_queue
    ),
    max_streams: Annotated[int, typer.Option(help="Most live streams at once for a model.")] = _LIMITS.max_streams,
    max_connections: Annotated[int, typer.Option(help="Most connections at once.")] = _LIMITS.max_connections,
    deadline: Annotated[float, typer.Option(help="Seconds that a request may take.")] = _LIMITS.deadline,
    grace: Annotated[float, typer.Option(help="Seconds for accepted requests to finish when the server stops.")] = 30.0,
    log_text: Annotated[bool, typer.Option("--log-text", help="Write what was transcribed into the log.")] = False,
    log_format: Annotated[LogFormat, typer.Option(help="Lines of text, or of JSON.")] = LogFormat.text,
) -> None:
    """Serve models over HTTP as OpenAI's audio API does, with live audio over WebSocket and a page to try it.

    The first SIGTERM or Ctrl+C finishes what was accepted, the second ends at once.
    """
    with guarded():
        _check_packages()
        from runtime.server.http.keys import read_keys, readable_by_others
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
        if not 0 <= grace <= _LONGEST_GRACE:
            raise OptionError(f"--grace must be from 0 to {_LONGEST_GRACE} s, not {grace:g}")
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
                _warn(f"{api_keys_file}: others can read these keys; chmod 600 it")
            if not settings.keys and not is_loopback(host):
                _warn(f"whoever can reach {host} may use this server; --api-keys-file asks for a key")
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
                    raise OptionError(f"two models are named {name!r}; name one with --model NAME=DIR")
                services[name] = Service(name, transcriber, limits, metrics)
            configure_logging(log_format.value)
            ready = f"{url(bound, host)} serves {', '.join(services)}"
            serve_until_stopped(services, settings, metrics, bound, lambda: typer.echo(ready, err=True))


def _check_packages() -> None:
    """Raises PackageMissingError unless everything of the extra ``serve`` can be imported."""
    for module in _MODULES:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise PackageMissingError(f"serve needs more packages ({error}): pip install 'asr-deploy[serve]'") from None


def _host_names(given: Iterable[str]) -> tuple[str, ...]:
    """Names as they are compared.

    Raises:
        OptionError: one has more than a name.
    """
    for name in given:
        if not _HOST.fullmatch(name):
            raise OptionError(f"--allow-host {name}: give a name alone, such as asr.example.org, without a port")
    return tuple(name.lower().removesuffix(".") for name in given)


def _folders(given: Iterable[str]) -> list[tuple[str | None, Path]]:
    """Each ``[NAME=]DIR`` as name, if it has one, and folder. A folder may have = in its name when it exists.

    Raises:
        OptionError: a name that is none, or one that is given twice.
    """
    found: list[tuple[str | None, Path]] = []
    for each in given:
        name, equals, folder = each.partition("=")
        if not equals or Path(each).is_dir():
            found.append((None, Path(each)))
            continue
        if not _NAME.fullmatch(name):
            raise OptionError(f"--model {each}: a name has letters, digits and ._:/- and begins with a letter or digit")
        if name in (known for known, _ in found):
            raise OptionError(f"two models are named {name!r}; give each a name of its own")
        found.append((name, Path(folder)))
    return found


def _warn(sentence: str) -> None:
    typer.echo(f"warning: {sentence}", err=True)
