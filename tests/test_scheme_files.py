"""Scheme files: every format read and proved, ours written, hostile ones refused quickly and in little memory."""

from __future__ import annotations

import json
import os
import pickle
import random
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

import basis_search.schemes as schemes
from basis_search.errors import BadInput
from basis_search.schemes import BilinearScheme, files
from basis_search.schemes.actions import sandwich, tensor_product, transpose
from basis_search.schemes.expressions import read_braces, read_products
from basis_search.schemes.plinopt import run_program
from basis_search.schemes.rings import Gaussian

pytestmark = pytest.mark.fast

PUBLISHED = Path(__file__).resolve().parents[2] / "shared" / "data" / "schemes"
EYE = [[1, 0], [0, 1]]


def rational() -> BilinearScheme:
    return sandwich(schemes.strassen(), [[3, 0], [0, 1]], [[1, 1], [0, 2]], EYE)


def gaussian() -> BilinearScheme:
    s = schemes.strassen().to_ring("Q[i]")
    half = Gaussian.of(1j) * Gaussian.of("1/2")
    return BilinearScheme(2, 2, 2, s.U * half, s.V / half, s.W, "Q[i]").simplest_ring()


def rectangular() -> BilinearScheme:
    return tensor_product(schemes.strassen(), schemes.standard(1, 2, 3))  # 2x4x6


def ct(s: BilinearScheme) -> np.ndarray:
    """W for C^T, index k n + i."""
    return s.W.reshape(-1, s.n, s.p).transpose(0, 2, 1).reshape(s.rank, -1)


def rows(matrix: np.ndarray) -> list[list[object]]:
    return [[x if isinstance(x, int) else str(x) for x in row] for row in matrix.tolist()]


# ---- ours ----------------------------------------------------------------------------------------------------------

OURS: dict[str, Callable[[], object]] = {
    "strassen": schemes.strassen,
    "rectangular": rectangular,
    "rational": rational,
    "gaussian": gaussian,
    "modulo two": lambda: schemes.strassen().reduce_mod(2),
    "modulo seven": lambda: rational().reduce_mod(7),
    "real": lambda: schemes.strassen().to_ring("R"),
    "Toom-Cook": lambda: schemes.toom_cook(3),
    "F(2x2,3x3)": lambda: schemes.winograd_convolution(2, 3, dimensions=2),
}


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("suffix", [".json", ".txt", ".npz"])
def test_what_is_saved_is_loaded(tmp_path: Path, name: str, suffix: str) -> None:
    scheme = OURS[name]()
    path = tmp_path / f"scheme{suffix}"
    schemes.save(scheme, path, {"seed": 3})
    found = schemes.load(path)
    assert found == scheme
    assert type(found) is type(scheme)
    assert found.ring == scheme.ring
    assert all((getattr(found, x) == getattr(scheme, x)).all() for x in "UVW")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    if suffix == ".json":
        assert files.provenance(path) == {"seed": 3}


