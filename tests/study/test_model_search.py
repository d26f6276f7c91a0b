"""search_model(): leaders are searched, the others of their kind get what was proven, and nothing is done twice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import basis_search as bs
from basis_search.study.model_search import search_model
from basis_search.workers.evaluation_log import Record


def layers_of_two_kinds() -> bs.Layers:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 48), nn.Linear(48, 48), nn.Linear(48, 48), nn.Linear(48, 64))
    return bs.capture(model, [torch.randn(64, 48) for _ in range(2)])


@pytest.mark.parametrize("workers", [1, 2])
def test_every_layer_of_a_kind_is_judged_on_the_same_specs(workers: int) -> None:
    layers, record, seen = layers_of_two_kinds(), Record(), list[str]()
    fronts = search_model(
        layers, ("dense", "lowrank"), trials=3, record=record, workers=workers, watch=lambda e: seen.append(e.kind)
    )
    assert list(fronts) == ["0", "1", "2", "3"]
    tables = {layer.name: {e.candidate.spec for e in record.of(layer.content_hash)} for layer in layers}
    assert len(tables["0"]) == 4
    assert tables["1"] == tables["2"] <= tables["0"]  # the leader's dominated specs are not tried again
    assert {e.candidate.spec for e in fronts["0"].evaluations} == tables["1"]
    assert len(seen) == len(record)
    assert len(set(seen)) == 2
    again = len(record)
    search_model(layers, ("dense", "lowrank"), trials=3, record=record, watch=lambda e: pytest.fail("done again"))
    assert len(record) == again


def test_two_leaders_and_what_is_refused() -> None:
    layers, record = layers_of_two_kinds(), Record()
    search_model(layers, ("lowrank",), trials=3, record=record, leads=2)
    searched = [len(record.of(layers[name].content_hash)) for name in ("0", "1", "3")]
    assert min(searched) >= 3
    union = {
        e.candidate.spec for name in "01" for e in bs.ParetoFront.of(record.of(layers[name].content_hash)).evaluations
    }
    assert {e.candidate.spec for e in record.of(layers["2"].content_hash)} <= union
    with pytest.raises(bs.BadInput, match="leads is 0"):
        search_model(layers, leads=0)
    with pytest.raises(bs.BadInput, match="no layer was given"):
        search_model([])
    with pytest.raises(bs.BadInput, match="did you mean 'lowrank'"):
        search_model(layers, ("lowrnk",), trials=1)
