"""Tables of the Strassen-Tile suite that need no clock: known totals, errors that must come out."""

import json

import pytest
import torch

from basis_search.bench import stl_fit, stl_map, stl_t2t
from basis_search.errors import BadInput
from basis_search.report.winners import draw

pytestmark = pytest.mark.fast


def test_t2t_vit_7_has_its_published_size_and_the_ratios_follow_by_hand():
    dense, *structured = stl_t2t.t2t("cpu", 1)
    assert dense["parameters, million"] == pytest.approx(4.3, abs=0.05)
    assert dense["model GFLOP"] / 2 == pytest.approx(1.1, abs=0.06)  # the paper counts multiply-adds
    assert [row["core alone ratio"] for row in structured] == pytest.approx([16 / 64, 24 / 64, 32 / 64] * 2)
    assert all(row["linear ratio"] > row["core alone ratio"] for row in structured)
    assert all(
        cheap["linear ratio"] < real["linear ratio"] for real, cheap in zip(structured, structured[3:], strict=False)
    )


def test_a_wide_layer_is_judged_on_rows_it_was_not_fitted_to(monkeypatch):
    monkeypatch.setattr(stl_fit, "DECAY", 0.5)
    row = stl_fit.fitted(128, 64, 1)
    assert row["side"] == 24 * 128 // 4
    assert 0 < row["error"] < 0.9 * row["not fitted"]
    assert row["peak GB"] >= row["before GB"] > 0


def test_correlated_inputs_have_the_spectrum_asked_for():
    x = stl_fit.correlated(40_000, 16, 0.5, torch.Generator().manual_seed(0))
    covariance = x.T @ x / len(x)
    expected = 1 / torch.arange(16, 0, -1)
    assert torch.allclose(torch.linalg.eigvalsh(covariance), expected, rtol=0.05)
    assert covariance.diagonal().max() < 0.6  # no feature is an axis


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


def test_the_map_is_drawn_from_its_rows_and_from_nothing_else(tmp_path):
    row = {"case": "", "size": 64, "decay": 0.5, "budget": 0.5, "low rank": 0.1, "winner": "low rank"}
    (tmp_path / "rows.json").write_text(
        json.dumps({"rows": [row, {**row, "budget": 0.75}, {"case": "", "int8": 1e-4}]})
    )
    draw(tmp_path / "rows.json", tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "other.json").write_text('{"rows": []}')
    for name, said in (("other.json", "no rows with a winner"), ("absent.json", "part=map")):
        with pytest.raises(BadInput, match=said):
            draw(tmp_path / name, tmp_path / "map.png")
