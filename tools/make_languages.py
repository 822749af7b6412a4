"""Make ``runtime/model/languages.tsv``, the names and codes by which languages are found.

    pip install langcodes==3.5.1 language-data==1.4.0
    python -m tools.make_languages

Sources: IANA's language subtag registry (https://www.iana.org/assignments/language-subtag-registry, public domain) and
Unicode CLDR (https://cldr.unicode.org, license Unicode-3.0), both as the packages ``langcodes`` and ``language-data``
(MIT) have them, and the aliases of OpenAI's Whisper (``whisper/tokenizer.py``, MIT).
"""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

OUTPUT = Path(__file__).resolve().parent.parent / "runtime" / "model" / "languages.tsv"

# Languages without a two-letter code that a family's models know, and others that have their own written standard.
_LONGER_CODES = ("ast", "ceb", "ckb", "fil", "haw", "hsb", "kab", "mai", "nso", "sah", "yue")
# Whisper's Norwegian is Bokmål.
_MERGED = {"nb": "no"}
# Varieties that a model of the language understands, which no macrolanguage covers.
_SERBO_CROATIAN = "sh"
_MORE_HINTS = {"de": ["gsw", "bar"], "sr": [_SERBO_CROATIAN, "Serbo-Croatian"]}
# Spellings that neither source has: those of OpenAI's Whisper, of the models' own lists, and of everyday English.
_MORE_SPELLINGS = {
    "fa": ["Farsi"],
    "fil": ["Tagalog", "tgl"],
    "ht": ["Haitian Creole", "Haitian"],
    "lb": ["Letzeburgesch"],
    "my": ["Myanmar"],
    "nn": ["Nynorsk"],
    "no": ["Bokmal", "Norwegian Bokmal"],
    "pa": ["Panjabi"],
    "ro": ["Moldavian", "Moldovan"],
    "zh": ["Mandarin", "Putonghua", "Simplified Chinese", "Traditional Chinese"],
}


def main() -> None:
    """Write the table."""
    from langcodes import Language
    from langcodes.registry_parser import parse_registry

    records = [each for each in parse_registry() if each.get("Type") in ("language", "extlang")]
    codes = {each["Subtag"] for each in records if len(each["Subtag"]) == 2 and "Deprecated" not in each}
    codes = codes - {_SERBO_CROATIAN} | set(_LONGER_CODES)
    rows: dict[str, tuple[str, dict[str, None], dict[str, None]]] = {}
    for code in sorted({_standard(code) for code in codes}):
        language = Language.get(code)
        name = language.language_name("en")
        spellings = dict.fromkeys([name, language.autonym(), *_MORE_SPELLINGS.get(code, ())])
        for variant in ("T", "B"):
            try:
                spellings[language.to_alpha3(variant)] = None
            except LookupError:
                continue
        rows[code] = (name, spellings, dict.fromkeys(_MORE_HINTS.get(code, ())))
    for code, standard in _MERGED.items():
        rows[standard][1][Language.get(code).to_alpha3()] = None
    for record in records:
        subtag = record["Subtag"]
        if ".." in subtag:  # a range for private use
            continue
        macro = record.get("Macrolanguage")
        code = _standard(subtag)
        described = [text for text in record["Description"] if not re.search(r"[(),0-9]", text)]
        if code in rows:
            _, spellings, _ = rows[code]
            spellings.update(dict.fromkeys([subtag, *described]))
        elif macro and (parent := _standard(macro)) in rows:
            rows[parent][2].update(dict.fromkeys([subtag, *described]))
    for record in parse_registry():
        if record.get("Type") == "region" and re.fullmatch("[A-Z]{2}", record["Subtag"]) and "Deprecated" not in record:
            region = Language.make(territory=record["Subtag"])
            if (code := _standard(region.maximize().language or "und")) in rows:
                rows[code][2].update(dict.fromkeys([record["Subtag"].lower(), region.territory_name("en")]))
    _write(rows)


def _standard(code: str) -> str:
    """Return the code that stands for a language: ISO 639-1 if there is one, of a macrolanguage's main variety too."""
    from langcodes import standardize_tag

    standard: str = standardize_tag(code, macro=True)
    return code if "-" in standard else _MERGED.get(standard, standard)  # Serbo-Croatian would be "sr-Latn"


def _write(rows: dict[str, tuple[str, dict[str, None], dict[str, None]]]) -> None:
    """Write one row for each language; drop a spelling that names another language."""
    owners: dict[str, str] = {code: code for code in rows}
    lines = [
        f"# Made by tools/make_languages.py with langcodes {version('langcodes')} and language-data "
        f"{version('language-data')}: data of IANA's language subtag registry and of Unicode CLDR (Unicode-3.0).",
        "# code\tEnglish name\tother spellings\twhat else points to the language: varieties and countries",
    ]
    for code, (name, _, _) in rows.items():
        owners.setdefault(name.casefold(), code)
    for code, (_, spellings, _) in rows.items():
        for spelling in spellings:
            owners.setdefault(spelling.casefold(), code)
    for code, (name, spellings, hints) in sorted(rows.items()):
        own = [each for each in spellings if owners[each.casefold()] == code and each not in (name, code)]
        more = [each for each in hints if owners.get(each.casefold()) != code]
        lines.append("\t".join([code, name, "|".join(own), "|".join(more)]))
    OUTPUT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
