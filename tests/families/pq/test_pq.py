"""Product quantisation: learning, exactness of codes and sums, cost, bad input."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from basis_search.errors import BadInput
from basis_search.families import pq
from basis_search.families.pq.fit import learn_encoder, prototypes, store_table
from basis_search.families.pq.reference import encode, reference
from basis_search.families.pq.spec import BUCKETS, bounds
from basis_search.families.protocol import relative_gap, spec_from_json, spec_to_json
from basis_search.layers.collection import Layers
from basis_search.layers.layer import Layer, LayerShape

pytestmark = pytest.mark.fast


def layer_of(inputs: torch.Tensor, out: int = 5, dtype: torch.dtype = torch.float32, bias: bool = True) -> Layer:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(out, inputs.shape[1], generator=generator)
    half = len(inputs) // 2
    return Layer(
        "planted",
        weight,
        torch.randn(out, generator=generator) if bias else None,
        inputs[:half],
        inputs[half:],
        4,
        dtype,
    )


def planted_tree_rows(codebooks: int, width: int, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """16 values per codebook: bit t of the code decides column t of the group, earlier bits weigh more."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(BUCKETS, (n, codebooks), generator=generator)
    bits = codes[:, :, None] >> torch.tensor([3, 2, 1, 0]) & 1  # [n, C, 4]
    rows = torch.zeros(n, codebooks, width)
    rows[:, :, :4] = (2 * bits - 1) * torch.tensor([8.0, 4.0, 2.0, 1.0])
    return rows.flatten(1), codes


def test_a_planted_tree_is_found_and_its_rows_are_reproduced() -> None:
    x, codes = planted_tree_rows(codebooks=3, width=6, n=2000)
    layer = layer_of(x)
    spec = pq.Spec(3, "tree", "float32")
    params = pq.fit(spec, layer)
    starts = torch.tensor(bounds(18, 3)[:-1])
    assert torch.equal(params["split_columns"].long(), starts[:, None] + torch.arange(4))
    assert torch.equal(encode(spec, params, layer.held_out), codes[1000:])
    exact = layer.held_out.double() @ layer.weight.double().T
    table = prototypes(encode(spec, params, layer.inputs), layer.inputs.double(), ridge=1e-9) @ layer.weight.double().T
    y = reference(spec, {**params, "table": table.view(3, BUCKETS, -1)}, layer.held_out) - params["bias"].double()
    assert relative_gap(y, exact) ** 2 < 1e-10
    # With the published ridge of 1 each entry is shrunk by about 1 / rows of its bucket, no more.
    assert relative_gap(reference(spec, params, layer.held_out) - params["bias"].double(), exact) < 0.02


def test_planted_prototypes_are_found_by_kmeans() -> None:
    generator = torch.Generator().manual_seed(0)
    centroids = 10 * torch.randn(BUCKETS, 11, generator=generator)
    codes = torch.randint(BUCKETS, (1200, 2), generator=generator)
    x = torch.cat([centroids[codes[:, 0], :6], centroids[codes[:, 1], 6:]], 1)
    spec = pq.Spec(2, "kmeans")
    params = pq.fit(spec, layer_of(x))
    found = encode(spec, params, x)
    for c in range(2):  # labels are arbitrary: the same partition, one to one
        pairs = torch.unique(codes[:, c] * BUCKETS + found[:, c])
        assert len(pairs) == BUCKETS
    begin = 0
    for c, end in enumerate((6, 11)):
        assert torch.allclose(params["centroids"][found[:, c], begin:end], x[:, begin:end], atol=1e-5)
        begin = end


@pytest.mark.parametrize(("width", "codebooks"), [(10, 3), (7, 7), (64, 16), (5, 1), (33, 5)])
def test_groups_cover_all_columns_and_the_first_are_wider(width: int, codebooks: int) -> None:
    starts = bounds(width, codebooks)
    sizes = [b - a for a, b in itertools.pairwise(starts)]
    assert starts[0] == 0
    assert starts[-1] == width
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def test_each_level_and_node_compares_with_its_own_threshold() -> None:
    """The published encoder used level 0's thresholds on every level."""
    thresholds = torch.arange(15, dtype=torch.float32)[None] * 10 - 70
    params = {"split_columns": torch.tensor([[0, 1, 2, 3]], dtype=torch.int32), "thresholds": thresholds}
    generator = torch.Generator().manual_seed(0)
    x = 160 * torch.rand(500, 4, generator=generator) - 80
    expected = []
    for row in x.tolist():
        i = 0
        for t in range(4):
            i = 2 * i + (row[t] > float(thresholds[0, 2**t - 1 + i]))
        expected.append(i)
    codes = encode(pq.Spec(1), params, x)[:, 0]
    assert codes.tolist() == expected
    assert len(set(expected)) > 8


