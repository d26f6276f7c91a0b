"""A search of a layer with an output metric minimises the weighted error, and predicts it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import basis_search as bs
from basis_search.layers.output_metric import OutputMetric
from basis_search.layers.output_spectrum import tail
from basis_search.study.proposer import Proposer
from basis_search.study.settings import SearchSettings, spaces_of
from basis_search.study.transfer import kinds
from basis_search.workers.evaluation_log import Record


def a_layer(metric: OutputMetric | None) -> bs.Layer:
    torch.manual_seed(0)
    layer = bs.Layer.from_linear(torch.nn.Linear(24, 32), torch.randn(400, 24), "fc", batch=16)
    return replace(layer, output_metric=metric)


def felt() -> OutputMetric:
    """Few of the outputs matter, and these in few directions."""
    factor = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    return OutputMetric(factor @ factor.T + 1e-3 * torch.eye(32))


def test_stages_objectives_and_fronts_are_of_the_weighted_error() -> None:
    layer, record = a_layer(felt()), Record()
    front = bs.search(layer, ("lowrank",), trials=4, record=record)
    plain = replace(layer, output_metric=None)
    for e in record:
        assert e.weighted_error is not None
        rank = e.candidate.spec.rank
        assert e.rungs["forecast"] == pytest.approx(tail(layer, rank))
        assert e.rungs["forecast"] < 0.7 * tail(plain, rank)
        assert e.objectives[0] == e.weighted_error
    errors = [e.weighted_error for e in front.evaluations]
    assert errors == sorted(errors, key=lambda error: -(error or 0.0))


def test_proposals_learn_from_weighted_errors() -> None:
    layer, record = a_layer(felt()), Record()
    bs.search(layer, ("lowrank",), trials=4, record=record)
    proposer = Proposer(layer, SearchSettings(spaces_of(("lowrank",)), total=8))
    proposer.surrogate.learn(record)
    for e in record:
        if e.failure is None:
            found = proposer.surrogate.include(e.candidate.family, e.candidate.spec, e.asked)
            predicted = proposer.surrogate.predict(found).error
            assert abs(predicted - e.searched_error) < abs(predicted - e.error)


def test_layers_lead_by_what_their_output_costs_the_model() -> None:
    weak, strong = (replace(a_layer(OutputMetric(scale * torch.eye(32))), name=str(scale)) for scale in (1.0, 5.0))
    (members,) = kinds([replace(weak, sensitivity=9.0), strong]).values()
    assert [layer.name for layer in members] == ["5.0", "1.0"]
