"""Capability checks: each refusal is one line that names the option, a remedy and the families that support it."""

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

NO_CAPABILITIES = Capabilities(context=False, language=False, language_detection=False)
ALL_CAPABILITIES = msgspec.convert(dict.fromkeys(Capabilities.__struct_fields__, True), Capabilities)


def manifest(*languages: tuple[str, str], family: str = "parakeet-tdt") -> Manifest:
    listed = [Language(name, code) for name, code in languages]
    return cast(Manifest, SimpleNamespace(family=family, languages=listed))


TWO_LANGUAGES = manifest(("English", "en"), ("German", "de"))
ONE_LANGUAGE = manifest(("Russian", "ru"))


def test_every_capability_is_described() -> None:
    assert set(LABELS) == set(Capabilities.__struct_fields__)
    for family in FAMILIES:
        assert family in describe_families().splitlines()[0]
    for name in Capabilities.__struct_fields__:
        assert families_that(name) == [family for family in FAMILIES if getattr(declared(family), name)] != []


@pytest.mark.parametrize(
    ("request_options", "option"),
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
def test_each_option_is_refused_without_its_capability(request_options: dict[str, Any], option: str) -> None:
    with pytest.raises(CapabilityError, match=r"'parakeet-tdt' .*; (leave|request)") as refusal:
        check_request(TWO_LANGUAGES, NO_CAPABILITIES, **request_options)
    assert refusal.value.option == option
    assert str(refusal.value) == refusal.value.args[0]
    assert "\n" not in str(refusal.value)
    check_request(TWO_LANGUAGES, ALL_CAPABILITIES, **request_options)


def test_a_refusal_names_the_families_that_support_the_option() -> None:
    with pytest.raises(CapabilityError, match=r"qwen3-asr and whisper"):
        check_capabilities(["context"], NO_CAPABILITIES, "parakeet-tdt", families_that)
    with pytest.raises(CapabilityError, match=r"models like this one .*'whisper'") as refusal:
        check_capabilities(["translation"], NO_CAPABILITIES, "whisper", families_that)
    assert "models can" not in str(refusal.value)  # no other family supports it
    with pytest.raises(CapabilityError, match="'unknown'"):
        check_capabilities(["words"], NO_CAPABILITIES, "unknown", families_that)


def test_a_language_is_known_by_name_or_code() -> None:
    for spelling in ("German", "german", " DE "):
        assert check_request(TWO_LANGUAGES, ALL_CAPABILITIES, language=spelling) == "German"
    for language in (None, "auto", " AUTO ", ""):
        assert check_request(TWO_LANGUAGES, NO_CAPABILITIES, language=language) is None
    with pytest.raises(OptionError, match=r"'Germain'; did you mean German \(de\)$"):
        check_request(TWO_LANGUAGES, ALL_CAPABILITIES, language="Germain")
    with pytest.raises(OptionError, match=r"'xx'; .*English \(en\), German \(de\)"):
        check_request(TWO_LANGUAGES, ALL_CAPABILITIES, language="xx")


def test_a_model_with_one_language_refuses_others() -> None:
    assert check_request(ONE_LANGUAGE, ALL_CAPABILITIES, language="ru") == "Russian"
    for capabilities in (ALL_CAPABILITIES, NO_CAPABILITIES):
        with pytest.raises(
            CapabilityError,
            match=r"'en'.*Russian \(ru\).*leave it out",
        ):
            check_request(ONE_LANGUAGE, capabilities, language="en")
    for spelling in ("ru", "Russian"):
        with pytest.raises(
            CapabilityError,
            match=r"Russian \(ru\).*leave it out",
        ):
            check_request(ONE_LANGUAGE, NO_CAPABILITIES, language=spelling)


def test_each_option_of_a_request_is_checked() -> None:
    check_request(ONE_LANGUAGE, ALL_CAPABILITIES, language="Russian", forcing=True)
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
            check_request(TWO_LANGUAGES, NO_CAPABILITIES, **request)


def test_capabilities_are_known_without_opening_graphs() -> None:
    assert capabilities_of(open_artifact(ARTIFACT)) == declared("qwen3-asr")