def test_comparisons_are_exact_at_the_threshold_in_each_dtype() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        v = torch.tensor(1.5, dtype=dtype)
        above = torch.nextafter(v.float(), torch.tensor(2.0)) if dtype == torch.float32 else v + torch.finfo(dtype).eps
        params = {
            "split_columns": torch.tensor([[0, 0, 0, 0]], dtype=torch.int32),
            "thresholds": torch.full((1, 15), 1.5, dtype=dtype),
        }
        x = torch.stack([v, above.to(dtype)])[:, None]
        assert encode(pq.Spec(1), params, x)[:, 0].tolist() == [0, 15]


def test_all_negative_tables_use_the_whole_range() -> None:
    """The published table's maximum started at the smallest positive float, and 46 of 255 levels were used."""
    table = -100 - 5 * torch.rand(4, BUCKETS, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    stored = store_table(table, "uint8")
    for m in range(3):
        assert int(stored["table"][:, :, m].max()) - int(stored["table"][:, :, m].min()) > 200
    back = stored["table"].double() * stored["scale"].double()
    error = (back.sum(0) + stored["offset"].double() / 1 - table.sum(0)).abs()
    assert bool((error <= 4 * 0.5001 * stored["scale"].double()).all())


def test_a_constant_table_is_stored_without_a_division_by_zero() -> None:
    stored = store_table(torch.full((2, BUCKETS, 3), 7.0, dtype=torch.float64), "uint8")
    assert bool((stored["table"] == 0).all())
    assert torch.equal(stored["offset"], torch.full((3,), 14.0))


def test_sums_pass_255_without_wrapping() -> None:
    """The published scan sign-extended group means of 128 and more."""
    codebooks = 40
    params = {
        "split_columns": torch.zeros(codebooks, 4, dtype=torch.int32),
        "thresholds": torch.zeros(codebooks, 15),
        "table": torch.full((codebooks, BUCKETS, 2), 255, dtype=torch.uint8),
        "scale": torch.ones(2),
        "offset": torch.zeros(2),
    }
    spec = pq.Spec(codebooks)
    assert reference(spec, params, torch.ones(3, 4)).tolist() == [[codebooks * 255.0] * 2] * 3


@pytest.mark.parametrize("encoder", ["tree", "kmeans"])
def test_nan_and_infinite_inputs_have_a_defined_code(encoder: str) -> None:
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    spec = pq.Spec(2, encoder)
    params = pq.fit(spec, layer_of(x))
    bad = torch.zeros(4, 8)
    bad[0], bad[1], bad[2], bad[3, 3] = torch.nan, torch.inf, -torch.inf, torch.nan
    codes = encode(spec, params, bad)
    assert bool(((codes >= 0) & (codes < BUCKETS)).all())
    assert bool(torch.isfinite(reference(spec, params, bad)).all())
    if encoder == "tree":
        assert codes[0].tolist() == codes[2].tolist() == [0, 0]  # nothing is larger than a threshold
        assert codes[1].tolist() == [15, 15]


@pytest.mark.parametrize("encoder", ["tree", "kmeans"])
def test_constant_columns_and_repeated_rows_fit(encoder: str) -> None:
    x = torch.zeros(64, 6)
    x[:, 0] = torch.arange(64) % 2
    layer = layer_of(x)
    spec = pq.Spec(3, encoder, "float32")
    params = pq.fit(spec, layer)
    assert all(bool(torch.isfinite(t).all()) for t in params.values())
    y = reference(spec, params, layer.held_out)
    exact = layer.held_out.double() @ layer.weight.double().T + params["bias"].double()
    assert relative_gap(y, exact) < 0.05


def test_buckets_that_no_row_fell_into_hold_their_codebooks_mean() -> None:
    codes = torch.tensor([[0], [0], [1], [1]])
    target = torch.tensor([[1.0], [1.0], [3.0], [3.0]], dtype=torch.float64)
    table = prototypes(codes, target, ridge=1e-12)
    assert torch.allclose(table[:2, 0], torch.tensor([1.0, 3.0], dtype=torch.float64))
    assert torch.allclose(table[2:, 0], torch.full((14,), 2.0, dtype=torch.float64))


def test_both_forms_of_the_ridge_solution_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(BUCKETS, (60, 4), generator=generator)
    target = torch.randn(60, 3, dtype=torch.float64, generator=generator)
    small = prototypes(codes, target, ridge=0.5)  # 60 rows < 64 entries
    g = torch.nn.functional.one_hot(codes, BUCKETS).double().flatten(1)
    direct = torch.linalg.solve(g.T @ g + 0.5 * torch.eye(64, dtype=torch.float64), g.T @ target)
    used = g.sum(0) > 0
    assert torch.allclose(small[used], direct[used], atol=1e-12)
    repeated = prototypes(codes.repeat(2, 1), target.repeat(2, 1), ridge=1.0)  # 120 rows: the other branch
    assert torch.allclose(repeated[used], direct[used], atol=1e-10)


def test_the_fit_is_deterministic_and_leaves_inputs_alone() -> None:
    x = torch.randn(300, 12, generator=torch.Generator().manual_seed(2))
    layer = layer_of(x)
    before = layer.inputs.clone()
    for encoder in ("tree", "kmeans"):
        first, second = (pq.fit(pq.Spec(3, encoder), layer) for _ in range(2))
        assert all(torch.equal(first[k], second[k]) for k in first)
    assert torch.equal(layer.inputs, before)


@pytest.mark.slow
def test_more_codebooks_fit_low_rank_inputs_better() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3000, 4, generator=generator) @ torch.randn(4, 32, generator=generator)
    layer = layer_of(x, out=16, bias=False)
    exact = layer.held_out.double() @ layer.weight.double().T
    gaps = {
        c: relative_gap(reference(pq.Spec(c), pq.fit(pq.Spec(c), layer), layer.held_out), exact) for c in (2, 8, 32)
    }
    assert gaps[2] > gaps[8] > gaps[32]
    assert gaps[32] ** 2 < 0.03


