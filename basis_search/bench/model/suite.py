"""Benchmarks of whole models in the metric of their outputs: the list of parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from basis_search.bench.model import metric, small_network
from basis_search.bench.model.plan_damage import plan_damages
from basis_search.study.search import search
from basis_search.workers.evaluation_log import Record

Rows = list[dict[str, Any]]
TRIALS = 6


def plans(device: str, threads: int) -> Rows:
    """Summed damage of 50 random plans of a small residual network against the change of its output, by budget."""
    model = small_network.SmallNetwork().eval().to(device)
    layers = small_network.captured(model)
    record = Record()
    for layer in layers:
        search(layer, trials=TRIALS, record=record, threads=threads)
    table = {layer.name: [e for e in record.of(layer.content_hash) if not e.failure] for layer in layers}
    unseen = [small_network.inputs(small_network.EXAMPLES, seed=9).to(device)]
    return plan_damages(model, layers, table, small_network.output, unseen)


PARTS: dict[str, Callable[..., Iterable[dict[str, Any]]]] = {
    "metric": metric.rows,
    "tuned": metric.tuned_rows,
    "plans": plans,
}
