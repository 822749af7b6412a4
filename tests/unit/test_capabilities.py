"""What a model cannot do is one sentence that names the option, says what to do, and which families can."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from runtime.cli.describe import LABELS, describe_families
from runtime.engines.capabilities import Capabilities, check_capabilities
from runtime.errors import CapabilityError, OptionError
from runtime.families import FAMILIES, capabilities_of, check_request, declared, families_that
from runtime.model.artifact import open_artifact
from runtime.model.manifest import Language, Manifest
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
    with pytest.raises(CapabilityError, match=r"of the family 'parakeet-tdt' .*; (leave|request)") as refused:
        check_request(TWO, NOTHING, **asked)
    assert refused.value.option == option
    assert str(refused.value) == refused.value.args[0]
    assert "\n" not in str(refused.value)
    check_request(TWO, EVERYTHING, **asked)


def test_a_refusal_names_the_families_that_can() -> None:
    with pytest.raises(CapabilityError, match=r"qwen3-asr and whisper models can$"):
        check_capabilities(["context"], NOTHING, "parakeet-tdt", families_that)
    with pytest.raises(CapabilityError, match=r"models like this one of the family 'whisper'") as refused:
        check_capabilities(["translation"], NOTHING, "whisper", families_that)
    assert "models can" not in str(refused.value)  # no other family can
    with pytest.raises(CapabilityError, match="models of the family 'of tomorrow'"):
        check_capabilities(["words"], NOTHING, "of tomorrow", families_that)


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
            match=r"'en' was given.*Russian \(ru\).*leave it out",
        ):
            check_request(ONE, can, language="en")
    for spelling in ("ru", "Russian"):
        with pytest.raises(
            CapabilityError,
            match=r"Russian \(ru\) was given.*leave it out",
        ):
            check_request(ONE, NOTHING, language=spelling)


def test_each_option_that_a_model_cannot_do_is_refused() -> None:
    check_request(ONE, EVERYTHING, language="Russian", forcing=True)
    requests: list[dict[str, Any]] = [
        {"context": "x"},
        {"language": "German"},
        {"forcing": True},
        {"timestamps": True},
        {"task": "translate"},
        {"long_form": True},
        {"words": True},
    ]
    for request in requests:
        with pytest.raises(CapabilityError):
            check_request(TWO, NOTHING, **request)


def test_what_a_model_can_do_is_known_without_opening_its_graphs() -> None:
    assert capabilities_of(open_artifact(ARTIFACT)) == declared("qwen3-asr")
