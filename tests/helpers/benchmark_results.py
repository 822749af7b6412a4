"""Small invented results of the benchmarks' pages, which keep all bounds."""

from __future__ import annotations

from typing import Any

RATES = {"English": 0.01, "Russian": 0.02, "Chinese": 0.03}


def quantization() -> dict[str, Any]:
    """Return results for docs/quantization.md by part."""
    row = {"bytes": 10**7, "rates": RATES, "relative_error": {"encoder": 0.01, "decoder": 0.02}, "identical": 1.0}
    rows = {recipe: dict(row) for recipe in ("float32", "int8", "q8", "mixed", "int4")}
    bad = row | {"rates": {name: rate + 0.1 for name, rate in RATES.items()}, "identical": 0.1}
    cost = {
        "quantize_seconds": 60.0,
        "quantize_peak_bytes": 4 * 10**9,
        "relative_error": {"encoder": 0, "decoder": 0.1},
    }
    timed = {"encode": 0.3, "prefill": 0.5, "step": 0.03, "resident_bytes": 10**9}
    small = {"bytes": 4 * 10**8} | cost
    return {
        "accuracy": {"small": rows, "twin": {**rows, "per-tensor": bad}},
        "speed": {
            "float32": timed | {"bytes": 3 * 10**9, "encode": 0.9, "prefill": 1.3, "step": 0.08},
            "int8": small | timed,
            "q8": small | timed | {"prefill": 1.5, "step": 0.04},
            "int4": small | timed,
            "int4-small": small | timed,
            "fp16": small,
        },
        "large": {"float32": {"bytes": 8 * 10**9}, "int4": {"bytes": 10**9, "resident_bytes": 2 * 10**9}},
        "kernels": {
            "stem": {"patches": {"ms": 57.0, "relative_error": 0.03}},
            "blocks": {"8 bits, blocks of 32": {"weights": 0.005, "kernel": 0.005, "ms_8": 0.2, "ms_400": 8.0}},
        },
    }


def speed() -> dict[str, Any]:
    """Return results for docs/speed.md by part."""

    def system(seconds: float) -> dict[str, Any]:
        stages = {"segment": 0.1, "features": 0.01, "encode": 0.7, "prefill": 0.2 * seconds, "decode": 0.5 * seconds}
        return stages | {"token": 0.01, "total": seconds, "resident_bytes": 10**9, "segments": 4.0}

    slow = ("float32, one segment", "transformers, float32", "transformers, bfloat16")
    fast = {"int8, one segment": 7.0, "int8, segments in rows": 3.0}
    systems = {name: system(20.0) for name in slow} | {name: system(seconds) for name, seconds in fast.items()}
    hour = {"duration": 3600.0, "peak_bytes": 1.8 * 10**8}
    return {
        "speech": {
            "clip": {"seconds": 60, "tokens": 180, "rounds": 3},
            "systems": systems,
            "batches": {"int8, 1": system(12.0), "int8, 8": system(6.0)},
            "segments": {"10 s": system(3.0)},
        },
        "scale": {
            "minutes": {
                "1": {"seconds": 3.0, "peak_bytes": 10**9},
                "10": {"seconds": 28.0, "peak_bytes": 10**9},
            },
            "hours": {"0.0166": {"duration": 60.0, "peak_bytes": 10**8}, "1": hour},
            "files": {"files": 200, "first": 20, "first_bytes": 10**8, "last_bytes": 10**8},
            "cold_starts": {"int8": {"plain": {"median": 1.7}, "prepared": {"median": 1.0}}},
        },
        "limits": {
            "rates": {"bandwidth": 4 * 10**10, "integer": 1.5 * 10**12, "float": 3 * 10**11},
            "stages": [{"name": "step, 1 row at most", "seconds": 0.02, "limit": 0.015, "by": "memory"}],
        },
    }


