"""ASGI application: routes, error handlers, and startup and shutdown of the models' services."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import cast

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute

from runtime.errors import AsrError
from runtime.server.errors import EngineFailure
from runtime.server.http import page
from runtime.server.http.api_errors import routing_error, to_api_error
from runtime.server.http.middleware import RequestMiddleware
from runtime.server.metrics import Metrics
from runtime.server.openai.replies import json_response
from runtime.server.openai.transcriptions import TranscriptionEndpoint, get_model, list_models
from runtime.server.realtime.routes import realtime
from runtime.server.scheduling.service import Service
from runtime.server.settings import Settings

log = logging.getLogger(__name__)


class ServiceGroup:
    """All services of a server. They are started together and drained once."""

    def __init__(self, services: Mapping[str, Service], grace: float) -> None:
        self._services, self._grace = services, grace
        self._drain_task: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether every model accepts requests."""
        return self._drain_task is None and all(service.ready for service in self._services.values())

    async def start(self) -> None:
        """Start all services."""
        for service in self._services.values():
            await service.start()

    async def drain(self) -> None:
        """Refuse new requests and finish accepted ones within the grace period. Further calls wait for the first."""
        self._drain_task = self._drain_task or asyncio.create_task(self._drain())
        await self._drain_task

    async def _drain(self) -> None:
        await asyncio.gather(*(service.drain(self._grace) for service in self._services.values()))


def make_app(services: Mapping[str, Service], settings: Settings, metrics: Metrics) -> Starlette:
    """Create the application.

    Its lifespan starts and drains the services.

    Args:
        services: services by model name; the first is the default.
        settings: settings of the server.
        metrics: metrics that ``/metrics`` exposes.

    Returns:
        The application. Its ``state`` has ``services``, ``settings``, ``metrics`` and ``service_group``.
    """
    group = ServiceGroup(services, settings.grace)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await group.start()
        try:
            yield
        finally:
            await group.drain()

    app = Starlette(
        routes=[
            Route("/v1/audio/transcriptions", TranscriptionEndpoint(services, settings), methods=["POST"]),
            Route("/v1/models", list_models),
            Route("/v1/models/{id:path}", get_model),
            WebSocketRoute("/v1/realtime", realtime),
            Route("/health", _health),
            Route("/ready", _ready),
            Route("/metrics", _metrics),
            *page.routes(),
        ],
        middleware=[Middleware(RequestMiddleware, settings=settings, metrics=metrics)],
        exception_handlers={AsrError: _handle_error, EngineFailure: _handle_error, HTTPException: _handle_routing},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.services, app.state.settings, app.state.metrics, app.state.service_group = (
        services,
        settings,
        metrics,
        group,
    )
    return app


async def _health(_: Request) -> Response:
    """Answer 200 while the process runs."""
    return json_response({"status": "ok"})


async def _ready(request: Request) -> Response:
    """Answer 200 while all models accept requests, otherwise 503."""
    ready = request.app.state.service_group.ready
    return json_response({"status": "ready" if ready else "not ready"}, 200 if ready else 503)


async def _metrics(request: Request) -> Response:
    return Response(request.app.state.metrics.exposition(), headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})


async def _handle_error(request: Request, error: Exception) -> Response:
    """Answer with OpenAI's error object; log the reason of an internal failure."""
    record = request.state.record
    api_error = to_api_error(cast("AsrError | EngineFailure", error), record.id)
    if api_error.status == 500:
        log.error("request %s: failed", record.id, exc_info=error)
    return api_error.response()


async def _handle_routing(_: Request, error: Exception) -> Response:
    """Answer a request with an unknown path or method."""
    exception = cast("HTTPException", error)
    return routing_error(exception.status_code, dict(exception.headers or {})).response()
