"""The learnt product A B: published and refined trees, saving, loading, inputs unlike the calibration rows."""

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from basis_search.bench.pq.suite import published_scan
from basis_search.errors import BadInput
from basis_search.families.pq import Codebook
from basis_search.families.pq.guarantee import excess, guarantee
from basis_search.families.pq.nested_tables import nested_ridge
from basis_search.families.pq.refine import between_neighbours
from basis_search.families.pq.rotation import learn_rotation, quantise

pytestmark = pytest.mark.fast


def clustered(n: int, width: int, seed: int = 0) -> torch.Tensor:
    """Rows near 40 centres that lie in a space of 6 dimensions."""
    generator = torch.Generator().manual_seed(9)
    centres = torch.randn(40, 6, generator=generator) @ torch.randn(6, width, generator=generator)
    generator.manual_seed(seed)
    return centres[torch.randint(40, (n,), generator=generator)] + 0.3 * torch.randn(n, width, generator=generator)


B = torch.randn(24, 7, generator=torch.Generator().manual_seed(1))


def nmse(codebook: Codebook, a: torch.Tensor) -> float:
    exact = a @ B
    return float((codebook.matmul(a) - exact).square().mean() / exact.var())


@pytest.mark.parametrize("encoder", ["tree", "kmeans"])
@pytest.mark.parametrize("table", ["uint8", "float32"])
def test_the_product_is_close_and_codes_are_four_bits(encoder: str, table: str) -> None:
    codebook = Codebook.fit(clustered(800, 24), B, codebooks=6, encoder=encoder, table=table)
    held_out = clustered(200, 24, seed=1)
    codes = codebook.encode(held_out)
    assert codes.dtype == torch.uint8
    assert codes.shape == (200, 6)
    assert int(codes.max()) < 16
    assert nmse(codebook, held_out) < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("codebooks", [2, 5])
def test_the_refined_tree_is_better_at_the_same_cost(codebooks: int) -> None:
    a, held_out = clustered(800, 24), clustered(400, 24, seed=1)
    plain, refined = (Codebook.fit(a, B, codebooks, refine=r) for r in (False, True))
    assert nmse(refined, held_out) < 0.75 * nmse(plain, held_out)
    assert {k: (t.shape, t.dtype) for k, t in plain.params.items()} == {
        k: (t.shape, t.dtype) for k, t in refined.params.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["tree", "kmeans"])
def test_a_rotation_spreads_variance_over_the_codebooks_and_is_saved(encoder: str, tmp_path: Path) -> None:
    a, held_out = clustered(800, 24), clustered(200, 24, seed=1)
    a[:, :6] *= 8  # two of the eight groups hold nearly all of the energy
    held_out[:, :6] *= 8
    plain, turned = (Codebook.fit(a, B, 8, encoder=encoder, rotate=r) for r in (False, True))
    assert nmse(turned, held_out) < 0.7 * nmse(plain, held_out)
    turned.save(tmp_path / "turned")
    assert torch.equal(Codebook.load(tmp_path / "turned").matmul(held_out), turned.matmul(held_out))
    with pytest.raises(BadInput, match="rotated rows are floats"):
        Codebook.fit(a.to(torch.int8), B, 8, rotate=True)


@pytest.mark.slow
def test_learnt_rotations_are_orthogonal_and_quantise_better_than_none() -> None:
    x = clustered(600, 24).double() * torch.linspace(5, 0.2, 24)
    for codebooks in (1, 5, 8, 24):
        rotation = learn_rotation(x, codebooks)
        assert torch.allclose(rotation.T @ rotation, torch.eye(24, dtype=torch.float64), atol=1e-9)
        if codebooks in (5, 8):
            error, turned_error = ((rows - quantise(rows, codebooks)).square().sum() for rows in (x, x @ rotation))
            assert turned_error < 0.9 * error