def streaming() -> dict[str, Any]:
    """Return results for docs/streaming.md by part."""
    row = {"segments": 100, "equal": 100, "taken_back": 0}
    agreement = {
        "agreeing": 3, "early": False, "segments": 300, "not_as_offline": 1, "taken_back": 0, "stable_share": 0.2,
        "median_seconds": 4.0, "p90_seconds": 7.0, "first_text_seconds": 1.1,
    }  # fmt: skip
    spread = {"count": 9, "median": 0.3, "p95": 0.5, "most": 0.7}
    return {
        "live": {
            "offline": {"int8": {size: dict(row) for size in ("0.02", "0.1", "1")}},
            "stability": {"usual": 3, "rows": [agreement]},
            "normalization": {
                "usual": 0.3,
                "rises": {"0.3": {"finished": 55, "again": 20, "other_partials": 1, "partials": 1000}},
            },
            "hours": {
                "seconds": 7200, "first": 600, "first_bytes": 10**8, "last_bytes": 10**8, "most_bytes": 10**8,
                "finals": 700, "partials": 6000,
            },
        },
        "chunks": {
            "beside": {"first_minute": 0.3, "last_minute": 0.3},
            "minutes": [0.3] * 10,
            "partial": spread,
            "final": spread,
            "timings": {"encode": 60.0, "decode": 40.0},
            "total": 180.0,
            "seconds": 600,
            "first_text": 1.1,
        },
        "recordings": {
            "piece": 0.1,
            "rows": {
                "int8, 3 hypotheses": {
                    "streams": 18, "seconds": 1260.0, "segments": 300, "equal": 299, "not_as_offline": 1,
                    "taken_back": 0, "words": 3000, "word_differences": 30, "stable": 3000, "median_seconds": 2.0,
                    "p95_seconds": 5.0, "first_text_seconds": 1.2,
                },
            },
        },
    }  # fmt: skip


def fidelity() -> dict[str, Any]:
    """Return results for docs/fidelity.md by part: one text ended by a guard, one that differs by a tie."""
    way = {"compared": 306, "identical": 306, "ended": 0, "language": 306}
    tie = {
        "name": "fr-1.opus", "way": "detected", "position": 3, "expected": 11, "actual": 13, "reference_lead": 1e-5,
        "lead": -2e-5, "expected_text": ",", "actual_text": ".",
    }  # fmt: skip
    system = {
        "title": "ONNX Runtime's CPU kernels",
        "ways": {"given": way | {"identical": 305, "ended": 1}, "detected": way | {"identical": 305}},
        "lead_change": 3e-5,
        "differences": [tie],
        "edges": {"texts": 306, "largest": 0.0004},
    }
    film = {"tokens": 100, "identical": True, "finish_reason": "stop", "edges": 0.0}
    return {
        "fidelity": {
            "recordings": {
                "count": 306, "seconds": 1260.0, "languages": {"en": 64, "fr": 65}, "detected_as_given": 300,
                "features": 3e-5, "tokens": 9000, "smallest_lead": 1e-5, "leads_below": {"0.001": 2, "0.01": 5},
            },
            "systems": {"cpu": system},
            "films": {"film.wav": {"seconds": 60.0, "detected": "en", "features": 3e-5, "ways": {"given": film}}},
            "rows": {"float32": {"compared": 306, "identical": 306}},
        },
    }  # fmt: skip


def serving() -> dict[str, Any]:
    """Return results for docs/serving.md by part."""
    row = {
        "requests": 10, "right": 10, "wrong": 0, "lost": 0, "refused": 0, "requests_a_second": 5.0,
        "audio_seconds_a_second": 20.0, "latency": {"p50": 0.1, "p95": 0.2, "p99": 0.3},
    }  # fmt: skip
    return {
        "serving": {
            "clients": {
                "clients": 200, "streams": 8, "seconds": 125.0, "files": dict(row), "live": dict(row),
                "batch_size": {"mean": 7.8}, "resident_bytes": {"early": 5e8, "half": 6e8, "last": 6e8},
                "server_cores": 1.5,
            },
            "batching": {
                "batch_clients": 16, "requests": 384, "rounds": 3, "clip_seconds": [11.0, 13.0],
                "clip_tokens": [52, 101],
                "audio_seconds_a_second": {"1": 180.0, "16": 270.0}, "cpu_seconds_a_request": {"1": 0.11, "16": 0.08},
                "runs": {"1": [dict(row)], "16": [dict(row)]},
            },
            "hostile": {
                "requests": 1000, "kinds": 168, "warm_up": 3000, "outcomes": {"400": 990, "closed": 10},
                "not_refused": {}, "closed": {"body that ends early": 10}, "good_request": True,
                "grown": {"resident_bytes": 10**6, "open_files": 0, "temporary_files": 0},
            },
        }
    }  # fmt: skip


