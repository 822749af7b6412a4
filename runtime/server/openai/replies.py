"""Responses with transcripts and models, in the formats of OpenAI's API."""

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

# Frames of 10 ms per second: Whisper's unit of `seek`.
_FRAMES_PER_SECOND = 100
# Confidence is rounded to four digits, so 0 stands for anything below this value.
_MIN_CONFIDENCE = 5e-5
_TEXTS: dict[str, tuple[str, str]] = {
    "text": ("txt", "text/plain"),
    "srt": ("srt", "application/x-subrip"),
    "vtt": ("vtt", "text/vtt"),
}


def transcript_response(
    transcript: Transcript, format: ResponseFormat, *, words: bool = False, audio_in_prompt: bool
) -> Response:
    """Return the transcript in the requested format.

    Args:
        transcript: the transcript.
        format: ``json``, ``verbose_json``, ``text``, ``srt`` or ``vtt``.
        words: add word times to ``verbose_json``.
        audio_in_prompt: the model's prompt positions include the audio's rows.
    """
    if format in _TEXTS:
        name, media_type = _TEXTS[format]
        return Response(FORMATS[name](transcript), headers={"content-type": f"{media_type}; charset=utf-8"})
    if format == "verbose_json":
        return json_response(verbose(transcript, words=words))
    return json_response(brief(transcript, audio_in_prompt=audio_in_prompt))


def json_response(content: Any, status: int = 200) -> Response:
    """Return ``content`` as JSON."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def brief(transcript: Transcript, *, audio_in_prompt: bool) -> dict[str, Any]:
    """Return OpenAI's ``Transcription``: text and token usage; ``warnings`` is an extension, as in :func:`verbose`."""
    usage = token_usage(transcript, audio_in_prompt=audio_in_prompt)
    return {"text": transcript.text, "usage": usage, **_warnings(transcript)}


def _warnings(transcript: Transcript) -> dict[str, Any]:
    return {"warnings": transcript.warnings} if transcript.warnings else {}


def token_usage(transcript: Transcript, *, audio_in_prompt: bool) -> dict[str, Any]:
    """Return OpenAI's ``UsageTokens``: input tokens of audio and prompt text, and generated tokens."""
    tokens = transcript.tokens
    text = tokens.prompt - tokens.audio if audio_in_prompt else tokens.prompt
    inputs = tokens.audio + text
    return {
        "type": "tokens",
        "input_tokens": inputs,
        "output_tokens": tokens.generated,
        "total_tokens": inputs + tokens.generated,
        "input_token_details": {"audio_tokens": tokens.audio, "text_tokens": text},
    }


def verbose(transcript: Transcript, *, words: bool = False) -> dict[str, Any]:
    """Return OpenAI's ``TranscriptionVerbose``, with times of words if ``words`` is set.

    ``language`` is the lower-case English name, as in OpenAI's API. It is empty if there is no speech or the model does
    not report a language. ``warnings`` is an extension: it says how the audio was changed to be read, if it was.
    """
    body = {
        "task": "transcribe",
        "language": (transcript.language or "").lower(),
        "duration": transcript.duration,
        "text": transcript.text,
        "segments": [verbose_segment(index, segment) for index, segment in enumerate(transcript.segments)],
        "usage": {"type": "duration", "seconds": transcript.duration},
        **_warnings(transcript),
    }
    if words:
        all_words = [word for segment in transcript.segments for word in segment.words or ()]
        body["words"] = [{"word": word.text, "start": word.start, "end": word.end} for word in all_words]
    return body


def verbose_segment(index: int, segment: Segment) -> dict[str, Any]:
    """Return OpenAI's ``TranscriptionSegment``.

    OpenAI requires all of its fields:

    - ``seek``: start of the segment in frames of 10 ms. The segment is the window that the model processes at once.
    - ``tokens``: generated tokens, including those that name the language.
    - ``temperature``: 0, because decoding is greedy.
    - ``avg_logprob``: mean log-probability of the tokens, to the precision of the segment's confidence.
    - ``compression_ratio``: bytes of the text divided by those of its zlib compression, computed as Whisper does.
    - ``no_speech_prob``: the model's; where it gives none, 1 for a segment without text, otherwise 0.

    ``language``, ``confidence``, ``finish_reason``, ``decoded_again`` and ``dropped_text`` are extensions:
    ``finish_reason`` shows whether a text was cut, ``decoded_again`` why it was decoded a second time, if it was, and
    ``dropped_text`` is what the model wrote for audio without speech, if it wrote anything.
    """
    text = segment.text.encode()
    return {
        "id": index,
        "seek": round(segment.start * _FRAMES_PER_SECOND),
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
        "tokens": segment.tokens,
        "temperature": 0.0,
        "avg_logprob": round(math.log(max(segment.confidence, _MIN_CONFIDENCE)), 4),
        "compression_ratio": round(len(text) / len(zlib.compress(text)), 4),
        "no_speech_prob": float(not text) if segment.no_speech_prob is None else segment.no_speech_prob,
        "language": segment.language,
        "confidence": segment.confidence,
        "finish_reason": segment.finish_reason,
        **({} if segment.dropped_text is None else {"dropped_text": segment.dropped_text}),
        "decoded_again": segment.decoded_again,
    }


def model_entry(service: Service) -> dict[str, Any]:
    """Return OpenAI's ``Model``.

    ``created`` is the Unix time at which this server loaded the model. ``languages`` and ``capabilities`` are
    extensions.
    """
    languages = service.transcriber.artifact.manifest.languages
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "asr-deploy",
        "languages": [{"code": each.code, "name": each.name} for each in languages],
        "capabilities": msgspec.to_builtins(service.transcriber.capabilities),
    }
