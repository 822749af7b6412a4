"""Languages as people write them: names, ISO 639 codes, locales and aliases, and what an unknown one may mean."""

from __future__ import annotations

import logging
from importlib.resources import files
from types import SimpleNamespace
from typing import Any, cast

import pytest

from runtime.engines.capabilities import Capabilities
from runtime.errors import OptionError
from runtime.families import check_request
from runtime.model.languages import find_language, related_languages
from runtime.model.manifest import Language, Manifest

ABLE = Capabilities(context=True, language=True, language_detection=True)
# As Whisper's manifest has them: some codes and names are not those of ISO 639.
WHISPER = {"pt": "Portuguese", "zh": "Chinese", "en": "English", "es": "Spanish", "nl": "Dutch", "jw": "Javanese"}
WHISPER |= {"my": "Myanmar", "no": "Norwegian", "nn": "Nynorsk", "tl": "Tagalog", "ht": "Haitian Creole"}
WHISPER |= {"de": "German", "ja": "Japanese", "ca": "Catalan", "ro": "Romanian", "pa": "Punjabi", "ps": "Pashto"}
WHISPER |= {"lb": "Luxembourgish", "si": "Sinhala", "el": "Greek", "ar": "Arabic"}


def ask(language: str, known: dict[str, str] | None = None) -> str | None:
    entries = [Language(name, code) for code, name in (WHISPER if known is None else known).items()]
    manifest = cast(Manifest, SimpleNamespace(family="whisper", languages=entries))
    return check_request(manifest, ABLE, language=language)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("pt-BR", "Portuguese"),
        ("zh-TW", "Chinese"),
        ("zh_Hant_TW", "Chinese"),
        ("en_US", "English"),
        ("en_US.UTF-8", "English"),
        ("de_DE@euro", "German"),
        ("eng_Latn", "English"),
        ("cmn_hans_cn", "Chinese"),
        ("deu", "German"),
        ("ger", "German"),
        ("cmn", "Chinese"),
        ("zho", "Chinese"),
        ("jv", "Javanese"),
        ("jav", "Javanese"),
        ("fil", "Tagalog"),
        ("tgl", "Tagalog"),
        ("nb", "Norwegian"),
        ("nob", "Norwegian"),
        ("nno", "Nynorsk"),
        ("Mandarin", "Chinese"),
        ("Castilian", "Spanish"),
        ("Flemish", "Dutch"),
        ("Burmese", "Myanmar"),
        ("Valencian", "Catalan"),
        ("Haitian", "Haitian Creole"),
        ("Letzeburgesch", "Luxembourgish"),
        ("Pushto", "Pashto"),
        ("Panjabi", "Punjabi"),
        ("Moldavian", "Romanian"),
        ("Moldovan", "Romanian"),
        ("Sinhalese", "Sinhala"),
        ("  português ", "Portuguese"),
        ("日本語", "Japanese"),
    ],
)
def test_a_language_is_found_as_people_write_it(written: str, name: str) -> None:
    assert ask(written) == ask(written.upper()) == name


def test_a_dropped_region_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="runtime"):
        assert (ask("pt-BR"), ask("pt"), ask("por")) == ("Portuguese",) * 3
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    assert all(part in caplog.messages[0] for part in ("'pt-br'", "'br'", "Portuguese"))


@pytest.mark.parametrize(
    ("written", "fact", "suggested"),
    [
        ("jp", "unknown language 'jp'", "Japanese (ja)"),
        ("Brazil", "unknown", "Portuguese (pt)"),
        ("Brazilian Portuguese", "unknown", "Portuguese (pt)"),
        ("Swiss German", "unknown", "German (de)"),
        ("gsw", "unknown", "German (de)"),
        ("arz", "unknown", "Arabic (ar)"),
        ("wuu", "unknown", "Chinese (zh)"),
        ("gr", "unknown", "Greek (el)"),
        ("Chinese (Hong Kong)", "unknown", "Chinese (zh)"),
        ("Germain", "unknown", "German (de)"),
    ],
)
def test_suggestions_are_by_meaning_before_letters(written: str, fact: str, suggested: str) -> None:
    with pytest.raises(OptionError) as caught:
        ask(written)
    assert str(caught.value).startswith(fact)
    assert str(caught.value).endswith(f"did you mean {suggested}")
    assert caught.value.option == "language"


def test_a_language_that_the_model_lacks_is_named() -> None:
    """It is no typing error, so similar letters (Welsh, Flemish) would mislead."""
    with pytest.raises(OptionError, match=r"^this model does not know Welsh; this model knows English \(en\), German"):
        ask("cy", {"en": "English", "de": "German"})
    with pytest.raises(OptionError, match=r"^this model does not know Cantonese; this model knows"):
        ask("zh-yue", {"en": "English", "de": "German"})


@pytest.mark.parametrize("text", ["", "xx", "Klingon", "english-us", "x", "-", "_", "zz-ZZ", "\udce9", "en us"])
def test_what_names_no_language(text: str) -> None:
    assert find_language(text) is None


def test_the_table_is_consistent() -> None:
    rows = (files("runtime.model") / "languages.tsv").read_text(encoding="utf-8").splitlines()
    entries: dict[str, Any] = {row.split("\t")[0]: row.split("\t") for row in rows if not row.startswith("#")}
    assert len(entries) > 180
    for code, (_, name, spellings, hints) in entries.items():
        for spelling in (code, name, *filter(None, spellings.split("|"))):
            found = find_language(spelling)
            assert found
            assert (found.language.code, found.language.name, found.dropped) == (code, name, "")
        assert all(related_languages(hint) for hint in filter(None, hints.split("|")))
