"""Connection of one client of ``/v1/realtime``, from the accepted WebSocket to its close."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NoReturn

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from runtime.audio.segmentation import PAUSE_SECONDS
from runtime.errors import AsrError, CapabilityError, OptionError
from runtime.pipeline.streaming import LiveOptions
from runtime.server.errors import AudioTooLong, Busy, Closing, EngineFailure
from runtime.server.limits import MAX_MESSAGE_BYTES, Limits
from runtime.server.realtime.audio import Samples, decode_audio
from runtime.server.realtime.events import EventTranslator, ServerEvent, error_event, new_id, server_event
from runtime.server.realtime.message_queue import MessageQueue
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

# Characters of messages that are read ahead: half a minute of audio at 24 kHz.
MAX_QUEUED_CHARACTERS = 2 * MAX_MESSAGE_BYTES
# Seconds without an event from the client.
IDLE_SECONDS = 120.0
# Seconds that sending one event may take, for a client that does not read.
SEND_SECONDS = 30.0
# Consecutive events with errors.
MAX_CONSECUTIVE_ERRORS = 16
_MAX_EVENT_ID_LENGTH = 512

# WebSocket close codes of RFC 6455 and IANA's registry.
GOING_AWAY, POLICY_VIOLATION, TOO_BIG, INTERNAL_ERROR, TRY_AGAIN_LATER = 1001, 1008, 1009, 1011, 1013


class _ConnectionEnd(Exception):  # noqa: N818 (not an error: it ends the tasks of a connection)
    """Ends the connection. ``code`` is the close code, or None if the client has disconnected."""

    def __init__(self, code: int | None = None, reason: str = "") -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class Connection:
    """Session of one client: its configuration and its open live stream, if any.

    The first audio opens a stream, and a commit ends it; the next audio opens another. Once the stream has ended, all
    committed audio is known to be complete, whether it held speech or not.

    Three tasks read the WebSocket, handle its messages, and send the stream's events. A task that ends the connection
    raises :class:`_ConnectionEnd`, which cancels the others.
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
        """Args:
        websocket: accepted WebSocket.
        services: services by model name.
        limits: limits of the server.
        model: model name, one of ``services``.
        partials: also send unstable text.
        """
        self._websocket, self._services, self._limits = websocket, services, limits
        self._config = SessionConfig(model)
        self._id = new_id("sess")
        self._translator = EventTranslator(partials=partials)
        self._messages = MessageQueue(MAX_QUEUED_CHARACTERS)
        self._tasks = asyncio.TaskGroup()
        self._seconds = 0.0  # duration of all audio of the connection
        self._stream: LiveStream | None = None
        self._delivery: asyncio.Task[None] | None = None
        self._finishing = False

    async def run(self) -> None:
        """Serve the client until either side closes. If the client disconnects, its stream is cancelled at once."""
        end = _ConnectionEnd()
        try:
            async with self._tasks:
                self._tasks.create_task(self._receive())
                await self._handle()
        except* _ConnectionEnd as group:
            first = group.exceptions[0]
            assert isinstance(first, _ConnectionEnd)
            end = first
        finally:
            await self._close_stream()
        if end.code is not None:
            with suppress(WebSocketDisconnect):
                await self._websocket.close(end.code, end.reason)

    # Receiving.

    async def _receive(self) -> None:
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise _ConnectionEnd
            text = message.get("text")
            if len(text or message.get("bytes") or "") > MAX_MESSAGE_BYTES:
                await self._send_error(
                    f"a message may have at most {MAX_MESSAGE_BYTES} bytes; send shorter pieces of audio"
                )
                raise _ConnectionEnd(TOO_BIG, "message too big")
            await self._messages.put(text)

    async def _handle(self) -> None:
        await self._send(server_event("session.created", session=as_session(self._config, self._id)))
        errors = 0
        while True:
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    message = await self._messages.get()
            except TimeoutError:
                await self._send_error(f"no event was received for {IDLE_SECONDS:g} s", code="idle_timeout")
                await self._end("idle")
            client_id = None
            try:
                event = _parse_event(message)
                client_id = _event_id(event)
                await self._dispatch(event)
                errors = 0
            except EventError as error:
                await self._send_error(str(error), code=error.code, param=error.param, event_id=client_id)
                errors += 1
                if errors >= MAX_CONSECUTIVE_ERRORS:
                    raise _ConnectionEnd(POLICY_VIOLATION, "too many consecutive events with errors") from None

    async def _dispatch(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "input_audio_buffer.append":
                await self._append(decode_audio(event.get("audio"), self._config.encoding))
            case "input_audio_buffer.commit":
                await self._commit()
            case "input_audio_buffer.clear":
                await self._close_stream()
                await self._send(server_event("input_audio_buffer.cleared"))
            case "session.update":
                await self._update(read_session(self._config, event.get("session"), self._services), legacy=False)
            case "transcription_session.update":
                config = read_legacy_session(self._config, event.get("session"), self._services)
                await self._update(config, legacy=True)
            case kind:
                raise EventError(
                    f"a transcription session does not support events of type {kind[:64]!r}", "unknown_event", "type"
                )

    # Client events.

    async def _update(self, config: SessionConfig, *, legacy: bool) -> None:
        dropped = await self._check(
            config, "session.input_audio_transcription" if legacy else "session.audio.input.transcription"
        )
        if config != self._config and self._stream:
            if self._config.pause is None:
                raise EventError(
                    "there is uncommitted audio; commit or clear it before changing the session",
                    "session_in_use",
                    "session",
                )
            await self._finish()
        self._config, self._translator.legacy = config, legacy
        if legacy:
            session = as_legacy_session(config, self._id)
            name = "transcription_session.updated"
        else:
            name, session = "session.updated", as_session(config, self._id)
        extension = {"prompt_tokens_dropped": dropped} if dropped else {}
        await self._send(server_event(name, session=session, **extension))

    async def _check(self, config: SessionConfig, path: str) -> int:
        """Check language and prompt against the model now, before the first audio opens a stream.

        Args:
            config: new configuration.
            path: path of the transcription settings in the event, for errors.

        Returns:
            Number of tokens at the start of the prompt that are dropped because it is too long.

        Raises:
            EventError: the model does not support an option.
            EventError: the language is unknown.
            EventError: the prompt is invalid.
        """
        transcriber = self._services[config.model].transcriber
        request = Request("", config.language, config.prompt)
        try:  # in a thread, because tokenizing a long prompt takes time
            validated = await asyncio.to_thread(transcriber.validate, request, shorten_context=True)
        except OptionError as error:
            code = "unsupported_parameter" if isinstance(error, CapabilityError) else "invalid_value"
            field = "prompt" if error.option == "context" else error.option
            raise EventError(str(error), code, f"{path}.{field}") from None
        return validated.dropped_context_tokens

    async def _append(self, samples: Samples) -> None:
        """Feed samples [n] to the stream; open one if there is none."""
        if not len(samples):
            return
        rate = self._config.rate
        if self._seconds + len(samples) / rate > self._limits.stream_seconds:
            await self._expire()
        stream = self._stream or await self._open()
        # Feed one second at a time: the stream blocks between them when it is behind.
        for start in range(0, len(samples), rate):
            piece = samples[start : start + rate]
            try:
                await stream.feed(piece)
            except AudioTooLong:
                await self._expire()
            except (AsrError, EngineFailure):
                # The delivery task gets the same error; it sends the remaining events and ends the connection.
                assert self._delivery
                await self._delivery
            self._seconds += len(piece) / rate

    async def _expire(self) -> NoReturn:
        limit = self._limits.stream_seconds
        await self._send_error(
            f"a session may have at most {limit:g} s of audio; connect again", code="session_expired"
        )
        await self._end("session expired")

    async def _end(self, reason: str) -> NoReturn:
        """Send the text of the audio so far and end the connection."""
        if self._stream:
            with suppress(EventError):  # there was no speech
                await self._commit()
        raise _ConnectionEnd(POLICY_VIOLATION, reason)

    async def _commit(self) -> None:
        if not self._stream:
            raise EventError("there is no audio to commit", "input_audio_buffer_commit_empty")
        turn, count = self._config.pause is None, self._translator.count
        if turn:
            await self._send_all(self._translator.commit_turn())
        await self._finish()
        if turn:
            await self._send_all(self._translator.complete_turn(self._seconds))
        elif self._translator.count == count:
            raise EventError("there is no speech to commit", "input_audio_buffer_commit_empty")

    # Live stream.

    async def _open(self) -> LiveStream:
        config, service = self._config, self._services[self._config.model]
        turn = config.pause is None
        # The segments of a turn are joined, so they end at the same pauses as those of files.
        live = LiveOptions(pause=PAUSE_SECONDS if config.pause is None else config.pause / 1000)
        try:
            stream = await service.open_stream(
                language=config.language, context=config.prompt, sample_rate=config.rate, live=live
            )
        except Busy as error:
            await self._send_error(str(error), kind="rate_limit_error", code="rate_limit_exceeded")
            raise _ConnectionEnd(TRY_AGAIN_LATER, "too many streams") from None
        except Closing as error:
            await self._send_error(str(error), kind="server_error", code="server_shutting_down")
            raise _ConnectionEnd(GOING_AWAY, "shutting down") from None
        except AsrError as error:
            raise EventError(str(error), "invalid_value", "session") from None
        languages = service.transcriber.artifact.manifest.languages
        codes = {language.name: language.code for language in languages}
        self._translator.start_stream(self._seconds, turn=turn, codes=codes)
        self._stream, self._finishing = stream, False
        self._delivery = self._tasks.create_task(self._deliver(stream))
        return stream

    async def _deliver(self, stream: LiveStream) -> None:
        """Send the stream's events. A stream that ends without :meth:`_finish` was ended by a server shutdown."""
        try:
            async for event in stream.events():
                await self._send_all(self._translator.translate(event))
        except (AsrError, EngineFailure) as error:
            kind, code = "server_error", "transcription_failed"
            await self._send_all(self._translator.fail_open_items(str(error), kind, code))
            await self._send_error(str(error), kind=kind, code=code)
            raise _ConnectionEnd(INTERNAL_ERROR, "transcription failed") from None
        if not self._finishing:
            if self._config.pause is None:
                await self._send_all(self._translator.complete_turn(self._seconds))
            raise _ConnectionEnd(GOING_AWAY, "shutting down")

    async def _finish(self) -> None:
        """End the stream and wait until all of its events are sent."""
        assert self._stream
        assert self._delivery
        self._finishing = True
        with suppress(Closing, EngineFailure):  # the delivery task gets the same error
            await self._stream.finish()
        await self._delivery
        await self._close_stream()

    async def _close_stream(self) -> None:
        """Cancel the stream and discard its remaining events."""
        stream, delivery, self._stream, self._delivery = self._stream, self._delivery, None, None
        try:
            if delivery:
                delivery.cancel()
                await asyncio.wait([delivery])
        finally:
            if stream:
                await stream.close()

    # Sending.

    async def _send_all(self, events: list[ServerEvent]) -> None:
        for event in events:
            await self._send(event)

    async def _send_error(self, message: str, **fields: Any) -> None:
        await self._send(error_event(message, **fields))

    async def _send(self, event: ServerEvent) -> None:
        text = msgspec.json.encode(event).decode()
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._websocket.send_text(text)
        except (WebSocketDisconnect, TimeoutError):
            raise _ConnectionEnd from None


def _parse_event(message: str | None) -> dict[str, Any]:
    """Parse a client's event. None stands for a binary message.

    Raises:
        EventError: the message is binary.
        EventError: the message is not valid JSON.
        EventError: the event is not an object with a ``type``.
    """
    if message is None:
        raise EventError("events must be JSON in text messages; this message was binary", "invalid_json")
    try:
        event = msgspec.json.decode(message)
    except (msgspec.DecodeError, RecursionError):
        raise EventError("the event is not valid JSON", "invalid_json") from None
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise EventError("an event must be a JSON object with a string `type`", "invalid_event", "type")
    return event


def _event_id(event: dict[str, Any]) -> str | None:
    """Return the client's ``event_id``, which an error event repeats; None if it is missing or invalid."""
    event_id = event.get("event_id")
    return event_id if isinstance(event_id, str) and len(event_id) <= _MAX_EVENT_ID_LENGTH else None