def test_thresholds_in_bfloat16_split_the_rows_the_layer_sees() -> None:
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(4))
    layer = layer_of(x, dtype=torch.bfloat16)
    params = pq.fit(pq.Spec(2), layer)
    assert params["thresholds"].dtype == torch.bfloat16
    codes = encode(pq.Spec(2), params, layer.inputs.bfloat16())
    assert all(len(torch.unique(codes[:, c])) == BUCKETS for c in range(2))


def test_quantised_thresholds_lie_on_their_levels_grid() -> None:
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    params = learn_encoder(pq.Spec(1), x)
    for t in range(4):
        column = x[:, int(params["split_columns"][0, t])]
        low, high = float(column.min()), float(column.max())
        steps = (params["thresholds"][0, 2**t - 1 : 2 ** (t + 1) - 1] - low) / (high - low) * 255
        assert torch.allclose(steps, steps.round(), atol=1e-6)


def test_cost_counts_compares_lookups_and_constants() -> None:
    shape = LayerShape(64, 10, batch=3)
    tree = pq.cost(pq.Spec(4, "tree", "uint8"), shape)
    assert (tree.multiplications, tree.additions, tree.lookups) == (3 * 10, 3 * (4 * 10 + 16), 3 * (4 * 10 + 12))
    assert tree.parameters == 4 * 16 * 10 + 4 * 19 + 30
    near = pq.cost(pq.Spec(4, "kmeans", "float32"), shape)
    assert (near.multiplications, near.lookups) == (3 * 16 * 64, 3 * 40)
    assert near.additions == 3 * (4 * 10 + 16 * 64 + 4 * 15)
    assert near.bytes == 4 * (4 * 16 * 10 + 10 + 16 * 64 + 3 * 64 + 30)


def test_the_spec_survives_json() -> None:
    spec = pq.Spec(7, "kmeans", "float32")
    assert spec_from_json(pq, json.loads(json.dumps(spec_to_json(spec)))) == spec


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"codebooks": 0}, "at least 1"),
        ({"codebooks": 2.5}, "integer"),
        ({"encoder": "kmean"}, "kmeans"),
        ({"table": "int8"}, "uint8"),
        ({"sums": "averagd"}, "averaged"),
        ({"sums": "averaged", "table": "float32"}, "exact sums"),
        ({"sums": "averaged", "codebooks": 518}, "259 groups"),
    ],
)
def test_bad_specs_are_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        pq.Spec(**arguments)  # type: ignore[arg-type]


def test_more_codebooks_than_columns_and_too_few_rows_are_refused() -> None:
    x = torch.randn(200, 8)
    with pytest.raises(BadInput, match="9 codebooks do not fit an input of width 8"):
        pq.fit(pq.Spec(9), layer_of(x))
    with pytest.raises(BadInput, match="10 rows to fit on are fewer than the 16 buckets"):
        pq.fit(pq.Spec(2), layer_of(x[:20]))


class FixedTrial:
    """Answers with the upper bound of each integer and the first choice of each category."""

    def suggest_int(self, name: str, low: int, high: int, log: bool = False) -> int:
        assert 1 <= low <= high
        return high

    def suggest_categorical(self, name: str, choices: list[str]) -> str:
        return choices[0]


@pytest.mark.parametrize(("width", "codebooks"), [(1, 1), (2, 1), (128, 64), (2048, 256)])
def test_suggestions_fit_the_layer(width: int, codebooks: int) -> None:
    layer = layer_of(torch.randn(64, width))
    assert pq.suggest(FixedTrial(), layer, pq.Space()) == pq.Spec(codebooks, "tree", "uint8")
    with pytest.raises(BadInput, match="fewer than the 16 buckets"):
        pq.suggest(FixedTrial(), layer_of(torch.randn(20, width)), pq.Space())


def test_the_bench_of_real_layers_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from basis_search.bench.pq import suite as bench
    from basis_search.bench.search.evaluation_table import digits_layers

    monkeypatch.chdir(tmp_path)  # where no example is
    with pytest.raises(BadInput, match="run this from a checkout"):
        digits_layers(bench.FOLDER, bench.LAYERS)
    layer = layer_of(torch.randn(40, 6))
    Layers((layer,)).save(bench.FOLDER / "digits" / "layers")
    (found,) = digits_layers(bench.FOLDER, [layer.name])
    assert torch.equal(found.inputs, layer.inputs)
