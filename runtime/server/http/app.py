"""The ASGI application: routes, what errors become, and the life of the models' services."""

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
from runtime.server.http.edge import Edge
from runtime.server.http.problems import http_problem, problem
from runtime.server.metrics import Metrics
from runtime.server.openai.replies import json_reply
from runtime.server.openai.transcriptions import Transcriptions, model, models
from runtime.server.realtime.routes import realtime
from runtime.server.scheduling.service import Service
from runtime.server.settings import Settings

log = logging.getLogger(__name__)


class Services:
    """All models of a server: started together, and drained once, whoever asks first."""

    def __init__(self, services: Mapping[str, Service], grace: float) -> None:
        self._services, self._grace = services, grace
        self._drained: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether every model takes requests."""
        return self._drained is None and all(service.ready for service in self._services.values())

    async def start(self) -> None:
        """Start all."""
        for service in self._services.values():
            await service.start()

    async def drain(self) -> None:
        """Take nothing new, finish what was accepted, for as long as the grace lasts."""
        self._drained = self._drained or asyncio.create_task(self._drain())
        await self._drained

    async def _drain(self) -> None:
        await asyncio.gather(*(service.drain(self._grace) for service in self._services.values()))


def make_app(services: Mapping[str, Service], settings: Settings, metrics: Metrics) -> Starlette:
    """The application in front of ``services``, by model name; the first is the default.

    Its lifespan starts and drains them. ``app.state`` has ``services``, ``settings``, ``metrics`` and ``life``.
    """
    life = Services(services, settings.grace)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await life.start()
        try:
            yield
        finally:
            await life.drain()

    app = Starlette(
        routes=[
            Route("/v1/audio/transcriptions", Transcriptions(services, settings), methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{id:path}", model),
            WebSocketRoute("/v1/realtime", realtime),
            Route("/health", _health),
            Route("/ready", _ready),
            Route("/metrics", _metrics),
            *page.routes(),
        ],
        middleware=[Middleware(Edge, settings=settings, metrics=metrics)],
        exception_handlers={AsrError: _refused, EngineFailure: _refused, HTTPException: _unrouted},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.services, app.state.settings, app.state.metrics, app.state.life = services, settings, metrics, life
    return app


async def _health(_: Request) -> Response:
    """The process lives."""
    return json_reply({"status": "ok"})


async def _ready(request: Request) -> Response:
    """Whether requests are taken: not before the models are started, and not once the server stops."""
    ready = request.app.state.life.ready
    return json_reply({"status": "ready" if ready else "not ready"}, 200 if ready else 503)


async def _metrics(request: Request) -> Response:
    return Response(request.app.state.metrics.exposition(), headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})


async def _refused(request: Request, error: Exception) -> Response:
    """An error of ours as the client is told; the reason of a failure goes to the log."""
    record = request.state.record
    told = problem(cast("AsrError | EngineFailure", error), record.id)
    if told.status == 500:
        log.error("request %s: failed", record.id, exc_info=error)
    return told.response()


async def _unrouted(_: Request, error: Exception) -> Response:
    refused = cast("HTTPException", error)
    return http_problem(refused.status_code, dict(refused.headers or {})).response()
