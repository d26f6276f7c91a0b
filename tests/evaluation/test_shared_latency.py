"""Latencies are shared between layers of one kind, and between no others."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import basis_search as bs
from basis_search.evaluation import evaluate as evaluating
from basis_search.evaluation.shared_latency import LARGEST_SPREAD, twin_of
from basis_search.workers.evaluation_log import Record

SPEC = bs.lowrank.Spec(rank=3)


def a_layer(name: str, features: int = 12, batch: int = 8, bias: bool = True) -> bs.Layer:
    torch.manual_seed(len(name))
    linear = torch.nn.Linear(features, 16, bias=bias)
    return bs.Layer.from_linear(linear, torch.randn(64, features), name, batch=batch)


def test_a_second_layer_of_a_kind_is_fitted_but_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = a_layer("a"), a_layer("bb")
    record = Record()
    measured = dataclasses.replace(evaluating.evaluate(first, "lowrank", SPEC), latency_spread=0.01)
    record.add(measured)
    twin = twin_of(record, second, bs.Candidate("bb", "lowrank", SPEC))
    assert twin == measured
    monkeypatch.setattr(evaluating, "measure", lambda *a, **k: pytest.fail("timed again"))
    shared = evaluating.evaluate(second, "lowrank", SPEC, twin=twin)
    assert (shared.latency, shared.latency_ratio, shared.kernel) == (
        measured.latency,
        measured.latency_ratio,
        measured.kernel,
    )
    assert shared.candidate.layer == "bb"
    assert shared.layer_hash == second.content_hash != measured.layer_hash
    assert shared.error != measured.error
    assert "clock" not in shared.seconds


def test_other_kinds_devices_specs_and_noisy_ones_are_no_twins() -> None:
    measured = dataclasses.replace(evaluating.evaluate(a_layer("a"), "lowrank", SPEC), latency_spread=0.01)
    same = bs.Candidate("x", "lowrank", SPEC)
    assert twin_of([measured], a_layer("x"), same) is measured
    assert twin_of([measured], a_layer("x", batch=9), same) is None
    assert twin_of([measured], a_layer("x", features=13), same) is None
    assert twin_of([measured], a_layer("x", bias=False), same) is None
    assert twin_of([measured], a_layer("x"), same, threads=2) is None
    assert twin_of([measured], a_layer("x"), bs.Candidate("x", "lowrank", bs.lowrank.Spec(rank=4))) is None
    noisy = dataclasses.replace(measured, latency_spread=LARGEST_SPREAD * 1.01)
    assert twin_of([noisy], a_layer("x"), same) is None
    assert twin_of([noisy, measured], a_layer("x"), same) is measured
    assert twin_of([dataclasses.replace(measured, failure="no")], a_layer("x"), same) is None


def test_a_kind_survives_json() -> None:
    measured = evaluating.evaluate(a_layer("a"), "lowrank", SPEC)
    assert measured.kind == "8 x 12 -> 16 with bias, torch.float32"
    assert bs.Evaluation.from_json(measured.to_json()) == measured
