"""Streaming of a transcription as server-sent events, in OpenAI's format."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import msgspec
from starlette.types import Receive, Send

from runtime.errors import AsrError
from runtime.pipeline.join_text import join_texts
from runtime.results import Segment, Transcript
from runtime.server.errors import EngineFailure
from runtime.server.http.api_errors import to_api_error
from runtime.server.http.disconnects import run_until_disconnect
from runtime.server.openai.replies import token_usage

log = logging.getLogger(__name__)

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # disables buffering in nginx
]


async def transcript_events(
    results: AsyncIterator[Segment | Transcript], *, audio_in_prompt: bool
) -> AsyncGenerator[dict[str, Any], None]:
    """Convert results to events. The concatenated deltas are the whole text.

    Each segment yields ``transcript.text.delta``, unless it adds no text, and ``transcript.text.segment`` with its
    times. ``transcript.text.done`` is the last event. OpenAI requires the field ``speaker``; it is empty because
    speakers are not identified. ``language``, ``duration`` and ``decoded_again`` are extensions.

    Args:
        results: segments in order of the audio, and the transcript last.
        audio_in_prompt: the model's prompt positions include the audio's rows.
    """
    index, text = 0, ""
    async for result in results:
        if isinstance(result, Transcript):
            yield {
                "type": "transcript.text.done",
                "text": result.text,
                "usage": token_usage(result, audio_in_prompt=audio_in_prompt),
                "language": result.language,
                "duration": result.duration,
            }
            continue
        joined = join_texts([text, result.text])
        if len(joined) > len(text):
            yield {"type": "transcript.text.delta", "delta": joined[len(text) :]}
        text = joined
        yield {
            "type": "transcript.text.segment",
            "id": f"seg_{index}",
            "start": result.start,
            "end": result.end,
            "text": result.text,
            "speaker": "",
            "language": result.language,
            "decoded_again": result.decoded_again,
        }
        index += 1


async def send_events(
    events: AsyncIterator[dict[str, Any]], receive: Receive, send: Send, request_id: str, headers: Mapping[str, str]
) -> None:
    """Send ``events`` as they arrive. An error while they arrive is sent as an event with OpenAI's error object.

    Args:
        events: events in OpenAI's format.
        receive: receives from the client.
        send: sends to the client.
        request_id: id of the request in the log.
        headers: additional headers of the response.

    Raises:
        ClientDisconnected: the client disconnected before the last event.
    """
    await send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS, *_encoded(headers)]})

    async def send_all() -> None:
        try:
            async for event in events:
                await send({"type": "http.response.body", "body": _encode(event), "more_body": True})
        except (AsrError, EngineFailure) as error:
            api_error = to_api_error(error, request_id)
            if api_error.status >= 500:
                log.error("request %s: failed while its events were sent", request_id, exc_info=error)
            body = b"event: error\n" + _encode(api_error.body())
            await send({"type": "http.response.body", "body": body, "more_body": True})

    await run_until_disconnect(receive, send_all())
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def _encode(event: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(event) + b"\n\n"
