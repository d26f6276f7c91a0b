"""An evaluation as one row of a table, as wandb logs it."""

from __future__ import annotations

import json
from typing import Any

from basis_search.evaluation.candidate import Evaluation
from basis_search.families.protocol import spec_to_json

COLUMNS = (
    "trial", "layer", "family", "spec", "kernel", "error", "flops_ratio", "latency_ratio", "latency_spread",
    "latency_ms", "parameters", "fit_s", "gate_s", "clock_s", "weighted_error", "damage", "on_front", "stopped",
    "failure",
)  # fmt: skip


def row(trial: int, e: Evaluation) -> list[Any]:
    """The values of COLUMNS; None where a failed evaluation or a layer without output metric has no number.

    `on_front` is False.
    """
    ok = e.failure is None
    numbers = [e.error, e.flops_ratio, e.timed_ratio, e.timed_spread, e.timed_latency * 1e3]
    return [
        trial, e.candidate.layer, e.candidate.family, json.dumps(spec_to_json(e.candidate.spec)), e.kernel,
        *(number if ok else None for number in numbers), e.cost.parameters,
        *(float(e.seconds.get(part, 0.0)) for part in ("fit", "gate", "clock")),
        e.weighted_error, e.damage, False, e.stopped, e.failure or "",
    ]  # fmt: skip
