"""Base class of the families' exporters: writes graphs and tokenizer, then compares the graphs with the reference."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import Tokenizer

from export.checkpoints import CheckpointFolder
from quantize.progress import Report
from runtime.model.manifest import GraphSpec, Language, Parity

TOKENIZER = "tokenizer.json"
# Compares a written graph with the reference's outputs.
ParityCheck = Callable[[Path], Parity]


class FamilyExporter(ABC):
    """Exports a loaded checkpoint of one family.

    Attributes:
        roles: graph roles of the family's artifacts, in the order in which they are written.
        layout: layout of the checkpoint, recorded in the manifest, such as ``native``, ``original`` or ``ctranslate2``.
        tokenizer: the checkpoint's tokenizer.
        model: reference model in float32; :meth:`parity` deletes it.
    """

    roles: ClassVar[tuple[str, ...]]
    layout: str
    tokenizer: Tokenizer
    model: Any

    @abstractmethod
    def __init__(self, folder: CheckpointFolder) -> None:
        """Load the checkpoint in ``folder``.

        Raises:
            CheckpointNotFoundError: a file is missing.
            CheckpointInvalidError: a file cannot be read, or the geometry is not supported.
        """

    @property
    @abstractmethod
    def languages(self) -> list[Language]:
        """Languages of the model, for the manifest."""

    @property
    @abstractmethod
    def front_end(self) -> dict[str, Any]:
        """Settings of the feature extraction, for the manifest; ``kind`` names the implementation."""

    @property
    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """Parameters that the family's engine in ``runtime.families`` reads from the manifest."""

    @abstractmethod
    def write_graph(self, role: str, out: Path) -> GraphSpec:
        """Write the graph of ``role``, and files that belong to it, into the folder ``out``."""

    @abstractmethod
    def parity_checks(self) -> dict[str, ParityCheck]:
        """Compute the reference's outputs.

        Returns:
            For each role a function that compares the written graph with these outputs and raises
            :class:`export.errors.ParityError` when they differ. It must not hold a reference to :attr:`model`.
        """

    @classmethod
    def steps(cls) -> int:
        """Number of progress steps that :meth:`write` and :meth:`parity` report."""
        return 2 * len(cls.roles) + 1

    def write(self, out: Path, report: Report) -> dict[str, GraphSpec]:
        """Write the graphs and the tokenizer into the folder ``out``.

        Returns:
            Graphs by role.
        """
        graphs = {}
        for role in self.roles:
            with report.step(f"{role} graph"):
                graphs[role] = self.write_graph(role, out)
        self.tokenizer.save(str(out / TOKENIZER), pretty=False)
        return graphs

    def parity(self, out: Path, graphs: dict[str, GraphSpec], report: Report) -> dict[str, Parity]:
        """Compare each written graph with the reference model.

        The reference's outputs are computed first and its weights released: memory need not hold both the reference
        and the opened graphs.

        Returns:
            Results by role.

        Raises:
            ParityError: a graph differs from the reference by more than its tolerance.
        """
        with report.step("reference outputs"):
            checks = self.parity_checks()
        del self.model
        gc.collect()
        results = {}
        for role, check in checks.items():
            with report.step(f"parity of {role}"):
                results[role] = check(out / graphs[role].file)
        return results
