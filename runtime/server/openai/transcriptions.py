"""Endpoints of OpenAI's audio API: transcriptions and models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, aclosing, contextmanager
from typing import TYPE_CHECKING, BinaryIO

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from runtime.results import Segment, Transcript
from runtime.server.errors import Closing
from runtime.server.http.api_errors import invalid, overloaded, unknown_model
from runtime.server.http.disconnects import run_until_disconnect
from runtime.server.http.uploads import FILE_FIELD, Form, receive_form
from runtime.server.logs import Record
from runtime.server.openai.options import TranscriptionOptions, parse_options
from runtime.server.openai.replies import json_response, model_entry, transcript_response
from runtime.server.openai.sse import send_events, transcript_events
from runtime.server.settings import Settings
from runtime.transcriber import Request as TranscriptionRequest
from runtime.transcriber import ValidatedRequest

if TYPE_CHECKING:
    from runtime.server.scheduling.service import Results, Service

# Seconds after which a client should try again when too many uploads are in progress.
_UPLOAD_RETRY_SECONDS = 1

# Number of tokens at the start of a prompt that were dropped because it was too long; absent when none were.
DROPPED_HEADER = "x-prompt-tokens-dropped"


async def list_models(request: Request) -> Response:
    """Answer ``GET /v1/models``."""
    services: Mapping[str, Service] = request.app.state.services
    return json_response({"object": "list", "data": [model_entry(service) for service in services.values()]})


async def get_model(request: Request) -> Response:
    """Answer ``GET /v1/models/{id}``."""
    return json_response(model_entry(_find_service(request.app.state.services, request.path_params["id"])))


def _find_service(services: Mapping[str, Service], name: str | None) -> Service:
    """Return the service of a model; the first one if ``name`` is None.

    Raises:
        ApiError: there is no model with this name.
    """
    if name is None:
        return next(iter(services.values()))
    if name not in services:
        raise unknown_model(name, list(services))
    return services[name]


class TranscriptionEndpoint:
    """``POST /v1/audio/transcriptions``.

    An ASGI application rather than an endpoint function, because the upload must stay open until the last event is
    sent.
    """

    def __init__(self, services: Mapping[str, Service], settings: Settings) -> None:
        self._services, self._settings = services, settings
        self._uploads = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request.

        Raises:
            ClientDisconnected: the client disconnected.
            AsrError: the request is invalid; :func:`runtime.server.http.api_errors.to_api_error` makes the response.
            EngineFailure: the engine failed before the response started.
        """
        if not any(service.ready for service in self._services.values()):
            raise Closing("The server is starting or shutting down; try again later.")
        with ExitStack() as upload:
            upload.enter_context(self._upload_slot())
            async with receive_form(Headers(scope=scope), receive, self._settings.limits) as form:
                upload.close()
                await self._answer(form, scope["state"]["record"], scope, receive, send)

    @contextmanager
    def _upload_slot(self) -> Iterator[None]:
        """Count an upload in progress. Uploads use memory and disk before a model's queue can refuse them.

        Raises:
            ApiError: ``max_queue`` uploads are in progress.
        """
        if self._uploads >= self._settings.limits.max_queue:
            raise overloaded("Too many files are being uploaded; try again later.", _UPLOAD_RETRY_SECONDS)
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1

    async def _answer(self, form: Form, record: Record, scope: Scope, receive: Receive, send: Send) -> None:
        options = parse_options(form.values, vad=self._settings.vad)
        service = _find_service(self._services, options.model)
        record.model = service.name
        if form.file is None:
            raise invalid("The form has no field `file`.", FILE_FIELD)
        service.check_capacity()
        request = await run_until_disconnect(receive, _validate(service, options, form.file))
        audio_in_prompt = service.transcriber.audio_in_prompt
        headers = {DROPPED_HEADER: str(request.dropped_context_tokens)} if request.dropped_context_tokens else {}
        if options.stream:
            await self._stream(service.segments(request), audio_in_prompt, record, receive, send, headers)
            return
        transcript = await run_until_disconnect(receive, service.transcribe(request))
        record.set_transcript(transcript)
        response = transcript_response(
            transcript, options.response_format, words=options.words, audio_in_prompt=audio_in_prompt
        )
        response.headers.update(headers)
        await response(scope, receive, send)

    async def _stream(
        self,
        results: Results,
        audio_in_prompt: bool,
        record: Record,
        receive: Receive,
        send: Send,
        headers: Mapping[str, str],
    ) -> None:
        """Send results as events. An error before the first result becomes an ordinary error response."""

        async def first_result() -> Segment | Transcript:
            return await anext(results)

        async def all_results(first: Segment | Transcript) -> AsyncIterator[Segment | Transcript]:
            result = first
            while not isinstance(result, Transcript):
                yield result
                result = await anext(results)
            record.set_transcript(result)
            yield result

        try:
            first = await run_until_disconnect(receive, first_result())
            events = transcript_events(all_results(first), audio_in_prompt=audio_in_prompt)
            async with aclosing(events):
                await send_events(events, receive, send, record.id, headers)
        finally:
            await results.aclose()


async def _validate(service: Service, options: TranscriptionOptions, file: BinaryIO) -> ValidatedRequest:
    """Validate the options against the model, in a thread: tokenizing a long prompt takes time.

    Raises:
        CapabilityError: the model does not support an option.
        OptionError: the language is unknown, or the prompt contains a reserved token.
    """
    transcriber = service.transcriber
    request = TranscriptionRequest(
        file,
        options.language,
        options.prompt,
        name="the audio",
        track=options.track,
        timestamps=options.segments and transcriber.capabilities.timestamps,
    )
    return await asyncio.to_thread(transcriber.validate, request, words=options.words, shorten_context=True)
