"""Patterns and chains: support, product, chainability, redundancy, text form, bad input."""

from __future__ import annotations

import itertools

import pytest
import torch

from basis_search.errors import BadInput
from basis_search.families import kronecker
from basis_search.families.kronecker import KroneckerChain, KroneckerPattern, blocks

pytestmark = pytest.mark.fast

PATTERNS = [KroneckerPattern(*p) for p in ((1, 2, 3, 4), (3, 5, 7, 2), (2, 1, 4, 3), (4, 3, 1, 1), (1, 1, 1, 5))]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_storage_follows_the_definition_entry_by_entry(pattern: KroneckerPattern) -> None:
    a, b, c, d = pattern.storage
    w = torch.randn(a, b, c, d, dtype=torch.float64)
    matrix = torch.zeros(pattern.shape, dtype=torch.float64)
    for i, j, k, ell in itertools.product(range(a), range(b), range(c), range(d)):
        matrix[i * b * d + j * d + ell, i * c * d + k * d + ell] = w[i, j, k, ell]
    assert torch.equal(blocks.dense(w), matrix)
    assert torch.equal(blocks.gather(matrix, pattern), w)
    assert torch.equal(matrix != 0, pattern.support())
    assert int(pattern.support().sum()) == pattern.nnz
    assert torch.equal(pattern.transpose.support(), pattern.support().T)
    x = torch.randn(3, pattern.columns, dtype=torch.float64)
    torch.testing.assert_close(blocks.apply(w, x), x @ matrix.T)
    torch.testing.assert_close(blocks.dense(blocks.adjoint(w)), matrix.T)


def chainable_pairs() -> list[tuple[KroneckerPattern, KroneckerPattern]]:
    small = [KroneckerPattern(*p) for p in itertools.product((1, 2, 4), (1, 2, 3), (1, 2, 4), (1, 2, 4))]
    return [(p, q) for p, q in itertools.product(small, small) if p.mismatch(q) is None]


def test_the_product_of_a_chainable_pair_has_the_product_pattern() -> None:
    pairs = chainable_pairs()
    assert len(pairs) > 100
    for left, right in pairs:
        product = (left.support().double() @ right.support().double()) > 0
        assert torch.equal(product, left.product(right).support()), (left, right)
        assert left.rank_with(right) == left.a * left.c // right.a == right.b * right.d // left.d


def test_fusing_stored_factors_multiplies_the_matrices() -> None:
    for left, right in chainable_pairs()[::7]:
        u, v = torch.randn(left.storage).double(), torch.randn(right.storage).double()
        torch.testing.assert_close(blocks.dense(blocks.fuse(u, v)), blocks.dense(u) @ blocks.dense(v))


def test_text_form_round_trips() -> None:
    text = "(1,16,16,16)*(16,16,16,1)"
    chain = KroneckerChain.parse(text)
    assert str(chain) == text
    assert KroneckerChain.parse(" (1, 16, 16,16) * (16,16,16,1) ") == chain
    assert chain.shape == (256, 256)
    assert chain.nnz == 2 * 4096
    assert chain.density == 2 / 16
    assert chain.transpose.shape == (256, 256)


def test_dyadic_and_monarch_chains_are_full_and_irredundant() -> None:
    for chain in (KroneckerChain.dyadic(64), KroneckerChain.monarch(24, 40, 4, 5, rank=2)):
        assert chain.chainable
        assert chain.redundant() is None
        assert chain.product == KroneckerPattern(1, chain.shape[0], chain.shape[1], 1)
    assert KroneckerChain.dyadic(1024).nnz == 10 * 2048


def test_redundant_pairs_merge_and_groups_fuse() -> None:
    chain = KroneckerChain.of((1, 4, 16, 8), (4, 32, 8, 1))
    assert chain.ranks == (4,)
    assert chain.redundant() == 0
    assert chain.without_redundancy() == (KroneckerChain.of((1, 32, 32, 1)), (2,))
    dyadic = KroneckerChain.dyadic(16)
    assert dyadic.fuse((2, 2)) == KroneckerChain.of((1, 4, 4, 4), (4, 4, 4, 1))
    with pytest.raises(BadInput, match="add up"):
        dyadic.fuse((2, 1))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("(1,2,2,4)*(2,3,3,2)", [r"\(1,2,2,4\)", r"\(2,3,3,2\)", "do not compose", "8 columns", "12 rows"]),
        ("(2,2,2,2)*(1,4,4,2)", ["not chainable", "a = 2", "does not divide a = 1"]),
        ("(1,2,2,2)*(1,1,1,4)", ["not chainable", "d = 4", "does not divide d = 2"]),
        ("(1,2,2", ["is not a chain"]),
        ("", ["is not a chain"]),
        ("(1,2,0,2)", ["c is 0"]),
    ],
)
def test_bad_chains_raise_bad_input(text: str, words: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        kronecker.Spec(chain=text)
    for word in words:
        assert __import__("re").search(word, str(caught.value)), (word, str(caught.value))


@pytest.mark.parametrize("value", [3, None, ["(1,2,2,2)"], 1.5])
def test_a_chain_must_be_text(value: object) -> None:
    with pytest.raises((BadInput, TypeError)):
        kronecker.Spec(chain=value)  # type: ignore[arg-type]
