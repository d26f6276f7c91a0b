"""Straight-line programs: exact maps, known counts, transposition, composition."""

import json
import re
from fractions import Fraction

import numpy as np
import pytest
import torch

from basis_search.errors import BadInput
from basis_search.schemes import laderman, standard, strassen, tensor_product, winograd
from basis_search.schemes.programs.additions import (
    BilinearProgram,
    additions,
    split,
    tensor_product_programs,
)
from basis_search.schemes.programs.compose import chain, kronecker, simplified
from basis_search.schemes.programs.emit import scheduled
from basis_search.schemes.programs.program import Program, Step, Term
from basis_search.schemes.programs.shorten import shorten

pytestmark = pytest.mark.fast


def ternary(rng, rows, columns, density=0.5):
    return rng.choice([-1, 0, 1], p=[density / 2, 1 - density, density / 2], size=(rows, columns))


def rational(rng, rows, columns):
    entries = [Fraction(0), Fraction(1), Fraction(-1), Fraction(1, 2), Fraction(-3, 4), Fraction(2)]
    return [[entries[k] for k in rng.integers(len(entries), size=columns)] for _ in range(rows)]


def naive(matrix):
    return sum(max(0, sum(c != 0 for c in row) - 1) for row in matrix)


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (7, 3), (3, 8), (12, 9)])
def test_minimise_computes_its_matrix(shape, plain):
    rng = np.random.default_rng(shape)
    for matrix in (ternary(rng, *shape), rational(rng, *shape), np.zeros(shape, dtype=int), np.ones(shape, dtype=int)):
        program = shorten(matrix, seconds=0.005, plain=plain)
        assert program.computes(matrix)
        assert program.additions <= naive(matrix)


def test_repeated_and_proportional_rows_cost_nothing():
    row = [1, -1, 2, 0]
    matrix = [row, [-c for c in row], [3 * c for c in row], [0, 0, 0, 0], row]
    assert shorten(matrix).additions == 2


def test_computes_rejects_other_maps():
    program = shorten([[1, 1], [1, -1]])
    assert not program.computes([[1, 1], [1, 1]])
    assert not program.computes([[1, 1]])
    assert not program.computes([[1, 1, 0], [1, -1, 0]])


def test_cancellation_is_found():
    # The last row is the one before minus a: 4 additions, where programs without cancellation need 5
    # (J. Boyar, P. Matthews, R. Peralta, 2013).
    matrix = [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 1]]
    assert shorten(matrix).additions == 4


@pytest.mark.parametrize("plain", [True, False])
def test_known_counts(plain):
    for scheme, expected in ((strassen(), 18), (winograd(), 15)):
        parts = [shorten(m, plain=plain).additions for m in (scheme.U, scheme.V, np.array(scheme.W).T)]
        assert sum(parts) == expected


@pytest.mark.slow
def test_laderman_takes_at_most_62_additions():
    scheme = laderman()
    program = additions(scheme)
    assert program.computes(scheme)
    assert program.additions <= 62
    assert scheme.additions() == program.additions


@pytest.mark.slow
def test_same_seed_same_program():
    matrix = ternary(np.random.default_rng(3), 14, 8)
    assert shorten(matrix, seed=5) == shorten(matrix, seed=5)


def test_naive_scheme_needs_only_decoding():
    program = additions(standard(2, 3, 4), seconds=0.05)
    assert [p.additions for p in program.parts] == [0, 0, 2 * 4 * 2]


@pytest.mark.parametrize("seed", range(5))
def test_transposition_principle(seed):
    rng = np.random.default_rng(seed)
    matrix = ternary(rng, 9, 6, 0.6)
    matrix[:, 0], matrix[0] = 1, 1  # neither a zero row nor a zero column
    matrix[np.arange(9), rng.integers(6, size=9)] = 1
    matrix[rng.integers(9, size=6), np.arange(6)] = 1
    program = shorten(matrix, seconds=0.05)
    transposed = program.transposed()
    assert transposed.computes(matrix.T)
    assert transposed.additions == program.additions + 9 - 6
    assert transposed.transposed().computes(matrix)


def test_evaluation_is_exact_and_vectorised():
    rng = np.random.default_rng(0)
    matrix = rational(rng, 6, 5)
    program = shorten(matrix, seconds=0.05)
    values = [Fraction(int(k), 7) for k in rng.integers(-9, 9, size=5)]
    assert program(values) == [sum((c * v for c, v in zip(row, values, strict=True)), Fraction(0)) for row in matrix]
    x = torch.randn(5, 3, 2, dtype=torch.float64)
    dense = torch.tensor([[float(c) for c in row] for row in matrix], dtype=torch.float64)
    torch.testing.assert_close(program(x), torch.einsum("ij,jkl->ikl", dense, x), rtol=1e-13, atol=1e-13)
    integers = ternary(rng, 4, 5)
    program = shorten(integers)
    y = rng.integers(-(10**6), 10**6, size=(5, 100))
    assert np.array_equal(program(y), integers @ y)
    assert program(np.ones((5, 2), dtype=np.float32)).dtype == np.float32


def test_kronecker_and_chain():
    rng = np.random.default_rng(1)
    p, q = ternary(rng, 4, 3, 0.9), ternary(rng, 5, 2, 0.9)
    first, second = shorten(p), shorten(q)
    assert kronecker(first, second).computes(np.kron(p, q))
    assert kronecker(second, first).computes(np.kron(q, p))
    r = ternary(rng, 3, 4, 0.9)
    assert chain(first, shorten(r)).computes(r @ p)


