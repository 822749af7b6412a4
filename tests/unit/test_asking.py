"""What a model cannot do is one sentence that names the option, says what to do, and which families can."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from runtime.artifact import Language, Manifest, open_artifact
from runtime.asking import check_options, check_request, require
from runtime.description import LABELS, describe_families
from runtime.engine import Capabilities, SegmentOptions
from runtime.errors import CapabilityError, OptionError
from runtime.families import FAMILIES, capabilities_of, declared, families_that
from tests.conftest import ARTIFACT

NOTHING = Capabilities(context=False, language=False, language_detection=False)
EVERYTHING = msgspec.convert(dict.fromkeys(Capabilities.__struct_fields__, True), Capabilities)


def manifest(*languages: tuple[str, str], family: str = "parakeet-tdt") -> Manifest:
    listed = [Language(name, code) for name, code in languages]
    return cast(Manifest, SimpleNamespace(family=family, languages=listed))


TWO = manifest(("English", "en"), ("German", "de"))
ONE = manifest(("Russian", "ru"))


def test_every_capability_has_words() -> None:
    assert set(LABELS) == set(Capabilities.__struct_fields__)
    for family in FAMILIES:
        assert family in describe_families().splitlines()[0]
    for name in Capabilities.__struct_fields__:
        assert families_that(name) == [family for family in FAMILIES if getattr(declared(family), name)] != []


@pytest.mark.parametrize(
    ("asked", "option"),
    [
        ({"context": "Kris"}, "context"),
        ({"timestamps": True}, "timestamps"),
        ({"task": "translate"}, "task"),
        ({"long_form": True}, "long_form"),
        ({"words": True}, "words"),
        ({"forcing": True}, "ignore_stop"),
        ({"language": "en"}, "language"),
    ],
)
def test_each_option_is_refused_or_not(asked: dict[str, Any], option: str) -> None:
    with pytest.raises(CapabilityError, match=r"of the family 'parakeet-tdt' can.*; .*(leave|ask)") as refused:
        check_request(TWO, NOTHING, **asked)
    assert refused.value.option == option
    assert str(refused.value) == refused.value.args[0]
    assert "\n" not in str(refused.value)
    check_request(TWO, EVERYTHING, **asked)


def test_who_can_is_said() -> None:
    with pytest.raises(CapabilityError, match=r"leave it out; qwen3-asr and whisper models can$"):
        require(["context"], NOTHING, "parakeet-tdt")
    with pytest.raises(CapabilityError, match="this model of the family 'whisper' can only write down") as refused:
        require(["translation"], NOTHING, "whisper")
    assert str(refused.value).endswith("leave it out")  # nobody else can
    with pytest.raises(CapabilityError, match="models of the family 'of tomorrow' cannot"):
        require(["words"], NOTHING, "of tomorrow")


def test_a_language_is_known_by_name_or_code() -> None:
    for spelling in ("German", "german", " DE "):
        assert check_request(TWO, EVERYTHING, language=spelling) == "German"
    for nothing in (None, "auto", " AUTO ", ""):
        assert check_request(TWO, NOTHING, language=nothing) is None
    with pytest.raises(OptionError, match=r"unknown language 'Germain'; did you mean German \(de\)"):
        check_request(TWO, EVERYTHING, language="Germain")
    with pytest.raises(OptionError, match=r"unknown language 'xx'; this model knows English \(en\), German \(de\)"):
        check_request(TWO, EVERYTHING, language="xx")


def test_the_only_language_is_named_where_one_can_be_and_no_other() -> None:
    assert check_request(ONE, EVERYTHING, language="ru") == "Russian"
    for can in (EVERYTHING, NOTHING):
        with pytest.raises(
            CapabilityError,
            match=r"the language 'en' was given, but this model knows Russian \(ru\) alone; leave it out",
        ):
            check_request(ONE, can, language="en")
    for spelling in ("ru", "Russian"):
        with pytest.raises(
            CapabilityError,
            match=r"the language Russian \(ru\) was given, but this model knows it alone and cannot be told",
        ):
            check_request(ONE, NOTHING, language=spelling)


def test_engines_are_asked_the_same() -> None:
    check_options(SegmentOptions("Russian", max_new_tokens=3), EVERYTHING, ONE)
    for options in (
        SegmentOptions(context="x"),
        SegmentOptions(language="German"),
        SegmentOptions(ignore_stop=True, max_new_tokens=3),
        SegmentOptions(repetition_penalty=1.1),
        SegmentOptions(timestamps=True),
        SegmentOptions(task="translate"),
    ):
        with pytest.raises(CapabilityError):
            check_options(options, NOTHING, TWO)


def test_what_a_model_can_do_is_known_without_opening_its_graphs() -> None:
    assert capabilities_of(open_artifact(ARTIFACT)) == declared("qwen3-asr")
