"""Languages of the published models by ISO 639 code, for the list of models.

An artifact's languages are read from its checkpoint instead.

Whisper's vocabulary uses ``jw`` for Javanese.
"""

from __future__ import annotations

QWEN3_ASR = (
    *(
        "ar",
        "cs",
        "da",
        "de",
        "el",
        "en",
        "es",
        "fa",
        "fi",
        "fil",
        "fr",
        "hi",
        "hu",
        "id",
        "it",
        "ja",
        "ko",
        "mk",
        "ms",
    ),
    *("nl", "pl", "pt", "ro", "ru", "sv", "th", "tr", "vi", "yue", "zh"),
)
PARAKEET = (
    *("bg", "cs", "da", "de", "el", "en", "es", "et", "fi", "fr", "hr", "hu", "it", "lt", "lv", "mt", "nl", "pl", "pt"),
    *("ro", "ru", "sk", "sl", "sv", "uk"),
)
WHISPER = (
    *("af", "am", "ar", "as", "az", "ba", "be", "bg", "bn", "bo", "br", "bs", "ca", "cs", "cy", "da", "de", "el", "en"),
    *(
        "es",
        "et",
        "eu",
        "fa",
        "fi",
        "fo",
        "fr",
        "gl",
        "gu",
        "ha",
        "haw",
        "he",
        "hi",
        "hr",
        "ht",
        "hu",
        "hy",
        "id",
        "is",
    ),
    *("it", "ja", "jw", "ka", "kk", "km", "kn", "ko", "la", "lb", "ln", "lo", "lt", "lv", "mg", "mi", "mk", "ml", "mn"),
    *("mr", "ms", "mt", "my", "ne", "nl", "nn", "no", "oc", "pa", "pl", "ps", "pt", "ro", "ru", "sa", "sd", "si", "sk"),
    *("sl", "sn", "so", "sq", "sr", "su", "sv", "sw", "ta", "te", "tg", "th", "tk", "tl", "tr", "tt", "uk", "ur", "uz"),
    *("vi", "yi", "yo", "yue", "zh"),
)
#: Whisper's languages before large-v3, which added Cantonese.
WHISPER_BEFORE_V3 = tuple(code for code in WHISPER if code != "yue")
