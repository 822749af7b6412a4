"""How many rows fit into a memory budget: decided when a model is opened, before any audio is."""

from __future__ import annotations

import msgspec

from runtime.errors import OptionError
from runtime.host.memory import available_bytes, resident_bytes


class BatchPlan(msgspec.Struct, frozen=True):
    """How many rows are decoded together, known before the work begins.

    ``rows`` of ``positions`` take up to ``row_bytes`` each, beside ``fixed_bytes`` of the opened model; ``memory`` is
    the budget that they fit into. Rows take memory as texts fill them: what is counted is the most.
    """

    rows: int
    positions: int
    row_bytes: int
    fixed_bytes: int
    memory: int


def plan_rows(
    max_batch: int, memory: int | None, *, positions: int, position_bytes: int, work_bytes: int, audio_bytes: int = 0
) -> BatchPlan:
    """As many rows as fit, ``max_batch`` at most. Call it when the model is loaded: what is resident then is counted.

    Args:
        max_batch: most rows.
        memory: bytes that this process may have resident; None takes half of what the system has left.
        positions: of a row.
        position_bytes: keys and values of one position.
        work_bytes: activations of the largest call of a graph.
        audio_bytes: what a row has of its audio beside its positions.

    Raises:
        OptionError: the budget is too small for a single row (without a budget one row is always planned).
    """
    if max_batch < 1:
        raise OptionError(f"max_batch must be at least 1, not {max_batch}")
    resident = resident_bytes()
    fixed, row = resident + work_bytes, positions * position_bytes + audio_bytes
    budget = memory if memory is not None else resident + available_bytes() // 2
    rows = min(max_batch, (budget - fixed) // row)
    if rows < 1 and memory is not None:
        raise OptionError(
            f"a memory budget of {_megabytes(memory)} is too small: the model takes {_megabytes(fixed)}, and each text "
            f"decoded at a time up to {_megabytes(row)}; give at least {_megabytes(fixed + row)}"
        )
    return BatchPlan(rows=max(1, rows), positions=positions, row_bytes=row, fixed_bytes=fixed, memory=budget)


def describe_plan(plan: BatchPlan) -> str:
    """A plan in one line."""
    each = f"{plan.rows} segments at a time" if plan.rows > 1 else "one segment at a time"
    return (
        f"{each}: the model takes {_megabytes(plan.fixed_bytes)}, each segment up to {_megabytes(plan.row_bytes)}, "
        f"of a budget of {_megabytes(plan.memory)}"
    )


def _megabytes(size: int) -> str:
    return f"{-(-size // 10**6)} MB"
