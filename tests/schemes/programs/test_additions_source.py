"""Emitted source code computes its program; alternative bases and rounding errors have their known values."""

import importlib.util
import re
import shutil
import subprocess
from fractions import Fraction

import numpy as np
import pytest
from triton_ahead import compile_ahead

from basis_search.errors import BadInput
from basis_search.schemes import laderman, standard, strassen, winograd
from basis_search.schemes.programs.additions import additions
from basis_search.schemes.programs.alternative_basis import leading_coefficient, sparse_factor, sparsify
from basis_search.schemes.programs.emit import cpp, triton
from basis_search.schemes.programs.shorten import shorten
from basis_search.schemes.programs.stability import growth_factor, stability

pytestmark = pytest.mark.fast

MATRICES = [
    winograd().U.tolist(),
    winograd().W.T.tolist(),
    [[Fraction(1, 2), -1, 0], [0, 0, 0], [0, -1, 0], [3, 1, Fraction(-1, 4)]],
]
COMPILER = shutil.which("c++") or shutil.which("g++")


@pytest.mark.parametrize("matrix", MATRICES)
def test_triton_source_computes_the_matrix(matrix):
    program = shorten(matrix)
    source = triton(program, "encode")
    assert source.count("\n    t") == program.additions
    scope = {}
    exec(source.replace("@triton.jit\n", ""), scope)  # plain Python apart from the decorator
    x = np.arange(3.0, 3.0 + program.inputs)
    expected = np.array([[float(c) for c in row] for row in matrix]) @ x
    np.testing.assert_array_equal(scope["encode"](*x), expected)  # halves and small integers: exact


KERNEL = """import triton
import triton.language as tl


{source}

@triton.jit
def kernel(x, y, BLOCK: tl.constexpr):
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
{body}
"""


def kernel_of(program, folder):
    """A kernel that loads rows of x [inputs, BLOCK], calls the emitted function and stores y [outputs, BLOCK]."""
    inputs, outputs = program.inputs, len(program.outputs)
    lines = [f"x{k} = tl.load(x + {k} * BLOCK + lanes)" for k in range(inputs)]
    lines += [f"{', '.join(f'y{k}' for k in range(outputs))} = encode({', '.join(f'x{k}' for k in range(inputs))})"]
    lines += [f"tl.store(y + {k} * BLOCK + lanes, y{k})" for k in range(outputs)]
    file = folder / "emitted.py"
    file.write_text(KERNEL.format(source=triton(program, "encode"), body="\n".join(f"    {line}" for line in lines)))
    spec = importlib.util.spec_from_file_location("emitted", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.kernel


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_triton_source_compiles_ahead_for_other_gpus(capability, tmp_path):
    pytest.importorskip("triton")
    program = shorten(winograd().U.tolist())
    types = {"x": "*fp32", "y": "*fp32"}
    made = compile_ahead(kernel_of(program, tmp_path), types, {"BLOCK": 128}, capability)
    assert made.spills == 0
    assert len(re.findall(r"\b(?:add|sub)\.(?:rn\.)?f32\b", made.ptx)) == program.additions  # one value a thread


@pytest.mark.interpreted
def test_triton_source_runs(triton_device, tmp_path):
    torch = pytest.importorskip("torch")
    for matrix in MATRICES[:2]:
        program = shorten(matrix)
        x = torch.arange(program.inputs * 128.0, device=triton_device).reshape(program.inputs, 128)
        y = torch.full((len(program.outputs), 128), float("nan"), device=triton_device)
        kernel_of(program, tmp_path)[(1,)](x, y, BLOCK=128)
        assert torch.equal(y.cpu(), torch.tensor(matrix, dtype=torch.float32) @ x.cpu())


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize("matrix", MATRICES)
def test_cpp_source_computes_the_matrix(matrix, tmp_path):
    program = shorten(matrix)
    inputs, outputs = program.inputs, len(program.outputs)
    main = (
        f"#include <cstdio>\n{cpp(program, 'encode', 'made by a test')}\n"
        f"int main() {{ float x[{inputs}], y[{outputs}]; for (int i = 0; i < {inputs}; ++i) x[i] = i + 3;\n"
        f'encode<float>(x, y); for (float v : y) std::printf("%.9g ", v); }}\n'
    )
    (tmp_path / "a.cpp").write_text(main)
    subprocess.run(
        [COMPILER, "-std=c++17", "-Wall", "-Werror", "-o", tmp_path / "a", tmp_path / "a.cpp"], check=True, timeout=60
    )
    printed = subprocess.run([tmp_path / "a"], check=True, capture_output=True, text=True, timeout=10).stdout
    expected = np.array([[float(c) for c in row] for row in matrix]) @ np.arange(3.0, 3.0 + inputs)
    assert [float(v) for v in printed.split()] == expected.tolist()


def test_source_refuses_names_that_are_not_identifiers():
    program = shorten([[1, 1]])
    for emit in (cpp, triton):
        with pytest.raises(BadInput, match="identifier"):
            emit(program, "a b")


@pytest.mark.parametrize("scheme", [strassen(), winograd()])
def test_alternative_basis_takes_12_additions(scheme):
    found = sparsify(scheme)
    assert found.computes(scheme)
    assert found.additions == 12
    assert leading_coefficient(2, 7, found.additions) == 5
    assert leading_coefficient(2, 7, 15) == 6
    assert not found.computes(strassen() if scheme.U.tolist() == winograd().U.tolist() else winograd())


def test_sparse_factor_is_exact_and_no_denser():
    matrix = laderman().U
    sparse, change = sparse_factor(matrix, samples=500)
    assert ((sparse @ change) == matrix).all()
    assert np.count_nonzero(sparse) <= np.count_nonzero(matrix)
    with pytest.raises(BadInput, match="rank 1"):
        sparse_factor([[1, 1], [2, 2]])


def test_growth_factors_of_the_literature():
    assert growth_factor(standard(2, 2, 2)) == 2
    assert growth_factor(strassen()) == 12
    assert growth_factor(winograd()) == 18


def test_measured_rounding():
    scheme = winograd()
    program = additions(scheme)
    found = stability(scheme, program, samples=2000)
    eps = np.finfo(np.float32).eps
    assert found.depth == program.left.depth + program.decode.depth
    assert 0 < found.mean < found.worst
    assert found.mean > found.direct_mean
    # Every sum along the way is rounded by eps/2 of at most `growth`, and there are depth + 1 roundings.
    assert found.worst <= (found.depth + 1) * float(found.growth) * eps
    with pytest.raises(BadInput, match="rank"):
        stability(laderman(), program)
    with pytest.raises(BadInput, match="samples=0"):
        stability(scheme, program, samples=0)
