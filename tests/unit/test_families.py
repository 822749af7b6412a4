"""The families' tables of exporter and runtime have the same names, and every row leads to a class."""

from __future__ import annotations

import importlib

import export.families
import runtime.families
from export.checkpoints import CHECKPOINTS
from export.families import load_family
from export.families.base import FamilyExporter


def test_exporter_and_runtime_have_the_same_families() -> None:
    assert set(export.families.FAMILIES) == set(runtime.families.FAMILIES)
    assert {checkpoint.family for checkpoint in CHECKPOINTS.values()} <= set(export.families.FAMILIES)
    for target in runtime.families.FAMILIES.values():
        module, _, attribute = target.partition(":")
        assert hasattr(importlib.import_module(module), attribute)
    for family in export.families.FAMILIES:
        assert issubclass(load_family(family), FamilyExporter)


def test_a_model_type_belongs_to_one_family() -> None:
    model_types = [each for row in export.families.FAMILIES.values() for each in row.model_types]
    assert len(model_types) == len(set(model_types))
