"""Factorisation: published numbers, exact recovery, bounds, least squares with and without a second moment."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.families.kronecker import KroneckerChain, blocks, factorize
from basis_search.families.kronecker.alternating_least_squares import alternate

pytestmark = pytest.mark.fast


def gaussian(n: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((n, n)))


def planted(chain: KroneckerChain, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    factors = [torch.randn(p.storage, generator=draw, dtype=dtype) for p in chain]
    return blocks.dense(blocks.fuse_all(factors))


def error(matrix: Tensor, factors: list[Tensor]) -> float:
    product = blocks.dense(factors[0])
    for w in factors[1:]:
        product = product @ blocks.dense(w)
    return float((matrix - product).norm() / matrix.norm())


@pytest.mark.slow
def test_hadamard_and_fourier_matrices_are_butterflies() -> None:
    hadamard = torch.from_numpy(scipy.linalg.hadamard(512)).double()
    for chain in (KroneckerChain.dyadic(512), KroneckerChain.monarch(512, 512, 16, 32)):
        assert error(hadamard, factorize(hadamard, chain, polish=False).factors) <= 5e-15
    reverse = [int(f"{i:08b}"[::-1], 2) for i in range(256)]
    fourier = torch.from_numpy(np.fft.fft(np.eye(256))[:, reverse])
    result = factorize(fourier, KroneckerChain.dyadic(256), polish=False)
    assert result.factors[0].dtype == torch.complex128
    assert error(fourier, result.factors) <= 2.07e-14


@pytest.mark.slow
@pytest.mark.parametrize(
    ("order", "orthonormalize", "value"),
    [
        ("left", True, 0.8934101),
        ("left", False, 0.8946958),
        ("balanced", True, 0.8995714),
        ("balanced", False, 0.9025004),
    ],
)
def test_dyadic_gaussian_64_matches_the_published_values(order: str, orthonormalize: bool, value: float) -> None:
    matrix, chain = gaussian(64), KroneckerChain.dyadic(64)
    result = factorize(matrix, chain, order=order, orthonormalize=orthonormalize, polish=False)
    assert round(error(matrix, result.factors), 7) == value
    assert math.isclose(result.error, error(matrix, result.factors), rel_tol=1e-9)
    polished = factorize(matrix, chain, order=order, orthonormalize=orthonormalize)
    assert polished.error < result.error


@pytest.mark.slow
@pytest.mark.parametrize(("n", "limit"), [(64, 0.8653), (128, 0.9230)])
def test_polish_reaches_the_stated_error(n: int, limit: float) -> None:
    result = factorize(gaussian(n), KroneckerChain.dyadic(n))
    assert result.lower_bound < error(gaussian(n), result.factors) <= limit


@pytest.mark.parametrize(("n", "value"), [(64, 0.7778414161), (256, 0.8863653873)])
def test_monarch_gaussian_attains_the_lower_bound(n: int, value: float) -> None:
    side = math.isqrt(n)
    result = factorize(gaussian(n), KroneckerChain.monarch(n, n, side, side))
    assert round(error(gaussian(n), result.factors), 10) == value
    assert math.isclose(result.lower_bound, result.error, rel_tol=1e-12)
    assert math.isclose(result.upper_bound, result.error, rel_tol=1e-12)


@pytest.mark.parametrize(("rank", "value"), [(1, 0.8863654), (2, 0.7857476), (4, 0.6084897), (8, 0.3212474)])
def test_monarch_of_higher_rank(rank: int, value: float) -> None:
    chain = KroneckerChain.of((1, 16, 16 * rank, 16), (16, 16 * rank, 16, 1))
    assert round(error(gaussian(256), factorize(gaussian(256), chain).factors), 7) == value


def test_a_redundant_chain_is_exact() -> None:
    chain = KroneckerChain.of((1, 4, 16, 8), (4, 32, 8, 1))
    result = factorize(gaussian(32), chain)
    assert [tuple(w.shape) for w in result.factors] == [p.storage for p in chain]
    assert error(gaussian(32), result.factors) <= 8e-16


CHAINS = [
    "(1,2,2,4)*(2,2,2,2)*(4,2,2,1)",
    "(1,3,4,10)*(2,10,6,2)*(6,2,5,2)",  # intermediate ranks, d_L != 1, oblong
    "(2,3,4,6)*(4,4,5,3)",  # a_1 != 1
    "(1,5,7,1)",
    "(1,1,3,7)*(3,7,1,1)",
]


@pytest.mark.parametrize("order", ["left", "right", "balanced"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("text", CHAINS)
def test_planted_chains_are_recovered(text: str, dtype: torch.dtype, order: str) -> None:
    chain = KroneckerChain.parse(text)
    matrix = planted(chain, dtype)
    result = factorize(matrix, chain, order=order, polish=False)
    assert error(matrix, result.factors) <= 1e-12
    assert result.upper_bound <= 1e-7  # tails are accurate to sqrt(eps)


@pytest.mark.slow
def test_every_order_is_within_the_bounds() -> None:
    chain = KroneckerChain.dyadic(16)
    for seed in range(20):
        matrix = torch.randn(16, 16, generator=torch.Generator().manual_seed(seed)).double()
        for order in itertools.permutations((1, 2, 3)):
            result = factorize(matrix, chain, order=order, polish=False)
            assert result.lower_bound <= error(matrix, result.factors) <= result.upper_bound


def test_entries_outside_the_product_pattern_count_as_error() -> None:
    chain = KroneckerChain.of((2, 2, 2, 2), (4, 2, 2, 1))
    matrix = torch.ones(8, 8).double()
    result = factorize(matrix, chain)
    assert math.isclose(result.error, error(matrix, result.factors), rel_tol=1e-12)
    assert math.isclose(result.error, math.sqrt(0.5), rel_tol=1e-12)
    assert math.isclose(result.lower_bound, math.sqrt(0.5), rel_tol=1e-12)


def moment(n: int, seed: int = 0) -> Tensor:
    x = torch.randn(3 * n, n, generator=torch.Generator().manual_seed(seed)).double()
    x = x @ torch.randn(n, n, generator=torch.Generator().manual_seed(seed + 1)).double()
    return x.T @ x / len(x)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["(1,4,4,4)*(4,4,4,1)", "(1,4,8,4)*(4,8,4,1)", "(1,2,2,8)*(2,2,2,4)*(4,4,4,1)"])
def test_least_squares_under_a_second_moment_is_stationary_and_monotone(text: str) -> None:
    chain = KroneckerChain.parse(text)
    matrix, seen = gaussian(16), moment(16)
    start = factorize(matrix, chain, polish=False).factors

    def loss(factors: list[Tensor]) -> Tensor:
        difference = matrix - blocks.dense(blocks.fuse_all(factors))
        return torch.sum(difference * (difference @ seen))

    losses = [float(loss(start))]
    for sweeps in (1, 2, 4, 300):
        factors = alternate(start, matrix, seen, sweeps=sweeps, steps=8, tolerance=1e-13)
        losses.append(float(loss(factors)))
    assert losses == sorted(losses, reverse=True)
    leaves = [w.clone().requires_grad_() for w in factors]
    loss(leaves).backward()  # type: ignore[no-untyped-call]
    for w in leaves:
        assert w.grad is not None
        assert float(w.grad.norm() * w.detach().norm()) <= 1e-2 * losses[-1]


@pytest.mark.slow
def test_weighting_by_the_inputs_lowers_the_output_error() -> None:
    matrix, seen, chain = gaussian(32), moment(32), KroneckerChain.monarch(32, 32, 4, 8)
    plain, weighted = factorize(matrix, chain), factorize(matrix, chain, second_moment=seen)
    difference = matrix - plain.to_dense()
    scale = float(torch.sum(matrix * (matrix @ seen)))
    assert weighted.error**2 < 0.9 * float(torch.sum(difference * (difference @ seen))) / scale


def test_float32_zero_and_rank_deficient_matrices() -> None:
    chain = KroneckerChain.dyadic(16)
    matrix = planted(chain).float()
    result = factorize(matrix, chain)
    assert result.factors[0].dtype == torch.float32
    assert error(matrix, result.factors) <= 1e-6
    matrix = gaussian(16)
    matrix[:8] = 0
    matrix[:, ::2] = 0
    for value in (torch.zeros(16, 16), matrix):
        for second_moment in (None, torch.diag((torch.arange(16) % 2).double())):
            result = factorize(value, chain, second_moment=second_moment)
            assert all(bool(torch.isfinite(w).all()) for w in result.factors)
            assert result.error <= 1


def test_bad_input_names_the_problem() -> None:
    chain = KroneckerChain.dyadic(16)
    with pytest.raises(BadInput, match="16 x 16"):
        factorize(gaussian(8), chain)
    matrix = gaussian(16)
    matrix[3, 4] = math.nan
    with pytest.raises(BadInput, match="1 NaN"):
        factorize(matrix, chain)
    with pytest.raises(BadInput, match="order is 'up'"):
        factorize(gaussian(16), chain, order="up")
    with pytest.raises(BadInput, match="second moment has shape"):
        factorize(gaussian(16), chain, second_moment=torch.eye(8))
    with pytest.raises(BadInput, match="not chainable"):
        factorize(gaussian(16), KroneckerChain.of((2, 8, 8, 1), (1, 16, 16, 1)))


@pytest.mark.parametrize("orthonormalize", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
def test_every_order_dtype_and_normalisation_recovers_a_chain(dtype: torch.dtype, orthonormalize: bool) -> None:
    chain = KroneckerChain.parse("(1,3,4,10)*(2,10,6,2)*(6,2,5,2)")
    matrix = planted(chain, torch.complex128 if dtype.is_complex else torch.float64).to(dtype)
    for order in ("left", "right", "balanced", (2, 1)):
        result = factorize(matrix, chain, order=order, orthonormalize=orthonormalize, polish=False)
        assert all(w.dtype == dtype for w in result.factors)
        assert error(matrix, result.factors) <= 100 * torch.finfo(dtype).eps


@pytest.mark.parametrize("orthonormalize", [True, False])
def test_rank_deficient_blocks_stay_exact(orthonormalize: bool) -> None:
    chain = KroneckerChain.parse("(1,4,8,4)*(4,8,4,1)")  # rank 2 allowed, rank 1 present
    matrix = planted(KroneckerChain.monarch(16, 16, 4, 4))
    for polish in (True, False):
        result = factorize(matrix, chain, orthonormalize=orthonormalize, polish=polish)
        assert all(bool(torch.isfinite(w).all()) for w in result.factors)
        assert error(matrix, result.factors) <= 1e-7  # computed from the Gram matrix, at half the digits


def test_least_squares_under_a_complex_second_moment() -> None:
    draw = torch.Generator().manual_seed(0)
    matrix = torch.randn(16, 16, generator=draw, dtype=torch.complex128)
    x = torch.randn(200, 16, generator=draw, dtype=torch.complex128) @ torch.diag(torch.logspace(0, -2, 16)).to(matrix)
    seen = x.mT @ x.conj() / 200  # E[x x^H] for rows x
    chain = KroneckerChain.monarch(16, 16, 4, 4)

    def loss(product: Tensor) -> float:
        return float(((matrix - product) @ x.mT).norm() / (matrix @ x.mT).norm())

    weighted = factorize(matrix, chain, second_moment=seen)
    assert loss(weighted.to_dense()) < 0.9 * loss(factorize(matrix, chain).to_dense())
    assert math.isclose(weighted.error, loss(weighted.to_dense()), rel_tol=1e-6)
