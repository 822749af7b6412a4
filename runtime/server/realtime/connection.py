"""One client of ``/v1/realtime``, from the accepted WebSocket to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NoReturn

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from runtime.audio.segmentation import PAUSE_SECONDS
from runtime.engines.base import SegmentOptions
from runtime.errors import AsrError, CapabilityError, OptionError
from runtime.pipeline.streaming import LiveOptions
from runtime.server.errors import AudioTooLong, Busy, Closing, EngineFailure
from runtime.server.limits import Limits
from runtime.server.realtime.audio import Samples, decode_audio
from runtime.server.realtime.events import Items, ServerEvent, error_event, new_id, server_event
from runtime.server.realtime.inbox import Inbox
from runtime.server.realtime.session import (
    EventError,
    SessionConfig,
    as_legacy_session,
    as_session,
    read_legacy_session,
    read_session,
)
from runtime.server.scheduling.service import LiveStream, Service
from runtime.transcriber import Request

# Bytes of one message: 16 s of 16-bit samples at 24 kHz in base64. The server in front is to have the same limit.
MAX_MESSAGE_BYTES = 1 << 20
# Characters that are read ahead of what is fed: half a minute at 24 kHz.
INBOX_CHARACTERS = 2 * MAX_MESSAGE_BYTES
# Seconds without an event of the client, and for one that does not read what it is sent.
IDLE_SECONDS = 120.0
SEND_SECONDS = 30.0
# Events in a row that cannot be handled.
MAX_OFFENCES = 16
_MAX_EVENT_ID = 512

# Of RFC 6455 and IANA's registry.
GOING_AWAY, POLICY_VIOLATION, TOO_BIG, INTERNAL_ERROR, TRY_AGAIN_LATER = 1001, 1008, 1009, 1011, 1013


class _Over(Exception):  # noqa: N818 (no error: it ends the tasks of a connection)
    """The connection ends: with this code, or without one when the client is gone."""

    def __init__(self, code: int | None = None, reason: str = "") -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class Connection:
    """A session: its configuration, and the live stream that is open, if one is.

    A stream is opened by the first audio, and ends with a commit; the audio after that opens the next. So what is
    committed is known to be complete when the stream has ended, whether it held speech or not.

    Three tasks: one reads the WebSocket, one handles what was read, one sends what the stream tells. Whichever ends the
    connection raises :class:`_Over`, and the others are cancelled.
    """

    def __init__(
        self,
        websocket: WebSocket,
        services: Mapping[str, Service],
        limits: Limits,
        *,
        model: str,
        partials: bool = False,
    ) -> None:
        """``websocket`` is accepted; ``model`` is one of ``services``."""
        self._websocket, self._services, self._limits = websocket, services, limits
        self._config = SessionConfig(model)
        self._id = new_id("sess")
        self._items = Items(partials=partials)
        self._inbox = Inbox(INBOX_CHARACTERS)
        self._tasks = asyncio.TaskGroup()
        self._seconds = 0.0  # of audio, in all
        self._stream: LiveStream | None = None
        self._delivery: asyncio.Task[None] | None = None
        self._finishing = False

    async def run(self) -> None:
        """Serve the client until one side ends it. The stream is given up at once when the client is gone."""
        over = _Over()
        try:
            async with self._tasks:
                self._tasks.create_task(self._receive())
                await self._handle()
        except* _Over as ends:
            first = ends.exceptions[0]
            assert isinstance(first, _Over)
            over = first
        finally:
            await self._give_up()
        if over.code is not None:
            with suppress(WebSocketDisconnect):
                await self._websocket.close(over.code, over.reason)

    # Reading.

    async def _receive(self) -> None:
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise _Over
            text = message.get("text")
            if len(text or message.get("bytes") or "") > MAX_MESSAGE_BYTES:
                await self._refuse(f"a message may have {MAX_MESSAGE_BYTES} bytes; send shorter pieces of audio")
                raise _Over(TOO_BIG, "message too big")
            await self._inbox.put(text)

    async def _handle(self) -> None:
        await self._send(server_event("session.created", session=as_session(self._config, self._id)))
        offences = 0
        while True:
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    message = await self._inbox.get()
            except TimeoutError:
                await self._refuse(f"nothing was sent for {IDLE_SECONDS:g} s", code="idle_timeout")
                await self._end("idle")
            client_id = None
            try:
                event = _parsed(message)
                client_id = _event_id(event)
                await self._dispatch(event)
                offences = 0
            except EventError as error:
                await self._refuse(str(error), code=error.code, param=error.param, event_id=client_id)
                offences += 1
                if offences >= MAX_OFFENCES:
                    raise _Over(POLICY_VIOLATION, "too many events in a row that cannot be handled") from None

    async def _dispatch(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "input_audio_buffer.append":
                await self._append(decode_audio(event.get("audio"), self._config.encoding))
            case "input_audio_buffer.commit":
                await self._commit()
            case "input_audio_buffer.clear":
                await self._give_up()
                await self._send(server_event("input_audio_buffer.cleared"))
            case "session.update":
                await self._update(read_session(self._config, event.get("session"), self._services), legacy=False)
            case "transcription_session.update":
                config = read_legacy_session(self._config, event.get("session"), self._services)
                await self._update(config, legacy=True)
            case kind:
                raise EventError(
                    f"there are no events {kind[:64]!r} in a transcription session", "unknown_event", "type"
                )

    # What a client may ask for.

    async def _update(self, config: SessionConfig, *, legacy: bool) -> None:
        await self._check(
            config, "session.input_audio_transcription" if legacy else "session.audio.input.transcription"
        )
        if config != self._config and self._stream:
            if self._config.pause is None:
                raise EventError(
                    "there is audio that was not committed; commit or clear it before the session changes",
                    "session_in_use",
                    "session",
                )
            await self._finish()
        self._config, self._items.legacy = config, legacy
        if legacy:
            session = as_legacy_session(config, self._id)
            await self._send(server_event("transcription_session.updated", session=session))
        else:
            await self._send(server_event("session.updated", session=as_session(config, self._id)))

    async def _check(self, config: SessionConfig, path: str) -> None:
        """Find out now, not with the first audio, what the model cannot do."""
        transcriber = self._services[config.model].transcriber
        try:
            language = transcriber.check(Request("", config.language, config.prompt))
        except CapabilityError as error:
            field = "prompt" if error.option == "context" else error.option
            raise EventError(str(error), "unsupported_parameter", f"{path}.{field}") from None
        except OptionError as error:
            raise EventError(str(error), "invalid_value", f"{path}.language") from None
        if not config.prompt:
            return
        try:  # in a thread: a long prompt takes its time
            await asyncio.to_thread(transcriber.engine.check, SegmentOptions(language, config.prompt))
        except OptionError as error:
            raise EventError(str(error), "invalid_value", f"{path}.prompt") from None

    async def _append(self, samples: Samples) -> None:
        if not len(samples):
            return
        rate = self._config.rate
        if self._seconds + len(samples) / rate > self._limits.stream_seconds:
            await self._expire()
        stream = self._stream or await self._open()
        # A second at a time: the stream waits between them when it is behind.
        for start in range(0, len(samples), rate):
            piece = samples[start : start + rate]
            try:
                await stream.feed(piece)
            except AudioTooLong:
                await self._expire()
            except (AsrError, EngineFailure):
                # The delivery knows the same: it tells the rest and ends the connection.
                assert self._delivery
                await self._delivery
            self._seconds += len(piece) / rate

    async def _expire(self) -> NoReturn:
        longest = self._limits.stream_seconds
        await self._refuse(f"a session may have {longest:g} s of audio; connect again", code="session_expired")
        await self._end("session expired")

    async def _end(self, reason: str) -> NoReturn:
        """Tell the text of what was heard, and close."""
        if self._stream:
            with suppress(EventError):  # there was no speech
                await self._commit()
        raise _Over(POLICY_VIOLATION, reason)

    async def _commit(self) -> None:
        if not self._stream:
            raise EventError("there is no audio to commit", "input_audio_buffer_commit_empty")
        turn, before = self._config.pause is None, self._items.count
        if turn:
            await self._tell(self._items.committed())
        await self._finish()
        if turn:
            await self._tell(self._items.completed(self._seconds))
        elif self._items.count == before:
            raise EventError("there is no speech to commit", "input_audio_buffer_commit_empty")

    # The stream.

    async def _open(self) -> LiveStream:
        config, service = self._config, self._services[self._config.model]
        turn = config.pause is None
        # Segments of a turn are joined: there the pause that ends one is that of files.
        live = LiveOptions(pause=PAUSE_SECONDS if config.pause is None else config.pause / 1000)
        try:
            stream = await service.open_stream(
                language=config.language, context=config.prompt, sample_rate=config.rate, live=live
            )
        except Busy as error:
            await self._refuse(str(error), kind="rate_limit_error", code="rate_limit_exceeded")
            raise _Over(TRY_AGAIN_LATER, "too many streams") from None
        except Closing as error:
            await self._refuse(str(error), kind="server_error", code="server_shutting_down")
            raise _Over(GOING_AWAY, "shutting down") from None
        except AsrError as error:
            raise EventError(str(error), "invalid_value", "session") from None
        languages = service.transcriber.artifact.manifest.languages
        self._items.opened(self._seconds, turn=turn, codes={each.name: each.code for each in languages})
        self._stream, self._finishing = stream, False
        self._delivery = self._tasks.create_task(self._deliver(stream))
        return stream

    async def _deliver(self, stream: LiveStream) -> None:
        """Tell the client what the stream tells. A stream that ends by itself does so because the server closes."""
        try:
            async for event in stream.events():
                await self._tell(self._items.take(event))
        except (AsrError, EngineFailure) as error:
            kind, code = "server_error", "transcription_failed"
            await self._tell(self._items.failed(str(error), kind, code))
            await self._refuse(str(error), kind=kind, code=code)
            raise _Over(INTERNAL_ERROR, "transcription failed") from None
        if not self._finishing:
            if self._config.pause is None:
                await self._tell(self._items.completed(self._seconds))
            raise _Over(GOING_AWAY, "shutting down")

    async def _finish(self) -> None:
        """End the stream, and wait until the client was told everything of it."""
        assert self._stream
        assert self._delivery
        self._finishing = True
        with suppress(Closing, EngineFailure):  # the delivery knows the same
            await self._stream.finish()
        await self._delivery
        await self._give_up()

    async def _give_up(self) -> None:
        """Let go of the stream, whatever is still to come of it."""
        stream, delivery, self._stream, self._delivery = self._stream, self._delivery, None, None
        try:
            if delivery:
                delivery.cancel()
                await asyncio.wait([delivery])
        finally:
            if stream:
                await stream.close()

    # Sending.

    async def _tell(self, events: list[ServerEvent]) -> None:
        for event in events:
            await self._send(event)

    async def _refuse(self, message: str, **fields: Any) -> None:
        await self._send(error_event(message, **fields))

    async def _send(self, event: ServerEvent) -> None:
        text = msgspec.json.encode(event).decode()
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._websocket.send_text(text)
        except (WebSocketDisconnect, TimeoutError):
            raise _Over from None


def _parsed(message: str | None) -> dict[str, Any]:
    """A client's event, which has a type.

    Raises:
        EventError: it is none.
    """
    if message is None:
        raise EventError("events are JSON in text messages; this one was binary", "invalid_json")
    try:
        event = msgspec.json.decode(message)
    except (msgspec.DecodeError, RecursionError):
        raise EventError("the event is not valid JSON", "invalid_json") from None
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise EventError("an event is a JSON object with a type", "invalid_event", "type")
    return event


def _event_id(event: dict[str, Any]) -> str | None:
    """The id that the client gave its event, to be named in an error."""
    given = event.get("event_id")
    return given if isinstance(given, str) and len(given) <= _MAX_EVENT_ID else None