def test_winograd_nested_twice_takes_44_44_and_77_additions():
    scheme = winograd()
    one = additions(scheme)
    two = tensor_product_programs(one, one, (2, 2, 2), (2, 2, 2))
    assert two.computes(tensor_product(scheme, scheme))
    assert [p.additions for p in two.parts] == [44, 44, 77]


def test_composition_of_unlike_formats():
    a, b = strassen(), standard(1, 2, 3)
    two = tensor_product_programs(additions(a), additions(b), a.shape, b.shape)
    assert two.computes(tensor_product(a, b))


@pytest.mark.slow
def test_tensor_products_start_from_their_factors():
    product = tensor_product(winograd(), winograd())
    rows = tuple(tuple(int(c) for c in row) for row in product.U)
    assert split(rows, (4, 4)) is not None
    changed = [list(row) for row in rows]
    changed[0][0] += 1
    assert split(tuple(map(tuple, changed)), (4, 4)) is None
    program = additions(product)
    assert program.computes(product)
    assert program.additions <= 160
    a = np.random.default_rng(0).integers(-9, 9, size=(4, 4, 3))
    b = np.random.default_rng(1).integers(-9, 9, size=(4, 4, 3))
    c = program(a.reshape(16, 3), b.reshape(16, 3)).reshape(4, 4, 3)
    assert np.array_equal(c, np.einsum("ikx,kjx->ijx", a, b))


def test_signs_are_absorbed():
    program = Program(2, (Step(0, -1, 1, -1),), (Term(2, -1),))
    assert simplified(program).negations == 0
    assert simplified(program).computes([[1, 1]])
    alone = simplified(Program(1, (), (Term(0, -1),)))
    assert alone.negations == 1


def test_unused_and_repeated_steps_are_removed():
    steps = (Step(0, 1, 1, 1), Step(1, -2, 0, -2), Step(0, 1, 1, -1))
    program = Program(2, steps, (Term(2, 1), Term(3, 1)))
    short = simplified(program)
    assert short.additions == 1
    assert short.computes([[1, 1], [-2, -2]])


def test_scheduling_keeps_the_map_and_no_more_values():
    matrix = ternary(np.random.default_rng(2), 10, 8, 0.7)
    program = shorten(matrix, seconds=0.05)
    ordered = scheduled(program)
    assert ordered.computes(matrix)
    assert ordered.live <= program.live


def test_graph_of_a_program():
    program = shorten([[1, 1, 0], [1, 1, -2]])
    graph = program.graph()
    assert graph.number_of_nodes() == 3 + program.additions + 2
    assert graph.edges[("x", 2), ("t", 1)]["coefficient"] == -2
    assert "y1 = " in str(program)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: shorten([[0.1, 1]]), "0.1"),
        (lambda: shorten([1, 2]), "shape"),
        (lambda: shorten(np.zeros((0, 3))), "shape"),
        (lambda: shorten([[1, 1]], seconds=0), "seconds=0"),
        (lambda: shorten([[1, 1]], start=shorten([[1, -1]])), "another map"),
        (lambda: shorten(np.ones((300, 300), dtype=int)), "65536"),
        (lambda: shorten([[2**40, 3], [2**40, 5]]), "2^29 or more"),
        (lambda: Program(2, (Step(0, 1, 2, 1),), ()), "step 0"),
        (lambda: Program(2, (), (Term(2, 1),)), "output 0"),
        (lambda: shorten([[1, 1]])([1, 2, 3]), "2 inputs"),
        (lambda: chain(shorten([[1, 1]]), shorten([[1, 1]])), "cannot feed"),
        (lambda: BilinearProgram(*(shorten([[1, 1]] * k) for k in (1, 2, 3))), "rank"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(call, words):
    with pytest.raises(BadInput, match=re.escape(words)):
        call()


def perminov_program(path):
    """The published program of one linear map after another, from its own list of fresh sums."""
    data = json.loads(path.read_text())
    n, m, p = data["n"]
    programs = []
    for letter, inputs in (("u", n * m), ("v", m * p), ("w", data["m"])):
        steps, outputs = [], []

        def build(terms, inputs=inputs, steps=steps):
            if not terms:
                return Term(-1, 0)
            total = Term(terms[0]["index"], terms[0]["value"])
            for term in terms[1:]:
                steps.append(Step(total.value, total.coefficient, term["index"], term["value"]))
                total = Term(inputs + len(steps) - 1, 1)
            return total

        for terms in data[f"{letter}_fresh"]:
            assert len(terms) == 2  # so that fresh sum k is value inputs + k
            build(terms)
        outputs = [build(terms) for terms in data[letter]]
        programs.append(Program(inputs, tuple(steps), tuple(outputs)))
    return BilinearProgram(*programs), data["complexity"]["reduced"]


@pytest.mark.parametrize("name", ["2x2x2_m7_cr15", "2x2x3_m11_cr20", "3x3x3_m23_cr58", "3x3x3_m23_cr60"])
def test_published_programs_are_counted_and_matched(name, published_data):
    (path,) = (published_data / "perminov_reduced").glob(f"{name}_*.json")
    program, published = perminov_program(path)
    assert program.additions == published
    found = sum(shorten(p.matrix()).additions for p in program.parts)
    assert found <= published
