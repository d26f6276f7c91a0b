"""Tables of the Strassen-Tile suite that need no clock: known totals, errors that must come out."""

import pytest

from basis_search.bench import stl_map, stl_t2t

pytestmark = pytest.mark.fast


def test_t2t_vit_7_has_its_published_size_and_the_ratios_follow_by_hand():
    dense, *structured = stl_t2t.t2t("cpu", 1)
    assert dense["parameters, million"] == pytest.approx(4.3, abs=0.05)
    assert dense["model GFLOP"] / 2 == pytest.approx(1.1, abs=0.06)  # the paper counts multiply-adds
    assert [row["core alone ratio"] for row in structured] == pytest.approx([16 / 64, 24 / 64, 32 / 64])
    assert all(row["linear ratio"] > row["core alone ratio"] for row in structured)


def test_the_map_knows_what_each_family_leaves(monkeypatch):
    monkeypatch.setattr(stl_map, "BUDGETS", (0.75, 0.5))
    wide, narrow, int8 = stl_map._rows(64, 0.5)
    assert narrow["low rank"] > wide["low rank"] > 0
    assert narrow["2:4 pruning"] == wide["2:4 pruning"]
    for row in (wide, narrow):
        parts = [row[name] for name in ("STL, fitted", "low rank") if row[name] is not None]
        assert row["low rank + STL"] <= min(parts)
        if row["STL, fitted"] is not None:
            assert row["STL, bases fitted too"] <= row["STL, fitted"] + 1e-9
    assert int8["int8"] < 2e-3
