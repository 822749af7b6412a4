"""The two tables of families name the same families, and every name leads to a class."""

from __future__ import annotations

import importlib

import export.families
import runtime.families
from export.checkpoints import CHECKPOINTS
from export.families import load_family


def test_both_sides_know_the_same_families() -> None:
    assert set(export.families.FAMILIES) == set(runtime.families.FAMILIES)
    assert {checkpoint.family for checkpoint in CHECKPOINTS.values()} <= set(export.families.FAMILIES)
    for target in runtime.families.FAMILIES.values():
        module, _, attribute = target.partition(":")
        assert hasattr(importlib.import_module(module), attribute)
    for family in export.families.FAMILIES:
        assert load_family(family).__name__
