"""How many rows fit into a memory budget; planned when a model is opened."""

from __future__ import annotations

import msgspec

from runtime.errors import OptionError
from runtime.host.memory import available_bytes, resident_bytes


class BatchPlan(msgspec.Struct, frozen=True):
    """Rows that are decoded together.

    ``rows`` of ``positions`` take up to ``row_bytes`` each, in addition to ``fixed_bytes`` of the opened model;
    ``memory`` is the budget. Rows take memory as texts fill them, so this is an upper bound.
    """

    rows: int
    positions: int
    row_bytes: int
    fixed_bytes: int
    memory: int


def plan_rows(
    max_batch: int, memory: int | None, *, positions: int, position_bytes: int, work_bytes: int, audio_bytes: int = 0
) -> BatchPlan:
    """Plan as many rows as fit, at most ``max_batch``. Call it with the model loaded: resident memory is counted.

    Args:
        max_batch: largest number of rows.
        memory: resident bytes that this process may have; None takes half of the free memory.
        positions: positions of a row.
        position_bytes: bytes of keys and values of one position.
        work_bytes: bytes of activations of the largest graph call.
        audio_bytes: bytes of a row's audio apart from its positions.

    Raises:
        OptionError: ``max_batch`` below 1.
        OptionError: the budget is too small for one row; without a budget one row is always planned.
    """
    if max_batch < 1:
        raise OptionError(f"max_batch must be at least 1, not {max_batch}")
    resident = resident_bytes()
    fixed, row = resident + work_bytes, positions * position_bytes + audio_bytes
    budget = memory if memory is not None else resident + available_bytes() // 2
    rows = min(max_batch, (budget - fixed) // row)
    if rows < 1 and memory is not None:
        raise OptionError(
            f"a memory budget of {_megabytes(memory)} is too small: the model takes {_megabytes(fixed)}, and each row "
            f"up to {_megabytes(row)}; give at least {_megabytes(fixed + row)}"
        )
    return BatchPlan(rows=max(1, rows), positions=positions, row_bytes=row, fixed_bytes=fixed, memory=budget)


def describe_plan(plan: BatchPlan) -> str:
    """Describe a plan in one line."""
    count = f"{plan.rows} segments at a time" if plan.rows > 1 else "one segment at a time"
    return (
        f"{count}: the model takes {_megabytes(plan.fixed_bytes)}, each segment up to {_megabytes(plan.row_bytes)}, "
        f"of a budget of {_megabytes(plan.memory)}"
    )


def _megabytes(size: int) -> str:
    return f"{-(-size // 10**6)} MB"