def families() -> dict[str, Any]:
    """Return results for docs/families.md by part."""

    def system(total: float, size: int) -> dict[str, Any]:
        stages = {"segment": 0.1, "features": 0.0, "encode": 0.5, "prefill": 0.2, "decode": 1.0}
        row = {"total": total, "stages": stages, "tokens": 180, "resident_bytes": 10 * size, "cold_start": 1.5}
        return row | {"bytes": size}

    peer = {"total": 9.0, "tokens": 179, "resident_bytes": 2 * 10**9, "cold_start": 2.5, "agreement": 0.5}
    systems = {"float32": system(6.0, 10**9), "int8": system(3.0, 10**8), "onnx-asr, float32": peer}
    names = {"a": "qwen3-asr", "b": "whisper", "c": "parakeet-tdt", "gigaam-v3-ctc": "gigaam-ctc"}
    times = {"spoken": 10, "matched": 9, "mean": 0.03, "median": 0.02, "bias": -0.01, "near": 0.9}
    row = {
        "bytes": 10**7,
        "rates": {"Russian": 0.0123},
        "relative_error": {"encoder": 0.01},
        "identical": 0.99,
        "long": {"segments": {"Russian": 0.02}, "windows": {"Russian": 0.5}, "short": {"Russian": 0.01}},
        "words": times,
        "parts": times | {"mean": 0.2},
    }
    peers = {"onnx-asr": {"rates": {"Russian": 0.0125}, "same": 0.98}, "sherpa-onnx": {"failed": "no such file"}}
    checkpoint = {
        "family": "gigaam-ctc",
        "languages": ["Russian"],
        "utterances": 100,
        "minutes": {"Russian": 5.0},
        "recipes": {recipe: dict(row) for recipe in ("float32", "int8", "int4")},
        "peers": peers,
    }
    return {
        "families": {
            "clip": {"seconds": 60, "cold_seconds": 2, "tokens_a_second": 3.0},
            "models": {
                name: {
                    "family": family,
                    "segments": 4,
                    "systems": dict(systems),
                    "failures": {"sherpa-onnx, int8": "no"},
                }
                for name, family in names.items()
            },
            "reasons": [["qwen3-asr", "onnx-asr", "has no Qwen3-ASR."]],
        },
        "checkpoints": {"gigaam-v3-tiny": checkpoint},
    }


def accuracy() -> dict[str, Any]:
    """Return results for docs/accuracy.md by part."""

    def row(rate: float, differ: float, ratio: float, detected: float | None = 0.99) -> dict[str, Any]:
        return {
            "rate": rate,
            "interval": [rate - 0.02, rate + 0.02],
            "rise": rate - 0.165,
            "rise_interval": [rate - 0.175, rate - 0.155],
            "differ": differ,
            "differ_interval": [0.0, 2 * differ],
            "same": 1.0 - 5 * differ,
            "reference": differ,
            "seconds": 600.0 * ratio,
            "ratio": ratio,
            "detected": detected,
        }

    def system(own: str, size: float, *figures: Any) -> dict[str, Any]:
        languages = {name: row(*figures) for name in ("English", "Russian", "all")}
        return {"own": own, "bytes": int(size), "peak_bytes": int(3 * size), "languages": languages}

    ours, fast, cpp = "asr-deploy, float32", "faster-whisper, float32", "whisper.cpp, f16"
    data = {"recordings": 153, "words": 1500, "seconds": 630.0}
    return {
        "real": {
            "checkpoint": "905e5bf8",
            "threads": 2,
            "limit": None,
            "recordings": {"English": data, "Russian": data, "all": {key: 2 * value for key, value in data.items()}},
            "versions": {"faster-whisper": "1.2.1"},
            "systems": {
                ours: system(ours, 290e6, 0.165, 0.0, 1.0),
                "asr-deploy, float32, not cut": system(ours, 290e6, 0.165, 0.0, 0.9, None),
                "asr-deploy, fp16": system(ours, 145e6, 0.165, 0.001, 3.0),
                "asr-deploy, q8": system(ours, 110e6, 0.166, 0.005, 1.1),
                "asr-deploy, int8": system(ours, 80e6, 0.167, 0.012, 0.6),
                "asr-deploy, mixed": system(ours, 70e6, 0.168, 0.018, 0.7),
                "asr-deploy, int4": system(ours, 60e6, 0.17, 0.038, 0.7),
                "asr-deploy, int4-small": system(ours, 50e6, 0.19, 0.08, 0.8),
                "transformers, float32": system("transformers, float32", 290e6, 0.165, 0.0, 1.5),
                fast: system(fast, 145e6, 0.166, 0.0, 1.2),
                "faster-whisper, int8": system(fast, 145e6, 0.171, 0.03, 0.8),
                cpp: system(cpp, 148e6, 0.165, 0.0, 2.5),
            },
        }
    }


RESULTS = {
    "quantization": quantization,
    "speed": speed,
    "streaming": streaming,
    "serving": serving,
    "families": families,
    "accuracy": accuracy,
    "fidelity": fidelity,
}
