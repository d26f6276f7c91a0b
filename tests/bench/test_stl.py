"""Parts of the Strassen-Tile suite that time nothing: known totals and errors."""

import json

import pytest
import torch

from basis_search.bench.stl import family_map, fit, map_times, t2t
from basis_search.bench.stl.map_layer import Square
from basis_search.errors import BadInput
from basis_search.evaluation.timing import Timing
from basis_search.families import stl
from basis_search.families.stl.bases import bases
from basis_search.report.family_map import COLORS, draw


def test_t2t_vit_7_has_its_published_size_and_the_ratios_follow_by_hand():
    dense, *structured = t2t.t2t("cpu", 1)
    assert dense["parameters, million"] == pytest.approx(4.3, abs=0.05)
    assert dense["model GFLOP"] / 2 == pytest.approx(1.1, abs=0.06)  # the paper counts multiply-adds
    assert [row["core alone ratio"] for row in structured] == pytest.approx([16 / 64, 24 / 64, 32 / 64] * 2)
    assert all(row["linear ratio"] > row["core alone ratio"] for row in structured)
    assert all(
        cheap["linear ratio"] < real["linear ratio"] for real, cheap in zip(structured, structured[3:], strict=False)
    )


def test_a_wide_layer_is_evaluated_on_held_out_rows(monkeypatch):
    monkeypatch.setattr(fit, "DECAY", 0.5)
    row = fit.fitted(128, 64, 1)
    assert row["side"] == 24 * 128 // 4
    assert 0 < row["error"] < 0.9 * row["not fitted"]
    assert row["peak GB"] >= row["before GB"] > 0


def test_correlated_inputs_have_the_given_spectrum():
    x = fit.correlated(40_000, 16, 0.5, torch.Generator().manual_seed(0))
    covariance = x.T @ x / len(x)
    expected = 1 / torch.arange(16, 0, -1)
    assert torch.allclose(torch.linalg.eigvalsh(covariance), expected, rtol=0.05)
    assert covariance.diagonal().max() < 0.6  # the axes mix all features


@pytest.mark.slow
def test_the_map_has_the_error_of_each_family(monkeypatch):
    monkeypatch.setattr(family_map, "BUDGETS", (0.75, 0.5))
    wide, narrow = family_map._by_operations(64, 0.5)
    assert narrow["low rank"] > wide["low rank"] > 0
    assert narrow["2:4 pruning"] == wide["2:4 pruning"]
    for row in (wide, narrow):
        assert row["low rank + STL"] <= min(row["STL, fitted"], row["low rank"])
        assert row["STL, bases fitted too"] <= row["STL, fitted"] + 1e-9
        assert row[row["winner"]] == min(row[name] for name in COLORS if row.get(name) is not None)
    assert Square.of(64, 0.5).int8() < 2e-3


def test_with_white_inputs_the_error_of_ternary_bases_is_their_residual():
    spec, square = stl.Spec(4, 40, "ternary"), Square.of(64, 0.0)
    assert square.unfitted(spec) == pytest.approx(bases(spec).residual, rel=0.1)
    assert square.tiles(spec, 0) == pytest.approx(bases(spec).residual, rel=0.1)


@pytest.mark.slow
def test_by_time_only_candidates_within_the_budget_compete(monkeypatch):
    monkeypatch.setattr(family_map, "TIMES", (0.6, 0.5, 0.1))
    taken = {map_times.label(spec): 0.9 for spec in map_times.candidates(64)}
    taken |= {"int8": 0.55, "ternary 40": 0.45, "ternary 36": 0.3, "rank 8": 0.2}
    within, without, nothing = family_map._by_time(64, 0.0, taken)
    assert within["winner"] == within["by"] == "int8"
    assert without["int8"] is None
    assert (without["by"], without["ratio"]) == ("ternary 40", 0.45)
    assert without["low rank"] == pytest.approx(Square.of(64, 0.0).low_rank(8))
    assert (nothing["winner"], nothing["by"], nothing["ratio"]) == ("none", "", None)


def test_every_candidate_is_timed_against_the_dense_layer(monkeypatch, tmp_path):
    monkeypatch.setattr(map_times, "RESULTS", tmp_path / "times.json")
    monkeypatch.setattr(map_times, "measure", lambda runs, baseline, **_: _shapes(runs))
    taken = map_times.shares(32, 1)
    assert set(taken) == {"linear", *(map_times.label(spec) for spec in map_times.candidates(32))}
    monkeypatch.setattr(map_times, "measure", None)  # a second call reads the stored ratios
    assert map_times.shares(32, 1) == taken


def _shapes(runs):
    """Instead of timing: each candidate runs and gives outputs of the layer's shape."""
    assert {tuple(run().shape) for run in runs.values()} == {(32, 32)}
    return {name: Timing(1.0, 0.0, 1.0, 0.0) for name in runs}


def test_fits_of_wide_layers_are_stored(monkeypatch, tmp_path):
    monkeypatch.setattr(fit, "RESULTS", tmp_path / "fit.json")
    done = []
    monkeypatch.setattr(fit, "_apart", lambda k, m, threads: done.append((k, m)) or {"seconds": float(k)})
    first = fit.wide_layers("cpu", 2)
    assert fit.wide_layers("cpu", 2) == first
    assert done == list(fit.SHAPES)
    fit.wide_layers("cpu", 1)  # another number of threads is another measurement
    assert len(done) == 2 * len(fit.SHAPES)


@pytest.mark.slow
def test_the_map_is_drawn_from_its_rows_alone(tmp_path):
    row = {"case": "", "size": 64, "decay": 0.5, "budget": 0.5, "low rank": 0.1, "winner": "low rank", "by": "rank 8"}
    budgets = [row, {**row, "budget": 0.75}]
    times = [{**row, "time": 0.5, "winner": "none"}]
    layer = {"recipe": "layers", "layer": "blocks.0.qkv", "budget": 0.5}
    layers = [{**layer, "kind": "low rank", "error": 0.1}, {**layer, "kind": "low rank + stl", "error": 0.05}]
    for name, rows in (("map", budgets), ("times", times), ("layers", layers), ("other", [])):
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": rows}))
    files = [tmp_path / f"{name}.json" for name in ("map", "times", "layers")]
    draw(*files, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    for place, message in ((0, "part=map"), (1, "map by time"), (2, "layers")):
        for name in ("other.json", "absent.json"):
            wrong = [*files]
            wrong[place] = tmp_path / name
            with pytest.raises(BadInput, match=message):
                draw(*wrong, tmp_path / "map.png")
