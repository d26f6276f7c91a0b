"""Scheme files of other programs: every dialect and both conventions of W are read and verified."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scheme_samples import OURS, STRASSEN_EXP, ct, gaussian, rational, rows, sms

import basis_search.schemes as schemes
from basis_search.errors import BadInput
from basis_search.schemes.algebra.transforms import transpose
from basis_search.schemes.files.plinopt import run_program
from basis_search.schemes.programs.expressions import read_braces, read_products

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", ["strassen", "rectangular", "rational", "gaussian", "modulo two"])
def test_json_of_other_programs(tmp_path: Path, name: str, transposed: bool) -> None:
    s = OURS[name]()
    W = ct(s) if transposed else s.W
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"n": list(s.shape), "m": s.rank, "u": rows(s.U), "v": rows(s.V), "w": rows(W)}))
    found = schemes.load(path)
    assert found.verify()
    assert found.shape == s.shape
    assert found == s
    path.write_text(json.dumps([rows(s.U.T), rows(s.V.T), rows(W.T)]))  # products across, no format
    assert schemes.load(path).rank == s.rank


def test_complex_pairs_and_halves_in_json(tmp_path: Path) -> None:
    s = gaussian()
    pairs = [[[[float(x.re), float(x.im)] for x in row] for row in m.tolist()] for m in (s.U, s.V, s.W)]
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"n": [2, 2, 2], "m": 7, "u": pairs[0], "v": pairs[1], "w": pairs[2]}))
    assert schemes.load(path) == s
    assert schemes.load(path).ring == "Z[i,1/2]"


def test_reduced_programs(tmp_path: Path) -> None:
    """2x2x1 by the definition, with the sums of the outputs shared in a roundabout way."""
    one = [[{"index": k, "value": 1}] for k in range(4)]
    data = {
        "n": [2, 2, 1], "m": 4,
        "u_fresh": [[{"index": 0, "value": 1}, {"index": 3, "value": 1}]],
        "u": [one[0], one[1], one[2], [{"index": 4, "value": 1}, {"index": 0, "value": -1}]],
        "v_fresh": [], "v": [one[0], one[1], one[0], one[1]],
        "w_fresh": [[{"index": 0, "value": 1}, {"index": 1, "value": 1}]],
        "w": [[{"index": 4, "value": 1}], [{"index": 2, "value": 1}, {"index": 3, "value": 1}]],
    }  # fmt: skip
    path = tmp_path / "s.json"
    path.write_text(json.dumps(data))
    assert schemes.load(path) == schemes.standard(2, 2, 1)
    data["u"][0] = [{"index": 9, "value": 1}]
    path.write_text(json.dumps(data))
    with pytest.raises(BadInput, match="refers to '9', but only 0 to 4"):
        schemes.load(path)


@pytest.mark.parametrize("transposed", [False, True])
def test_coefficient_blocks(tmp_path: Path, transposed: bool) -> None:
    s = transpose(rational())
    W = ct(s) if transposed else s.W
    blocks = ["\n".join("  ".join(str(x) for x in row) for row in m.T.tolist()) for m in (s.U, s.V, W)]
    path = tmp_path / "s.txt"
    path.write_text("# a scheme\n" + "\n#\n".join(blocks) + "\n")
    assert schemes.load(path) == s
    path.write_text("\n# V\n".join(blocks[:2]))
    with pytest.raises(BadInput, match="2 blocks"):
        schemes.load(path)


def test_border_rank_schemes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bini.txt"
    path.write_text("1 x\n0 1\n#\n1 0\n0 1\n#\n1 1/x\n0 1\n")
    with pytest.raises(BadInput, match=r"line 1 contains 'x', which is not a number; .*border-rank"):
        schemes.load(path)


def test_plinopt_matrices_and_alternative_bases(tmp_path: Path) -> None:
    s = rational()
    for letter, matrix in (("L", s.U), ("R", s.V), ("P", s.W.T)):
        (tmp_path / f"x_{letter}.sms").write_text("# comment\n" + sms(matrix))
    for letter in "LRP":
        assert schemes.load(tmp_path / f"x_{letter}.sms") == s
    eye = np.eye(4, dtype=int)
    for letter, alternative, change in (("L", s.U, eye), ("R", s.V[:, ::-1], eye[::-1]), ("P", s.W.T[::-1], eye[::-1])):
        (tmp_path / f"y-ALT_{letter}.sms").write_text(sms(alternative))
        (tmp_path / f"y-CoB_{letter}.sms").write_text(sms(change))
    assert schemes.load(tmp_path / "y-ALT_L.sms") == s
    assert schemes.load(tmp_path / "y-CoB_P.sms") == s
    (tmp_path / "x_R.sms").unlink()
    with pytest.raises(BadInput, match=r"x_R\.sms is not a file"):
        schemes.load(tmp_path / "x_L.sms")
    (tmp_path / "z.sms").write_text("1 1 R\n")
    with pytest.raises(BadInput, match="end in _L, _R and _P"):
        schemes.load(tmp_path / "z.sms")


def test_straight_line_programs(tmp_path: Path) -> None:
    (tmp_path / "w_L.slp").write_text("o0:=i2-i0;\no1:=i3+o0; o4:=o1-i1;\no5:=i2+i3;\no2:=i0;\no3:=i3;\no6:=i1;\n")
    (tmp_path / "w_R.slp").write_text("o5:=i1-i0;o1:=o5-i3;o0:=i1-i3;o3:=i2+o1;o2:=i0;o4:=i3;o6:=i2;")
    (tmp_path / "w_P.slp").write_text("o0:=i6+i2;t5:=i2-i1;t4:=i0+t5;o1:=i5-i4+t5;o3:=i5+t4;o2:=i3+t4;")
    found = schemes.load(tmp_path / "w_P.slp")
    assert found.verify()
    assert (found.shape, found.rank, found.nnz) == ((2, 2, 2), 7, 42)
    assert run_program("x1:=(i0-3*i1)/2; o0:=-x1+i1", 2) == [{0: -0.5, 1: 2.5}]
    for bad, message in (
        ("o0:=i1", "uses i1"),
        ("o1:=i0", "not assign o0"),
        ("i0", "not an assignment"),
        ("o0:=i0*i0", "not a product"),
        ("o0:=", "not an assignment"),
        ("o0:=i0/0", "division"),
    ):
        with pytest.raises(BadInput, match=message):
            run_program(bad, 1)


def test_expressions_in_their_dialects(tmp_path: Path) -> None:
    path = tmp_path / "s.exp"
    path.write_text(STRASSEN_EXP)
    assert schemes.load(path) == schemes.strassen()
    for old, new in (("a11", "a[1,1]"), ("a22", "a_2_2"), ("b12", "B12"), ("c12 ", "c1_2 ")):
        path.write_text(STRASSEN_EXP.replace(old, new))
        assert schemes.load(path) == schemes.strassen()
    straight = STRASSEN_EXP.replace("c12", "c_1_2").replace("c21", "c12").replace("c_1_2", "c21")
    path.write_text(straight)  # C instead of C^T
    assert schemes.load(path) == schemes.strassen()
    path.write_text(STRASSEN_EXP.replace("(a12 - a22)", "(a12 - 2 a22)"))
    with pytest.raises(BadInput, match=r"s\.exp is not an exact scheme: .*Brent's equation"):
        schemes.load(path)


def test_a_stray_minus_between_factors_and_brackets_around_all() -> None:
    for line in ("(-a13 (-b13 + b33) (+c11 - 2 c14))", "(a11 + a12) -b13 (-c13 + c33))"):
        ((a, b, c),) = read_products(line)
        assert len(a) + len(b) + len(c) in (4, 5, 6)
    ((a, b, c),) = read_products("(-a13 (-b13 + b33) (+c11 - 2 c14))")
    product = {(x, y, z): a[x] * b[y] * c[z] for x in a for y in b for z in c}
    assert product[(0, 2), (0, 2), (0, 0)] == 1
    assert product[(0, 2), (2, 2), (0, 3)] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no terms"),
        ("a11*b11", "forms in a, b,"),
        ("a11*b11*c11*d11", "forms in a, b, c, d"),
        ("a11*a11*b11*c11", "product of two forms in a"),
        ("(a11+b11)*b11*c11", "not linear forms in one letter"),
        ("a111*b11*c11", "are ambiguous"),
        ("a01*b11*c11", "outside 1 to 99"),
        ("a11*b11*c11/0", "not a number other than 0"),
        ("a11*b11*c11^2", "not allowed in an expression"),
        ("__import__('os')*b11*c11", "not allowed in an expression"),
        ("(" * 100 + "a11" + ")" * 100 + "*b11*c11", "32 deep"),
    ],
)
def test_malformed_expressions(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_products(text)


def test_braces(tmp_path: Path) -> None:
    s = rational()

    def braces(row: list[object], width: int) -> str:
        return (
            "{"
            + ", ".join("{" + ", ".join(str(x) for x in row[k : k + width]) + "}" for k in range(0, len(row), width))
            + "}"
        )

    terms = [
        ", ".join(braces(row, 2) for row in term)
        for term in zip(s.U.tolist(), s.V.tolist(), ct(s).tolist(), strict=True)
    ]
    path = tmp_path / "s.m"
    path.write_text("(* found *) {{" + "},\n {".join(terms) + "}}\n")
    assert schemes.load(path) == s
    for text, message in (
        ("{{{{1}}, {{1}}}}", "three matrices"),
        ("{{{{1}}, {{1}}, {{1}}}", "do not match"),
        ("{" * 10_000, "4 deep"),
        ("{1}", "fourth level"),
        ("}", "closing"),
    ):
        with pytest.raises(BadInput, match=message):
            read_braces(text)
