"""Transcripts and models in the shapes of OpenAI's API."""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response

from runtime.results import Segment, Transcript
from runtime.server.openai.options import ResponseFormat
from runtime.writers import FORMATS

if TYPE_CHECKING:
    from runtime.server.scheduling.service import Service

# Whisper's unit of `seek`: frames of 10 ms.
_FRAMES = 100
# Confidence is rounded to four digits; 0 stands for what is below them.
_LEAST_CONFIDENCE = 5e-5
_TEXTS: dict[str, tuple[str, str]] = {
    "text": ("txt", "text/plain"),
    "srt": ("srt", "application/x-subrip"),
    "vtt": ("vtt", "text/vtt"),
}


def reply(transcript: Transcript, format: ResponseFormat, *, words: bool = False) -> Response:
    """The transcript as the client asked for it; ``words``: with their times, in ``verbose_json``."""
    if format in _TEXTS:
        name, kind = _TEXTS[format]
        return Response(FORMATS[name](transcript), headers={"content-type": f"{kind}; charset=utf-8"})
    return json_reply(verbose(transcript, words=words) if format == "verbose_json" else brief(transcript))


def json_reply(content: Any, status: int = 200) -> Response:
    """``content`` as JSON."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def brief(transcript: Transcript) -> dict[str, Any]:
    """The shape ``Transcription``: text, and the tokens that it took."""
    return {"text": transcript.text, "usage": token_usage(transcript)}


def token_usage(transcript: Transcript) -> dict[str, Any]:
    """The shape ``UsageTokens``: what the model was given, audio and text of the prompt, and generated tokens."""
    tokens = transcript.tokens
    given = tokens.audio + tokens.text
    return {
        "type": "tokens",
        "input_tokens": given,
        "output_tokens": tokens.generated,
        "total_tokens": given + tokens.generated,
        "input_token_details": {"audio_tokens": tokens.audio, "text_tokens": tokens.text},
    }


def verbose(transcript: Transcript, *, words: bool = False) -> dict[str, Any]:
    """The shape ``TranscriptionVerbose``, with ``words`` where they are asked for.

    ``language`` is the English name in small letters, as OpenAI's is, and empty when nobody spoke, or when the model
    does not say which of its languages it heard.
    """
    told = {
        "task": "transcribe",
        "language": (transcript.language or "").lower(),
        "duration": transcript.duration,
        "text": transcript.text,
        "segments": [verbose_segment(number, segment) for number, segment in enumerate(transcript.segments)],
        "usage": {"type": "duration", "seconds": transcript.duration},
    }
    if words:
        spoken = [word for segment in transcript.segments for word in segment.words or ()]
        told["words"] = [{"word": word.text, "start": word.start, "end": word.end} for word in spoken]
    return told


def verbose_segment(number: int, segment: Segment) -> dict[str, Any]:
    """The shape ``TranscriptionSegment``, whose fields are all required.

    What they truly are here:

    - ``seek``: where the window begins that the model heard at once, in frames of 10 ms. It is the segment itself.
    - ``tokens``: what was generated, the header with the language included.
    - ``temperature``: 0, for decoding is greedy.
    - ``avg_logprob``: mean log-probability of the tokens, to the precision of the segment's confidence.
    - ``compression_ratio``: bytes of the text by those of its zlib compression, computed as Whisper does.
    - ``no_speech_prob``: the model gives no such probability, but a verdict: 1 where it wrote nothing, otherwise 0.

    ``language``, ``confidence`` and ``finish_reason`` are ours: a text that was cut can be told by the last.
    """
    text = segment.text.encode()
    return {
        "id": number,
        "seek": round(segment.start * _FRAMES),
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
        "tokens": segment.tokens,
        "temperature": 0.0,
        "avg_logprob": round(math.log(max(segment.confidence, _LEAST_CONFIDENCE)), 4),
        "compression_ratio": round(len(text) / len(zlib.compress(text)), 4),
        "no_speech_prob": 0.0 if text else 1.0,
        "language": segment.language,
        "confidence": segment.confidence,
        "finish_reason": segment.finish_reason,
    }


def model_entry(service: Service) -> dict[str, Any]:
    """The shape ``Model``. ``created`` is when this server opened it; ``languages`` and ``capabilities`` are ours."""
    languages = service.transcriber.artifact.manifest.languages
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "asr-deploy",
        "languages": [{"code": each.code, "name": each.name} for each in languages],
        "capabilities": msgspec.to_builtins(service.transcriber.capabilities),
    }
