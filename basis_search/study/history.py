"""The evaluations of one layer as proposals and early stopping use them: with measured or with predicted latencies."""

from __future__ import annotations

from collections.abc import Iterator

from basis_search.evaluation.candidate import Evaluation
from basis_search.families import family as family_named
from basis_search.layers.layer import Layer
from basis_search.study.settings import SearchSettings
from basis_search.workers.worker import Worker


class History:
    """What a search knows; with `settings.reproducible`, latency ratios are the predicted ones."""

    def __init__(self, layer: Layer, settings: SearchSettings, worker: Worker):
        self._layer, self._settings, self._worker = layer, settings, worker

    def evaluations(self) -> list[Evaluation]:
        """Of this layer, of all searched families, by any worker with this device and code."""
        return [self.view(e) for family in self._settings.spaces for e in self._worker.known(self._layer, family)]

    def view(self, evaluation: Evaluation) -> Evaluation:
        """One evaluation of this layer as the search uses it."""
        return with_predicted_latency(evaluation, self._layer) if self._settings.reproducible else evaluation

    def others(self) -> Iterator[Evaluation]:
        """All evaluations of this run and of earlier ones; the proposer picks those of other layers."""
        for evaluation in (*self._worker.record, *self._settings.warm):
            yield with_predicted_latency(evaluation) if self._settings.reproducible else evaluation


def with_predicted_latency(evaluation: Evaluation, layer: Layer | None = None) -> Evaluation:
    """The evaluation with its predicted latency ratio in place of the measured one.

    The prediction is the recorded one; where none was recorded, it is computed for `layer`.
    """
    latency = evaluation.rungs.get("forecast latency")
    if latency is None and layer is not None:
        latency = family_named(evaluation.candidate.family).forecast(evaluation.candidate.spec, layer).latency_ratio
    if latency is None or evaluation.failure is not None:
        return evaluation
    return evaluation.with_ratio(latency)