def test_nothing_inexact_is_saved_and_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    schemes.save(schemes.strassen(), path)
    before = path.read_bytes()
    W = np.array(schemes.strassen().W)
    W[0, 0] = 0
    with pytest.raises(BadInput, match=r"not written: .*Brent's equation"):
        schemes.save(BilinearScheme(2, 2, 2, schemes.strassen().U, schemes.strassen().V, W, "Z"), path)
    assert path.read_bytes() == before
    with pytest.raises(BadInput, match=r"\.json, \.txt or \.npz"):
        schemes.save(schemes.strassen(), tmp_path / "a.pkl")
    with pytest.raises(BadInput, match="cannot be written"):
        schemes.save(schemes.strassen(), tmp_path / "nowhere" / "a.json")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(BadInput, match="No space left"):
        schemes.save(schemes.strassen(), tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"version": 1', '"version": 2', "schema version 2"),
        ('"rank": 7', '"rank": 6', "says rank 6"),
        ("[1,0,0,1]", "[1,0,0,0]", "Brent's equation"),
        ('"ring": "ZT"', '"ring": "ZZ"', "unknown ring"),
        ('"ring": "ZT"', '"ring": 3', "ring is 3"),
        ('"ring": "ZT"', '"ring": "Z2"', "not in the ring Z2"),
        ('"kind": "matmul"', '"kind": "magic"', "no scheme of ours"),
        ('"format": [2, 2, 2]', '"format": [2, 2]', "no scheme of ours"),
        ('"format": [2, 2, 2]', '"format": [2, 2, 99999999]', "1 to 64"),
        ("[1,0,0,1]", "[1,0,0]", "3"),
        ("[1,0,0,1]", '[1,0,0,"x"]', "not a number"),
        ("[1,0,0,1]", "[1,0,0,true]", "no coefficient"),
        ('"U":', '"X":', "lacks 'U'"),
    ],
)
def test_edited_files_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "s.json"
    schemes.save(schemes.strassen(), path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(BadInput, match=message):
        schemes.load(path)


def test_a_fingerprint_tells_another_exact_scheme(tmp_path: Path) -> None:
    path, other = tmp_path / "s.json", tmp_path / "w.json"
    schemes.save(schemes.strassen(), path)
    schemes.save(schemes.winograd(), other)
    mixed = json.loads(other.read_text()) | {"fingerprint": json.loads(path.read_text())["fingerprint"]}
    path.write_text(json.dumps(mixed))
    with pytest.raises(BadInput, match="edited by hand"):
        schemes.load(path)


# ---- others' formats, both conventions of W ------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", ["strassen", "rectangular", "rational", "gaussian", "modulo two"])
def test_json_of_others(tmp_path: Path, name: str, transposed: bool) -> None:
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
    with pytest.raises(BadInput, match="refers to '9', but 0 to 4"):
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
    with pytest.raises(BadInput, match=r"line 1 holds 'x': .*border-rank"):
        schemes.load(path)


def sms(matrix: np.ndarray) -> str:
    entries = [f"{i + 1} {j + 1} {x}" for i, row in enumerate(matrix.tolist()) for j, x in enumerate(row) if x]
    return "\n".join([f"{len(matrix)} {len(matrix[0])} R", *entries, "0 0 0", ""])


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
    with pytest.raises(BadInput, match=r"x_R\.sms is no file"):
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
        ("o1:=i0", "no o0"),
        ("i0", "no assignment"),
        ("o0:=i0*i0", "no product"),
        ("o0:=", "no assignment"),
        ("o0:=i0/0", "division"),
    ):
        with pytest.raises(BadInput, match=message):
            run_program(bad, 1)


STRASSEN_EXP = """\
(a11 + a22)*(b11 + b22)*(c11 + c22)
(a21 + a22) b11 (c12 - c22)
a11*(b12 - b22)*(c21 + c22)
(2*(a22))*(b21 - b11)*(c11 + c12)/2
(a11 + a12)*b22*(-c11 + c21)
-(a11 - a21)*(b11 + b12)*c22
(a12 - a22) (b21 + 1 b22) c11)
"""


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
        ("a111*b11*c11", "more than one way"),
        ("a01*b11*c11", "outside 1 to 99"),
        ("a11*b11*c11/0", "number other than 0"),
        ("a11*b11*c11^2", "no expression"),
        ("__import__('os')*b11*c11", "no expression"),
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


# ---- npz, pickles ----------------------------------------------------------------------------------------------------


def alphatensor(path: Path, **entries: BilinearScheme) -> None:
    """[U, V, W] as an array of objects, dimensions down and products across, W for C^T: pickled inside the archive."""
    arrays = {}
    for name, s in entries.items():
        cell = np.empty(3, dtype=object)
        cell[:] = [s.U.T.astype(np.int32), s.V.T.astype(np.int8), np.asfortranarray(ct(s).T)]
        arrays[name.replace("_", ",")] = cell
    np.savez_compressed(path, **arrays)


