"""A transcription as server-sent events, after OpenAI's: deltas while segments end, the whole text last."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec
from starlette.types import Receive, Send

from runtime.errors import AsrError
from runtime.pipeline.join_text import join_texts
from runtime.results import Segment, Transcript
from runtime.server.errors import EngineFailure
from runtime.server.http.clients import unless_gone
from runtime.server.http.problems import problem
from runtime.server.openai.replies import token_usage

log = logging.getLogger(__name__)

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]


async def transcript_events(heard: AsyncIterator[Segment | Transcript]) -> AsyncGenerator[dict[str, Any], None]:
    """What is heard as events: the deltas, one after the other, are the whole text.

    After each delta ``transcript.text.segment`` tells its times, also of a segment without text, which has no delta.
    The field ``speaker`` is required there and empty: speakers are not told apart. ``language`` and ``duration`` are
    ours.
    """
    number, said = 0, ""
    async for each in heard:
        if isinstance(each, Transcript):
            yield {
                "type": "transcript.text.done",
                "text": each.text,
                "usage": token_usage(each),
                "language": each.language,
                "duration": each.duration,
            }
            continue
        whole = join_texts([said, each.text])
        if len(whole) > len(said):
            yield {"type": "transcript.text.delta", "delta": whole[len(said) :]}
        said = whole
        yield {
            "type": "transcript.text.segment",
            "id": f"seg_{number}",
            "start": each.start,
            "end": each.end,
            "text": each.text,
            "speaker": "",
            "language": each.language,
        }
        number += 1


async def send_events(events: AsyncIterator[dict[str, Any]], receive: Receive, send: Send, request_id: str) -> None:
    """Answer with ``events`` as they come. What goes wrong on the way becomes an event with OpenAI's error object.

    Raises:
        ClientGone: the client went away before the last event.
    """
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})

    async def all_of_them() -> None:
        try:
            async for event in events:
                await send({"type": "http.response.body", "body": _encoded(event), "more_body": True})
        except (AsrError, EngineFailure) as error:
            told = problem(error, request_id)
            if told.status >= 500:
                log.error("request %s: failed while its events were sent", request_id, exc_info=error)
            body = b"event: error\n" + _encoded(told.body())
            await send({"type": "http.response.body", "body": body, "more_body": True})

    await unless_gone(receive, all_of_them())
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _encoded(event: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(event) + b"\n\n"
