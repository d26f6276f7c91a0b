"""Archives, pickles and damaged files: valid ones are read, others are refused quickly and with little memory."""

from __future__ import annotations

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
from scheme_samples import STRASSEN_EXP, ct, rational, rectangular, sms

import basis_search.schemes as schemes
from basis_search.errors import BadInput
from basis_search.schemes import BilinearScheme

pytestmark = pytest.mark.fast


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
    with pytest.raises(BadInput, match="contains 3 schemes; name one"):
        schemes.load(path)
    with pytest.raises(BadInput, match="contains no scheme '9,9,9'"):
        schemes.load(path, "9,9,9")
    np.savez(path, one=np.array([schemes.strassen().U.T, schemes.strassen().V.T, ct(schemes.strassen()).T]))
    assert schemes.load(path) == schemes.strassen()
    objects = np.array([schemes.strassen().U.T, schemes.strassen().V.T, ct(schemes.strassen()).T]).astype(object)
    np.savez(path, one=objects)
    assert schemes.load(path) == schemes.strassen()


def test_floats_in_an_archive_are_read_if_they_are_exact(tmp_path: Path) -> None:
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


SLOW = ("deep expression", "program that doubles")


@pytest.mark.parametrize("name", [pytest.param(x, marks=[pytest.mark.slow] * (x in SLOW)) for x in HOSTILE])
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
    with little(), pytest.raises(BadInput, match="the limit for a scheme file"):
        schemes.load(path)


def npz_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\0" * (40 << 20))


def npz_of_header(header: str) -> Callable[[Path], None]:
    return lambda path: write_object_npz(path, b"1234", header)


@pytest.mark.slow
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


@pytest.mark.slow
def test_truncated_and_damaged_files_are_refused_or_verify(tmp_path: Path) -> None:
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


@pytest.mark.slow
def test_damaged_pickles_are_refused_or_verify(tmp_path: Path) -> None:
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
def test_paths_that_are_not_files_are_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(BadInput, match=where.split(".")[0]):
        schemes.load(tmp_path / where)