def test_alphatensor_archives(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    s = rectangular()
    alphatensor(path, **{"2_4_6": s, "2_2_2": schemes.strassen(), "mod": schemes.strassen().reduce_mod(2)})
    assert schemes.load(path, "2,4,6") == s
    assert schemes.load(path, "2,2,2") == schemes.strassen()
    assert schemes.load(path, "mod").ring == "Z2"
    with pytest.raises(BadInput, match="holds 3 schemes; name one"):
        schemes.load(path)
    with pytest.raises(BadInput, match="no scheme '9,9,9'"):
        schemes.load(path, "9,9,9")
    np.savez(path, one=np.array([schemes.strassen().U.T, schemes.strassen().V.T, ct(schemes.strassen()).T]))
    assert schemes.load(path) == schemes.strassen()
    objects = np.array([schemes.strassen().U.T, schemes.strassen().V.T, ct(schemes.strassen()).T]).astype(object)
    np.savez(path, one=objects)
    assert schemes.load(path) == schemes.strassen()


def test_floats_in_an_archive_are_taken_where_they_are_exact(tmp_path: Path) -> None:
    s = schemes.strassen()
    for factor, ring in ((1.0, "ZT"), (0.5, "Z[1/2]")):
        cell = np.empty(3, dtype=object)
        cell[:] = [s.U.T * factor, s.V.T / factor, ct(s).T.astype(np.float32)]
        np.savez(tmp_path / "f.npz", x=cell)
        assert schemes.load(tmp_path / "f.npz").ring == ring
    cell[0] = cell[0] + 0.1
    np.savez(tmp_path / "f.npz", x=cell)
    with pytest.raises(BadInput, match="short binary fraction"):
        schemes.load(tmp_path / "f.npz")
    cell[0] = cell[0] * np.nan
    np.savez(tmp_path / "f.npz", x=cell)
    with pytest.raises(BadInput, match="not finite"):
        schemes.load(tmp_path / "f.npz")


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_pickles_of_each_protocol(tmp_path: Path, protocol: int) -> None:
    s = schemes.strassen()
    cell = np.empty(3, dtype=object)
    cell[:] = [s.U.T, s.V.T, ct(s).T]
    write_object_npz(tmp_path / "s.npz", pickle.dumps(cell, protocol=protocol))
    assert schemes.load(tmp_path / "s.npz") == s


def write_object_npz(
    path: Path, pickled: bytes, header: str = "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }"
) -> None:
    text = header.ljust(117).encode() + b"\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + pickled)


class Malicious:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.flag),)


@pytest.mark.parametrize("protocol", range(6))
def test_no_code_in_a_pickle_runs(tmp_path: Path, protocol: int) -> None:
    flag = tmp_path / "ran"
    cell = np.empty(3, dtype=object)
    cell[:] = [Malicious(flag), 1, 2]
    for data in (pickle.dumps(cell, protocol=protocol), pickle.dumps(Malicious(flag), protocol=protocol)):
        write_object_npz(tmp_path / "x.npz", data)
        with pytest.raises(BadInput, match=r"asks for|uses|arrays of numbers"):
            schemes.load(tmp_path / "x.npz")
        assert not flag.exists()
    (tmp_path / "x.pkl").write_bytes(data)
    with pytest.raises(BadInput, match="unknown"):
        schemes.load(tmp_path / "x.pkl")


