"""Ternary bases: every record is recomputed, programs are exact, V is the best possible, and layers use them."""

import numpy as np
import pytest
import torch
from stored_bases import files, leftover, product

from basis_search.errors import BadInput
from basis_search.families import dense, stl
from basis_search.families.protocol import choose, relative_gap
from basis_search.families.stl import kernels_cpu
from basis_search.families.stl.bases import bases
from basis_search.families.stl.fit import encode_weight
from basis_search.layers.layer import Layer, LayerShape
from basis_search.schemes.numerical import approximation
from basis_search.schemes.numerical.ternary_bases import (
    best_v,
    chain,
    descend,
    residual_of,
    start,
    strassen_orbit,
    ternary_rows,
)
from basis_search.schemes.numerical.ternary_catalogue import (
    FOLDER,
    known_ranks,
    load,
    store,
)

pytestmark = pytest.mark.fast

FILES = files(FOLDER, known_ranks)


@pytest.mark.parametrize(
    ("form", "rank"),
    [pytest.param(form, rank, marks=[pytest.mark.slow] * (form == (4, 4, 4))) for form, rank in FILES],
)
def test_stored_records_are_recomputed(form, rank):
    n, m, p = form
    stored, T = load(n, m, p, rank), product(n, m, p)
    assert leftover(stored.U, stored.V, stored.W, form) == pytest.approx(stored.residual, rel=1e-9, abs=1e-12)
    assert set(np.unique(stored.U)) <= {-1, 0, 1}
    assert set(np.unique(stored.W)) <= {-1, 0, 1}
    assert stored.encoding.computes(stored.U)
    assert stored.decoding.computes(stored.W.T)
    for program in (stored.encoding, stored.decoding):
        assert program.scalings == program.transposed().scalings == 0
    # No V does better than least squares; the one stored has a small ridge.
    pairs = np.einsum("la,lc->lac", stored.U, stored.W).reshape(rank, -1)
    best = np.linalg.lstsq(pairs.T, T.transpose(0, 2, 1).reshape(-1, m * p), rcond=None)
    least = ((pairs.T @ best[0] - T.transpose(0, 2, 1).reshape(-1, m * p)) ** 2).sum() / (n * m * p)
    assert least - 1e-9 <= stored.residual <= least + 2e-5


def test_more_rank_has_less_residual():
    for n, m, p in sorted({form for form, _ in FILES}):
        residuals = [load(n, m, p, rank).residual for rank in known_ranks(n, m, p)]
        assert residuals == sorted(residuals, reverse=True)


def test_ternary_bases_are_better_than_real_ones_for_narrow_layers():
    shape = LayerShape(128, 128, 1024)
    budget = 0.5 * dense.cost(dense.Spec(), shape).flops

    def least(kind, module):
        ranks = [r for r in module.known_ranks(4, 4, 4) if stl.cost(stl.Spec(4, r, kind), shape).flops <= budget]
        return min(bases(stl.Spec(4, r, kind)).residual for r in ranks)

    from basis_search.schemes.numerical import ternary_catalogue

    assert least("ternary", ternary_catalogue) < 0.75 * least("approximate", approximation)


def test_the_library_contains_sparse_rows_and_outer_products_once():
    rows = ternary_rows(2, 2)
    assert len(rows) == 36  # up to three entries: 4 + 12 + 16; of the 8 with four, the 4 of rank one
    assert len({tuple(row) for row in rows} | {tuple(-row) for row in rows}) == 72
    wide = ternary_rows(2, 3, 1)
    assert len(wide) == 4 * 13  # all outer products; single entries are among them


def test_a_descent_ends_in_a_local_optimum():
    rng = np.random.default_rng(0)
    form, rows = (2, 2, 2), (ternary_rows(2, 2), ternary_rows(2, 2))
    U, W = (rows[0][rng.integers(36, size=5)] for _ in range(2))
    before = residual_of(U.astype(float), W.astype(float), form)
    U1, W1, score = descend(U, W, form, rows, 0.0, rng)
    after = residual_of(U1.astype(float), W1.astype(float), form)
    assert after <= before + 1e-6
    assert score == pytest.approx(8 * (1 - after))
    for place in range(5):  # every other row in one place is no better
        for row in rows[0]:
            for side in (0, 1):
                other = [U1.astype(float), W1.astype(float)]
                other[side][place] = row
                assert residual_of(*other, form) >= after - 1e-5


@pytest.mark.slow
def test_chains_from_strassen_lose_an_eighth_with_the_first_term():
    forms = strassen_orbit()
    assert all(np.abs(side).max() == 1 for pair in forms for side in pair)
    assert all(residual_of(*pair, (2, 2, 2)) < 0.01 for pair in forms)
    rng = np.random.default_rng(0)
    U, W = (side.astype(np.float32) for side in start((2, 2, 2), rng))
    found = chain(U, W, (2, 2, 2), 0.01, rng, 5)
    assert sorted(found) == [5, 6, 7]
    V, _ = best_v(found[6].U.astype(float), found[6].W.astype(float), (2, 2, 2))
    assert V.shape == (6, 4)
    assert found[6].residual < 0.14
    with pytest.raises(BadInput, match="no exact ternary scheme of 7x7x7"):
        start((7, 7, 7), rng)