def test_added_rows_keep_the_originals_and_lie_near_them() -> None:
    x = clustered(100, 8).double()
    more = between_neighbours(x, seed=0)
    assert torch.equal(more[:100], x)
    assert len(more) > 100
    assert float((more[100:] - x.repeat(len(more) // 100 - 1, 1)).norm(dim=1).max()) < float(torch.cdist(x, x).max())
    assert torch.equal(between_neighbours(x[:2], seed=0), x[:2])


def test_the_nested_ridge_without_penalty_is_least_squares_and_with_it_falls_back_on_the_parent() -> None:
    codes = torch.tensor([[0], [0], [1], [8], [9]])
    target = torch.tensor([[1.0], [3.0], [4.0], [-1.0], [-5.0]], dtype=torch.float64)
    exact = nested_ridge(codes, target, 1e-9, trees=True)[:, 0]
    assert torch.allclose(exact[[0, 1, 8, 9]], torch.tensor([2.0, 4.0, -1.0, -5.0], dtype=torch.float64), atol=1e-6)
    shrunk = nested_ridge(codes, target, 1.0, trees=True)[:, 0]
    assert float(shrunk[2]) > 0.5  # no row fell here: what its siblings 0 and 1 say, not zero
    assert float(shrunk[15]) < -0.5


def test_a_saved_codebook_gives_the_same_product(tmp_path: Path) -> None:
    codebook = Codebook.fit(clustered(300, 24), B, 5)
    codebook.save(tmp_path / "book.safetensors")
    back = Codebook.load(tmp_path / "book.safetensors")
    a = clustered(40, 24, seed=2)
    assert back.spec == codebook.spec
    assert torch.equal(back.matmul(a), codebook.matmul(a))
    assert torch.equal(back.encode(a), codebook.encode(a))


def test_files_that_are_not_codebooks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "book.safetensors"
    with pytest.raises(BadInput, match="cannot be read"):
        Codebook.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(BadInput, match="not one that"):
        Codebook.load(path)
    codebook = Codebook.fit(clustered(300, 24), B, 5)
    codebook.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadInput, match="cannot be read"):
        Codebook.load(path)
    codebook.params["thresholds"] = codebook.params["thresholds"][:3]
    codebook.save(path)
    with pytest.raises(BadInput, match="thresholds has shape"):
        Codebook.load(path)


def test_a_file_of_the_other_byte_order_is_named(tmp_path: Path) -> None:
    path = tmp_path / "book.safetensors"
    Codebook.fit(clustered(300, 24), B, 5).save(path)
    content = path.read_bytes()
    path.write_bytes(content[:8][::-1] + content[8:])
    with pytest.raises(BadInput, match="other byte order"):
        Codebook.load(path)
    path.write_bytes(content + b"more")
    with pytest.raises(BadInput, match="cannot be read"):
        Codebook.load(path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16])
def test_integer_rows_give_the_product_of_the_same_floats(dtype: torch.dtype, tmp_path: Path) -> None:
    rows = (12 * clustered(500, 24)).clamp(-127, 127).to(dtype)
    codebook = Codebook.fit(rows, B, 5)
    as_floats = Codebook.fit(rows.float(), B, 5)
    y = codebook.matmul(rows)
    assert y.dtype == torch.float32
    assert torch.equal(codebook.encode(rows), as_floats.encode(rows.float()))
    for kernel in ("reference", "torch", None):
        assert torch.allclose(codebook.matmul(rows, kernel), y, rtol=1e-4, atol=1e-3)
    codebook.save(tmp_path / "book.safetensors")
    assert Codebook.load(tmp_path / "book.safetensors").dtype == dtype
    with pytest.raises(BadInput, match="not one of"):
        Codebook.fit(rows.int(), B, 5)


def test_split_columns_stay_within_the_chosen_cache_lines() -> None:
    a, b = torch.randn(600, 100), torch.randn(100, 3)
    a[:, 32:48] *= 20  # one line of 16 floats holds nearly all of the output
    free, few = Codebook.fit(a, b, 4), Codebook.fit(a, b, 4, lines=1)
    assert set((few.params["split_columns"] // 16).flatten().tolist()) == {2}
    assert len(set((free.params["split_columns"] // 16).flatten().tolist())) > 1
    with pytest.raises(BadInput, match="too few for 20 codebooks"):
        Codebook.fit(a, b, 20, lines=1)
    with pytest.raises(BadInput, match="without refine"):
        Codebook.fit(a, b, 4, refine=True, lines=1)


def test_the_theorems_excess_is_as_published_and_the_measured_error_is_exact() -> None:
    nu = 4 * (4 * 5 + 256) * math.log(2) - math.log(0.1)
    by_hand = 4 * 3 * 2 / 2 * (1 / 256 + (8 + math.sqrt(nu)) / math.sqrt(2 * 1000))
    assert math.isclose(excess(4, 24, 1000, 3.0, 2.0, delta=0.1), by_hand)
    a = clustered(200, 24)
    y = a @ B
    y[:, 2] += 0.5
    assert math.isclose(guarantee(y, a, B, 5).measured, 0.5, rel_tol=1e-4)
    with pytest.raises(BadInput, match="between 0 and 1"):
        excess(4, 24, 1000, 3.0, 2.0, delta=1.0)


@pytest.mark.parametrize(
    ("header", "missing", "words"),
    [
        ("{", None, "no JSON"),
        ("[1]", None, "not one that"),
        ({"dtype": "torch.int4"}, None, "int4"),
        ({"version": 99}, None, "version 99"),
        ({}, "mean", "holds no mean"),
        ({}, "table", "holds no table"),
    ],
)
def test_edited_files_are_refused_with_what_was_edited(
    header: str | dict[str, object], missing: str | None, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "book.safetensors"
    Codebook.fit(clustered(300, 24), B, 5).save(path)
    with safe_open(str(path), "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys() if name != missing}  # noqa: SIM118
        written = json.loads(file.metadata()["codebook"])
    save_file(tensors, path, {"codebook": header if isinstance(header, str) else json.dumps(written | header)})
    with pytest.raises(BadInput, match=words):
        Codebook.load(path)


@pytest.mark.parametrize("table", ["uint8", "float32"])
def test_tables_beyond_float32_are_refused_and_tiny_ones_are_stored(table: str) -> None:
    with pytest.raises(BadInput, match="overflow float32"):
        Codebook.fit(1e30 * clustered(300, 24), 1e30 * B, 5, table=table)
    tiny = Codebook.fit(clustered(300, 24), 1e-44 * B, 5, table=table)
    assert tiny.matmul(clustered(40, 24)).isfinite().all()


def test_inputs_of_another_width_dtype_or_region_are_named() -> None:
    a = clustered(300, 24)
    codebook = Codebook.fit(a, B, 5)
    with pytest.raises(BadInput, match=r"\[n, 24\]"):
        codebook.matmul(a[:, :20])
    with pytest.raises(BadInput, match="learnt on torch"):
        codebook.encode(a.bfloat16())
    with pytest.raises(BadInput, match=r"\[n, D\] and \[D, M\]"):
        Codebook.fit(a, B[:20])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0.8 < codebook.shift(clustered(300, 24, seed=3)) < 1.3
    with pytest.warns(UserWarning, match="has not seen such inputs"):
        assert codebook.shift(5 * a + 3) > 2


@pytest.mark.parametrize("codebooks", [4, 16, 64])
def test_the_averaging_scan_is_unbiased(codebooks: int) -> None:
    """Pairs are rounded up, which adds C log2(U) / 4 table units on average; that is what is subtracted."""
    generator = torch.Generator().manual_seed(codebooks)
    table = torch.rand(codebooks, 16, 64, dtype=torch.float64, generator=generator)
    codes = torch.randint(16, (400, codebooks), generator=generator)
    exact = table[torch.arange(codebooks), codes].sum(1)
    scale = 255 / float((table - table.amin((1, 2), keepdim=True)).max())
    bias = codebooks * math.log2(min(codebooks, 16)) / 4
    remaining = float((published_scan(table, codes) - exact).mean()) * scale
    assert abs(remaining) < 0.05 * bias
