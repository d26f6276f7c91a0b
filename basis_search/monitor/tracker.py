"""The interface through which a search logs its evaluations, fronts and plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from basis_search.evaluation.candidate import Evaluation
from basis_search.evaluation.pareto import ParetoFront
from basis_search.planning.plan import Plan

Fronts = Mapping[str, ParetoFront]


class Tracker:
    """Logs nothing; the base of those that do."""

    seconds = 0.0
    """Wall time that the search has waited for its tracking so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the tracking, after a failure as well."""

    def evaluation(self, evaluation: Evaluation, fronts: Fronts) -> None:
        """Logs an evaluation; `fronts` include it where it is not dominated."""

    def finish(self, fronts: Fronts, plans: Sequence[Plan], exports: Path | None = None) -> None:
        """Logs the end of the search; `exports` is the folder of exported plans."""
