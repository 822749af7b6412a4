"""Names and codes of languages for metrics. A data set may use other names than a model."""

from __future__ import annotations

# ISO 639 codes and English names. A model's own list is in its manifest.
_TABLE = """
af Afrikaans, am Amharic, ar Arabic, as Assamese, az Azerbaijani, ba Bashkir, be Belarusian, bg Bulgarian, bn Bengali,
bo Tibetan, br Breton, bs Bosnian, ca Catalan, cs Czech, cy Welsh, da Danish, de German, el Greek, en English,
eo Esperanto, es Spanish, et Estonian, eu Basque, fa Persian, fi Finnish, fil Filipino, fo Faroese, fr French, ga Irish,
gl Galician, gu Gujarati, ha Hausa, haw Hawaiian, he Hebrew, hi Hindi, hr Croatian, ht Haitian Creole, hu Hungarian,
hy Armenian, id Indonesian, ig Igbo, is Icelandic, it Italian, ja Japanese, jv Javanese, ka Georgian, kk Kazakh,
km Khmer, kn Kannada, ko Korean, ky Kyrgyz, la Latin, lb Luxembourgish, ln Lingala, lo Lao, lt Lithuanian, lv Latvian,
mg Malagasy, mi Maori, mk Macedonian, ml Malayalam, mn Mongolian, mr Marathi, ms Malay, mt Maltese, my Burmese,
nb Norwegian Bokmal, ne Nepali, nl Dutch, nn Norwegian Nynorsk, no Norwegian, oc Occitan, pa Punjabi, pl Polish,
ps Pashto, pt Portuguese, ro Romanian, ru Russian, sa Sanskrit, sd Sindhi, si Sinhala, sk Slovak, sl Slovenian,
sn Shona, so Somali, sq Albanian, sr Serbian, su Sundanese, sv Swedish, sw Swahili, ta Tamil, te Telugu, tg Tajik,
th Thai, tk Turkmen, tl Tagalog, tr Turkish, tt Tatar, ug Uyghur, uk Ukrainian, ur Urdu, uz Uzbek, vi Vietnamese,
xh Xhosa, yi Yiddish, yo Yoruba, yue Cantonese, zh Chinese, zu Zulu
"""
LANGUAGES = dict(entry.split(maxsplit=1) for entry in _TABLE.split(","))
_BY_SPELLING = {
    **{name.lower(): name for name in LANGUAGES.values()},
    **LANGUAGES,
    # Spellings of Common Voice and FLEURS, and three-letter codes, of the languages with metric rules of their own.
    **{"cmn": "Chinese", "zho": "Chinese", "mandarin": "Chinese", "eng": "English", "jpn": "Japanese", "tha": "Thai"},
}


def language_name(language: str) -> str | None:
    """Return the English name of a language; None if it is unknown.

    Args:
        language: English name, ISO 639 code or locale (``en-US``, ``cmn_hans_cn``), in any case.
    """
    key = language.strip().lower()
    return _BY_SPELLING.get(key) or _BY_SPELLING.get(key.replace("_", "-").partition("-")[0])
