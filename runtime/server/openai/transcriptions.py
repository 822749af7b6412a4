"""The endpoints of OpenAI's audio API: transcriptions and models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, aclosing, contextmanager
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from runtime.errors import CapabilityError, OptionError
from runtime.results import Segment, Transcript
from runtime.server.errors import Closing
from runtime.server.http.clients import unless_gone
from runtime.server.http.problems import invalid, overloaded, unknown_model
from runtime.server.http.sse import send_events, transcript_events
from runtime.server.http.uploads import FILE_FIELD, Form, received_form
from runtime.server.logs import Record
from runtime.server.openai.options import TranscriptionOptions, transcription_options
from runtime.server.openai.replies import json_reply, model_entry, reply
from runtime.server.settings import Settings
from runtime.transcriber import Request as Asked

if TYPE_CHECKING:
    from runtime.server.scheduling.service import Results, Service

# When too many send at once: seconds after which a place may be free.
_UPLOAD_RETRY = 1


async def models(request: Request) -> Response:
    """``GET /v1/models``."""
    services: Mapping[str, Service] = request.app.state.services
    return json_reply({"object": "list", "data": [model_entry(service) for service in services.values()]})


async def model(request: Request) -> Response:
    """``GET /v1/models/{id}``."""
    return json_reply(model_entry(_service(request.app.state.services, request.path_params["id"])))


def _service(services: Mapping[str, Service], name: str | None) -> Service:
    """The model with this name; the first where none is named.

    Raises:
        RequestProblem: there is none.
    """
    if name is None:
        return next(iter(services.values()))
    if name not in services:
        raise unknown_model(name, list(services))
    return services[name]


class Transcriptions:
    """``POST /v1/audio/transcriptions``, an ASGI application: the upload must live until the last event is sent."""

    def __init__(self, services: Mapping[str, Service], settings: Settings) -> None:
        self._services, self._settings = services, settings
        self._receiving = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises what :mod:`runtime.server.http.problems` makes answers of, and ClientGone."""
        if not any(service.ready for service in self._services.values()):
            raise Closing("The server is shutting down, or not yet started.")
        with ExitStack() as index:
            index.enter_context(self._place_to_receive())
            async with received_form(Headers(scope=scope), receive, self._settings.limits) as form:
                index.close()
                await self._answer(form, scope["state"]["record"], scope, receive, send)

    @contextmanager
    def _place_to_receive(self) -> Iterator[None]:
        """One of those that may send at once: that takes memory and disk before a model's queue can refuse it.

        Raises:
            RequestProblem: all are taken.
        """
        if self._receiving >= self._settings.limits.max_queue:
            raise overloaded("Too many files are being sent at once; try again later.", _UPLOAD_RETRY)
        self._receiving += 1
        try:
            yield
        finally:
            self._receiving -= 1

    async def _answer(self, form: Form, record: Record, scope: Scope, receive: Receive, send: Send) -> None:
        options = transcription_options(form.values, vad=self._settings.vad)
        service = _service(self._services, options.model)
        record.model = service.name
        if form.file is None:
            raise invalid("The form has no `file`.", FILE_FIELD)
        language = _checked(service, options)
        if options.stream:
            heard = service.segments(form.file, language=language, context=options.prompt)
            await self._stream(heard, record, receive, send)
            return
        work = service.transcribe(form.file, language=language, context=options.prompt)
        transcript = await unless_gone(receive, work)
        record.heard(transcript)
        await reply(transcript, options.response_format, words=options.words)(scope, receive, send)

    async def _stream(self, heard: Results, record: Record, receive: Receive, send: Send) -> None:
        """Send what is heard as events. What is wrong before the first of them is an answer of its own."""

        async def first() -> Segment | Transcript:
            return await anext(heard)

        async def everything(begin: Segment | Transcript) -> AsyncIterator[Segment | Transcript]:
            each = begin
            while not isinstance(each, Transcript):
                yield each
                each = await anext(heard)
            record.heard(each)
            yield each

        try:
            events = transcript_events(everything(await unless_gone(receive, first())))
            async with aclosing(events):
                await send_events(events, receive, send, record.id)
        finally:
            await heard.aclose()


def _checked(service: Service, options: TranscriptionOptions) -> str | None:
    """The language's name, if the model can do what is asked for: what it cannot is said of its field.

    Raises:
        CapabilityError: it cannot.
        RequestProblem: a language that it does not know.
    """
    try:
        return service.transcriber.check(Asked("", options.language, options.prompt), words=options.words)
    except CapabilityError:
        raise
    except OptionError as error:
        raise invalid(str(error), "language") from None