@pytest.mark.slow
def test_store_and_load_round_trip(tmp_path):
    rng = np.random.default_rng(0)
    U, W = (side.astype(np.float32) for side in start((2, 2, 2), rng))
    pair = chain(U, W, (2, 2, 2), 0.0, rng, 6)[6]
    path = store((2, 2, 2), pair, 0.0, 0, folder=tmp_path, seconds=0.2)
    assert path == tmp_path / "2x2x2" / "6.safetensors"
    with pytest.raises(BadInput, match="stored ranks are"):
        load(2, 2, 2, 100)


SPECS = [stl.Spec(tile, rank, name) for tile, rank in ((2, 5), (3, 16), (4, 32)) for name in stl.spec.TERNARY]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_both_orientations_multiply_equally_well(spec):
    stored, t = bases(spec), spec.tile
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((2, 4000, t, t))
    E, V, D = stored.encode.numpy(), stored.encode_weight.numpy(), stored.decode.numpy()
    got = ((A.reshape(-1, t * t) @ E.T) * (B.reshape(-1, t * t) @ V.T)) @ D.T
    C = (A @ B).reshape(-1, t * t)
    assert ((got - C) ** 2).sum() / (C**2).sum() == pytest.approx(stored.residual, rel=0.1)
    for program, matrix in ((stored.encoding, stored.encode), (stored.decoding, stored.decode)):
        assert program.computes(matrix)


def layer(k=24, m=20, samples=400, decay=0.5):
    g = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(k, m)
    with torch.no_grad():
        for tensor in (linear.weight, linear.bias):
            tensor.uniform_(-(k**-0.5), k**-0.5, generator=g)
    return Layer.from_linear(linear, torch.randn(samples, k, generator=g) / torch.arange(1, k + 1) ** decay, batch=64)


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_fitted_layer_has_its_programs_and_kernels_agree(spec):
    one = layer(samples=8000, decay=1.0)
    params = stl.fit(spec, one)
    stored = bases(spec)
    assert torch.equal(params["encode"].double(), stored.encode)
    assert torch.equal(params["decode"].double(), stored.decode)
    x = one.held_out
    expected = stl.KERNELS[0].run(spec, params, x)
    for kernel in stl.KERNELS[1:]:
        if kernel.refuses(spec, one) is None:
            packed = kernel.pack(spec, params)
            assert relative_gap(kernel.run(spec, packed, x), expected) < 1e-5
            if isinstance(packed, kernels_cpu.Packed):
                assert packed.programs == (True, True)
    # Fitted to the layer's own inputs, which decay: better than the weights for white ones.
    blind = {**params, "weight": encode_weight(stored.encode_weight.float(), one.weight, spec.sides), "bias": one.bias}
    dense_output = torch.nn.functional.linear(x, one.weight, one.bias)
    assert relative_gap(expected, dense_output) < relative_gap(stl.KERNELS[0].run(spec, blind, x), dense_output)


def test_a_low_rank_part_improves_them():
    one = layer()
    spec = stl.Spec(4, 24, "ternary", waist=4)
    alone, both = (stl.fit(s, one) for s in (stl.Spec(4, 24, "ternary"), spec))
    target = torch.nn.functional.linear(one.held_out, one.weight, one.bias)
    errors = [
        relative_gap(stl.KERNELS[0].run(s, p, one.held_out), target)
        for s, p in ((stl.Spec(4, 24, "ternary"), alone), (spec, both))
    ]
    assert errors[1] < errors[0]


def test_the_search_proposes_them():
    class Trial:
        def suggest_categorical(self, name, choices):
            return next(choice for choice in choices if choice.startswith("ternary-turned 4"))

        def suggest_int(self, name, low, high):
            return high

    spec = stl.suggest(Trial(), layer(64, 64), stl.Space(most_flops=0.5))
    assert spec.basis == "ternary-turned"
    assert stl.cost(spec, LayerShape(64, 64, 64)).flops <= 0.5 * dense.cost(dense.Spec(), LayerShape(64, 64, 64)).flops
    assert choose(stl.KERNELS, spec, LayerShape(64, 64, 64)).name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"basis": "ternary", "sweeps": 2}, "are programs of additions and not fitted"),
        ({"basis": "ternary", "rank": 5}, "the ternary bases for tile 4 have ranks"),
        ({"basis": "ternary", "rank": 49}, "use basis='winograd2'"),
        ({"basis": "ternary", "tile": 1, "rank": 1}, "no ternary bases for tile 1"),
        ({"basis": "ternery"}, "did you mean 'ternary'"),
    ],
)
def test_bad_specs_are_refused(fields, message):
    with pytest.raises(BadInput, match=message):
        stl.Spec(**fields)