@contextmanager
def little() -> Iterator[None]:
    """Fails if what happens inside takes more than 96 MiB at once."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 96 << 20
    finally:
        tracemalloc.stop()


HOSTILE: dict[str, tuple[str, bytes]] = {
    "deep JSON": (".json", b"[" * 4_000_000),
    "deep JSON objects": (".json", b'{"u":' * 500_000),
    "huge JSON number": (".json", b'{"n":[2,2,2],"m":7,"u":[[' + b"9" * 1_000_000 + b"]]}"),
    "huge exponent": (".json", b'{"n":[1,1,1],"m":1,"u":[[1e999]],"v":[[1]],"w":[[1]]}'),
    "huge exponent within range": (".json", b'{"n":[1,1,1],"m":1,"u":[[1e300]],"v":[[1]],"w":[[1]]}'),
    "NaN": (".json", b'{"n":[1,1,1],"m":1,"u":[[NaN]],"v":[[1]],"w":[[1]]}'),
    "huge format": (".json", b'{"n":[1000000000,1000000000,1],"m":1,"u":[[1]],"v":[[1]],"w":[[1]]}'),
    "negative format": (".json", b'{"n":[-1,2,2],"m":1,"u":[[1]],"v":[[1]],"w":[[1]]}'),
    "no scheme": (".json", b'{"a": 1}'),
    "a number": (".json", b"3"),
    "ragged": (".json", b'{"n":[1,1,1],"m":2,"u":[[1],[1,2]],"v":[[1],[1]],"w":[[1],[1]]}'),
    "rows of objects": (".json", b'{"n":[1,1,1],"m":1,"u":[[{}]],"v":[[1]],"w":[[1]]}'),
    "reduced, huge rank": (".json", b'{"n":[2,2,2],"m":999999999999,"u_fresh":[],"u":[],"v":[],"w":[]}'),
    "reduced, huge inputs": (".json", b'{"n":[64,64,64],"m":100000,"u_fresh":[],"u":[[]],"v":[[]],"w":[[]]}'),
    "not UTF-8": (".txt", b"\xff\xfe\x00\x01"),
    "long line": (".txt", b"1 " * 2_000_000),
    "huge fraction": (".txt", b"1/" + b"9" * 3_000_000),
    "division by zero": (".txt", b"1/0\n#\n1\n#\n1\n"),
    "SMS of huge size": ("_L.sms", b"999999999 999999999 R\n0 0 0\n"),
    "SMS of huge width": ("_L.sms", b"100000 4000 R\n0 0 0\n"),
    "SMS outside": ("_L.sms", b"2 2 R\n3 1 1\n0 0 0\n"),
    "SMS without a head": ("_L.sms", b"x y z\n"),
    "program that doubles": (
        "_L.slp",
        b"x0:=i0+i1;" + b"".join(b"x%d:=x%d+x%d;" % (k + 1, k, k) for k in range(99999)),
    ),
    "program of huge width": ("_L.slp", b"o0:=i999999;"),
    "deep expression": (".exp", b"(" * 1_000_000),
    "huge index": (".exp", b"a[99,99]*b[99,99]*c[99,99]"),
    "huge digits": (".exp", b"9" * 1_000_000 + b"*a11*b11*c11"),
    "deep braces": (".m", b"{" * 4_000_000),
    "no archive": (".npz", b"PK\x03\x04 and nothing else"),
    "empty": (".json", b""),
    "blank": (".txt", b" \n"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_quickly_and_in_little_memory(tmp_path: Path, name: str) -> None:
    suffix, data = HOSTILE[name]
    path = tmp_path / f"x{suffix}"
    path.write_bytes(data)
    if suffix.startswith("_L"):  # the other two parts are there and proper
        for letter, matrix in (("R", schemes.strassen().V), ("P", schemes.strassen().W.T)):
            (tmp_path / f"x_{letter}.sms").write_text(sms(matrix))
            (tmp_path / f"x_{letter}.slp").write_text("o0:=i0;")
    with little(), pytest.raises(BadInput) as refusal:
        schemes.load(path)
    assert len(str(refusal.value)) < 400
    assert path.stem.split("_")[0] in str(refusal.value)


def test_files_beyond_the_limit_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    with path.open("wb") as handle:
        handle.truncate(1 << 34)  # sparse: 16 GiB that take no disk
    with little(), pytest.raises(BadInput, match="the largest file that is read"):
        schemes.load(path)


def npz_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\0" * (40 << 20))


def npz_of_header(header: str) -> Callable[[Path], None]:
    return lambda path: write_object_npz(path, b"1234", header)


@pytest.mark.parametrize(
    "write",
    [
        npz_bomb,
        npz_of_header("{'descr': '<i8', 'fortran_order': False, 'shape': (99999, 99999, 99999), }"),
        npz_of_header("{'descr': '<i8', 'fortran_order': False, 'shape': (-3,), }"),
        npz_of_header("{'descr': '<f8', 'fortran_order': False, 'shape': (3, 1, 1), }"),
        npz_of_header("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (3,), }"),
        npz_of_header("__import__('os').system('true')"),
        lambda path: write_object_npz(path, b"\x80\x04r\xff\xff\xff\x7f."),  # LONG_BINPUT 2^31 - 1
        lambda path: write_object_npz(path, b"\x80\x04\x8e" + (1 << 62).to_bytes(8, "little") + b"x."),
        lambda path: write_object_npz(path, b"\x80\x04X\xff\xff\xff\x7fx."),
        lambda path: write_object_npz(path, b"(" * 500_000),
        lambda path: write_object_npz(path, b"]" + b"]a" * 100_000 + b"."),
        lambda path: write_object_npz(path, b""),
        lambda path: write_object_npz(path, b"I1\n."),
        lambda path: write_object_npz(path, b"\x80\x04c__builtin__\neval\n."),
        lambda path: write_object_npz(path, b"cnumpy\nload\n(Vx\ntR."),
        lambda path: write_object_npz(path, b"cnumpy\nndarray\n(I1000000000\ntR."),
        lambda path: write_object_npz(path, b"Pid\n."),
    ],
)
def test_hostile_archives_are_refused(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "x.npz"
    write(path)
    with little(), pytest.raises(BadInput):
        schemes.load(path)


def test_truncated_and_damaged_files_never_do_worse_than_be_refused(tmp_path: Path) -> None:
    rng = random.Random(0)
    s = rational()
    written: list[tuple[str, bytes]] = []
    for suffix in (".json", ".txt", ".npz"):
        schemes.save(s, tmp_path / f"s{suffix}")
        written.append((suffix, (tmp_path / f"s{suffix}").read_bytes()))
    alphatensor(tmp_path / "a.npz", one=schemes.strassen())
    written += [(".npz", (tmp_path / "a.npz").read_bytes()), (".exp", STRASSEN_EXP.encode())]
    terms = zip(
        *[
            [[row[:2], row[2:]] for row in m.tolist()]
            for m in (schemes.strassen().U, schemes.strassen().V, ct(schemes.strassen()))
        ],
        strict=True,
    )
    written.append((".m", repr([list(term) for term in terms]).replace("[", "{").replace("]", "}").encode()))
    refused = accepted = 0
    for suffix, data in written:
        path = tmp_path / f"damaged{suffix}"
        for trial in range(120):
            damaged = bytearray(data)
            if trial % 3 == 0:
                damaged = damaged[: rng.randrange(len(damaged))]
            else:
                for _ in range(rng.randint(1, 4)):
                    damaged[rng.randrange(len(damaged))] = (
                        rng.randrange(256) if trial % 3 == 1 else rng.choice(b"0123456789-/[]{}(),. ")
                    )
            path.write_bytes(damaged)
            try:
                found = schemes.load(path)
            except BadInput:
                refused += 1
            else:
                assert found.verify()  # harmless damage: a comment, an equivalent spelling
                accepted += 1
    assert refused > 500
    assert accepted < 150


def test_damaged_pickles_are_refused_or_right(tmp_path: Path) -> None:
    rng = random.Random(1)
    cell = np.empty(3, dtype=object)
    s = schemes.strassen()
    cell[:] = [s.U.T, s.V.T, ct(s).T]
    for protocol in (2, 4):
        data = pickle.dumps(cell, protocol=protocol)
        for _ in range(100):
            damaged = bytearray(data)
            for _ in range(rng.randint(1, 3)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            write_object_npz(tmp_path / "x.npz", bytes(damaged))
            with suppress(BadInput):
                assert schemes.load(tmp_path / "x.npz").verify()


@pytest.mark.parametrize("where", ["missing.json", "folder.json", "x.unknown"])
def test_paths_that_are_no_files(tmp_path: Path, where: str) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(BadInput, match=where.split(".")[0]):
        schemes.load(tmp_path / where)


# ---- what others published, where it lies beside the checkout --------------------------------------------------------


@pytest.mark.skipif(not (PUBLISHED / "MANIFEST.json").is_file(), reason="no published schemes beside the checkout")
def test_published_files_load_and_verify_or_are_refused_for_the_stated_reason() -> None:
    entries = json.loads((PUBLISHED / "MANIFEST.json").read_text())
    assert len(entries) > 50
    read = set()
    for entry in entries:
        path = PUBLISHED / entry["path"].split(" + ")[0].replace("[LRP]", "L")
        if "border rank" in entry.get("ring", ""):
            with pytest.raises(BadInput, match="border-rank"):
                schemes.load(path)
            read.add(path)
            continue
        scheme = schemes.load(path)
        assert scheme.verify()
        if "n_m_p" in entry:
            assert list(scheme.shape) == entry["n_m_p"]
            assert scheme.rank == entry["rank"]
            assert entry.get("nnz", scheme.nnz) == scheme.nnz
            small = {"ZT": {"ZT"}, "Z": {"Z"}, "Q": {"Z[1/2]", "Q"}, "C (Z[i]/2)": {"Z[i,1/2]"}}
            assert scheme.ring in small[entry["ring"]]
            assert entry.get("additions_naive", scheme.naive_additions) == scheme.naive_additions
        read.add(path)
    for path in sorted(PUBLISHED.rglob("*.*")):
        if path.suffix in (".sms", ".slp") and path not in read:
            assert schemes.load(path).verify()
        elif path.suffix in (".json", ".txt") and path.name != "MANIFEST.json":
            assert path in read


# ---- the catalogue ---------------------------------------------------------------------------------------------------


def test_every_scheme_of_the_catalogue_verifies_and_is_what_its_name_says() -> None:
    found = schemes.catalogue()
    for name, scheme in found.items():
        assert scheme.verify()
        assert name.startswith(f"{scheme.format}_r{scheme.rank}_")
        assert found.provenance(name)


def test_a_catalogue_of_ones_own(tmp_path: Path) -> None:
    kept = schemes.catalogue(tmp_path)
    assert len(kept) == 0
    assert kept.best(2, 2, 2) is None
    assert kept.add(schemes.strassen(), {"by": "hand"}) == "2x2x2_r7_ZT"
    assert kept.add(schemes.winograd().reduce_mod(2), {"by": "hand"}) == "2x2x2_r7_Z2"
    assert kept.add(gaussian(), {}, suffix="b") == "2x2x2_r7_Zihalf_b"
    assert kept.add(rectangular(), {}) == "2x4x6_r42_ZT"
    assert list(kept) == ["2x2x2_r7_Z2", "2x2x2_r7_ZT", "2x2x2_r7_Zihalf_b", "2x4x6_r42_ZT"]
    fresh = schemes.catalogue(tmp_path)
    assert fresh["2x2x2_r7_ZT"] == schemes.strassen()
    assert fresh.provenance("2x2x2_r7_ZT") == {"by": "hand"}
    best = fresh.best(6, 2, 4, "Q")
    assert best is not None
    assert (best.shape, best.rank, best.ring) == ((6, 2, 4), 42, "Q")
    assert best.verify()
    reduced = fresh.best(4, 2, 6, "Z2")
    assert reduced is not None
    assert reduced.ring == "Z2"
    assert fresh.best(2, 2, 2, "Z7") is not None
    assert fresh.best(4, 2, 6, "Z[i]") is not None
    assert fresh.best(3, 3, 3) is None
    with pytest.raises(KeyError):
        fresh["3x3x3_r23_ZT"]
    with pytest.raises(BadInput, match="exact schemes alone"):
        fresh.add(schemes.strassen().to_ring("R"), {})
    (tmp_path / "2x2x2_r6_ZT.json").write_bytes((tmp_path / "2x2x2_r7_ZT.json").read_bytes())
    with pytest.raises(BadInput, match="not what its name says"):
        schemes.catalogue(tmp_path)["2x2x2_r6_ZT"]


def test_the_catalogue_reads_nothing_until_asked(tmp_path: Path) -> None:
    (tmp_path / "2x2x2_r7_ZT.json").write_text("damaged")
    kept = schemes.catalogue(tmp_path)
    assert list(kept) == ["2x2x2_r7_ZT"]
    with pytest.raises(BadInput, match="not JSON"):
        kept["2x2x2_r7_ZT"]
