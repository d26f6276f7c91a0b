"""Readers of published file formats: each returns three matrices, which identify() turns into a scheme."""

from __future__ import annotations

import io
import json
import lzma
import re
import struct
import zipfile
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from basis_search.errors import BadInput
from basis_search.schemes.algebra.bilinear import BilinearMap
from basis_search.schemes.algebra.rings import Array, exact_fraction
from basis_search.schemes.files import native
from basis_search.schemes.files.identify import (
    MAX_COEFFICIENTS,
    Matrices,
    check_size,
    parse_coefficient,
)
from basis_search.schemes.files.unpickle import arrays_of_numbers
from basis_search.schemes.programs import expressions

MAX_BYTES = 1 << 23
# exceptions of zipfile and the decompressors for damaged archives
_DAMAGED = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError),
    *(NotImplementedError, RuntimeError, ValueError, KeyError, IndexError, OverflowError),
)


def read_limited(path: Path) -> bytes:
    """The contents of a file.

    Raises:
        BadInput: it does not exist, is not a regular file, is empty, or is larger than 8 MiB.
    """
    try:
        if not path.is_file():
            raise BadInput(f"{path} is not a file")
        with path.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
    except OSError as problem:
        raise BadInput(f"{path} cannot be read: {problem.strerror or problem}") from None
    if len(data) > MAX_BYTES:
        raise BadInput(f"{path.name} has more than {MAX_BYTES} bytes, the limit for a scheme file")
    if not data.strip():
        raise BadInput(f"{path.name} is empty")
    return data


def parse_json_file(path: Path) -> Any:
    """The file as parsed JSON.

    Raises:
        BadInput: it is not JSON, is nested too deeply, or contains numbers of thousands of digits.
    """
    data = read_limited(path)
    try:
        return json.loads(data)
    except RecursionError:
        raise BadInput(f"{path.name}: the file is nested too deeply for a scheme") from None
    except ValueError as problem:
        raise BadInput(f"{path.name} is not JSON: {str(problem)[:80]}") from None


# ---- JSON --------------------------------------------------------------------------------------------------------


def read_json(path: Path, name: str | None) -> Matrices | BilinearMap:
    """Reads native JSON, {n, m, u, v, w}, a reduced program, or a list of three matrices."""
    data = parse_json_file(path)
    if native.is_native(data):
        return native.from_json(data)
    if isinstance(data, list) and len(data) == 3:
        U, V, W = (native.coefficient_matrix(x, letter) for x, letter in zip(data, "UVW", strict=True))
        return Matrices(U, V, W)
    if not isinstance(data, dict):
        raise BadInput(f"{path.name} contains no scheme: an object with u, v, w or a list of three matrices is needed")
    lower = {key.lower(): value for key, value in data.items()}
    missing = [key for key in ("u", "v", "w") if key not in lower]
    if missing:
        raise BadInput(f"{path.name} contains no scheme: {missing[0]!r} is missing")
    shape, rank = _shape(lower, path), lower.get("m")
    ring = "Z2" if lower.get("z2") is True else None
    if any(f"{letter}_fresh" in lower for letter in "uvw"):
        return _reduced_program(lower, shape, rank, ring)
    U, V, W = (native.coefficient_matrix(lower[letter], letter) for letter in "uvw")
    if isinstance(rank, int) and shape is not None and rank not in (len(U), U.shape[1]):
        raise BadInput(f"{path.name} says {rank} products, but u has {len(U)} rows of {U.shape[1]}")
    return Matrices(U, V, W, shape, ring)


def _shape(data: dict[str, Any], path: Path) -> tuple[int, int, int] | None:
    sizes = data.get("n", data.get("format"))
    if not isinstance(sizes, list):
        return None
    if len(sizes) != 3 or not all(isinstance(x, int) and 1 <= x <= 64 for x in sizes):
        raise BadInput(f"{path.name}: format {str(sizes)[:40]} is not three sizes from 1 to 64")
    return sizes[0], sizes[1], sizes[2]


def _reduced_program(data: dict[str, Any], shape: tuple[int, int, int] | None, rank: Any, ring: str | None) -> Matrices:
    """The matrices of a reduced program: rows are sums of {index, value}, where an index beyond the inputs refers to
    the sums in *_fresh, in order."""
    if shape is None or not isinstance(rank, int):
        raise BadInput("a reduced program needs its format n and its number of products m")
    n, m, p = shape
    check_size(rank, max(n * m, m * p, n * p), "the reduced program")
    inputs = {"u": n * m, "v": m * p, "w": rank}
    result = {}
    for letter, count in inputs.items():
        known = list(np.eye(count, dtype=object))
        fresh, rows = data.get(f"{letter}_fresh", []), data[letter]
        lists = isinstance(fresh, list) and isinstance(rows, list) and bool(rows)
        if not lists or (len(fresh) + len(rows)) * count > MAX_COEFFICIENTS:
            raise BadInput(
                f"{letter} and {letter}_fresh are not lists of sums, or have more than {MAX_COEFFICIENTS} coefficients"
            )
        for sum_ in fresh:
            known.append(_sum(sum_, known, letter, ring))
        result[letter] = np.array([_sum(sum_, known, letter, ring) for sum_ in rows], dtype=object)
    return Matrices(result["u"], result["v"], result["w"].T.copy(), shape, ring, rows=True)


def _sum(terms: Any, known: list[Array], letter: str, ring: str | None) -> Array:
    total = np.zeros(len(known[0]), dtype=object)
    if not isinstance(terms, list):
        raise BadInput(f"a sum of {letter} is not a list of index and value")
    for term in terms:
        index = term.get("index") if isinstance(term, dict) else None
        if not isinstance(index, int) or not 0 <= index < len(known):
            raise BadInput(
                f"a sum of {letter} refers to {str(index)[:20]!r}, but only 0 to {len(known) - 1} are defined there"
            )
        total = total + known[index] * parse_coefficient(term.get("value"), letter)
    return total % 2 if ring == "Z2" else total


# ---- text --------------------------------------------------------------------------------------


def read_blocks(path: Path, name: str | None) -> Matrices | BilinearMap:
    """Reads three blocks of coefficients separated by "#": dimensions down, products across."""
    text = read_limited(path).decode()
    if text.lstrip()[:1] in ("{", "["):
        return read_json(path, name)
    header = native.header_of(text)
    read = _real if header is not None and header.get("ring") == "R" else _coefficient
    blocks: list[list[list[Any]]] = [[]]
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#"):
            blocks += [[]] if blocks[-1] else []
        elif line.strip():
            words = line.replace(",", " ").split()
            check_size(len(words), 1, f"line {number}")
            blocks[-1].append([read(word, number) for word in words])
    blocks = [block for block in blocks if block]
    if len(blocks) != 3:
        raise BadInput(f"{path.name} has {len(blocks)} blocks of coefficients, but three (U, V, W) are needed")
    U, V, W = (native.coefficient_matrix(block, letter) for block, letter in zip(blocks, "UVW", strict=True))
    if header is not None:
        return native.build(header.get("kind"), header.get("format"), [U.T, V.T, W.T], header.get("ring"))
    return Matrices(U, V, W, rows=False)


def _real(word: str, line: int) -> float:
    try:
        return float(word)
    except ValueError:
        raise BadInput(f"line {line} contains {word[:20]!r}, which is not a real number") from None


def _coefficient(word: str, line: int) -> Any:
    try:
        return int(word) if len(word) < 19 else parse_coefficient(word, f"line {line}")
    except ValueError:
        pass
    if re.search(r"[a-hj-zA-Z]", word):
        raise BadInput(
            f"line {line} contains {word[:20]!r}, which is not a number; symbolic coefficients belong to border-rank "
            "(approximate) schemes, which are exact only in the limit and are not read"
        )
    return parse_coefficient(word, f"line {line}")


# ---- expressions ---------------------------------------------------------------------------------------------------


def read_exp(path: Path, name: str | None) -> Matrices:
    """Reads lines (a11 + a22)*(b11)*(c12), whose sum is the tensor."""
    terms = expressions.read_products(read_limited(path).decode())
    rows, columns = ([1 + max(place[k] for term in terms for place in term[f]) for f in range(3)] for k in (0, 1))
    n, m, p = rows[0], max(columns[0], rows[1]), columns[1]
    check_size(len(terms), max(n * m, m * p, n * p), path.name)
    # c is written p x n or n x p; where its indices fit both, identify() tries the other
    height, width = (n, p) if rows[2] <= n and columns[2] <= p else (p, n)
    matrices = []
    for f, (high, wide) in enumerate(((n, m), (m, p), (height, width))):
        matrix = [[Fraction(0)] * (high * wide) for _ in terms]
        for row, term in zip(matrix, terms, strict=True):
            for (i, j), c in term[f].items():
                if i >= high or j >= wide:
                    odd = f"{'abc'[f]}[{i + 1},{j + 1}]"
                    raise BadInput(f"{path.name}: {odd} does not fit the format {n}x{m}x{p} of the others")
                row[i * wide + j] = c
        matrices.append(matrix)
    U, V, W = matrices
    return Matrices(U, V, W, shape=(n, m, p), rows=True)


def read_braces_file(path: Path, name: str | None) -> Matrices:
    """Reads {{A, B, C}, ...} with matrices as lists of rows."""
    terms = expressions.read_braces(read_limited(path).decode())
    shapes = {tuple((len(x), len(x[0])) for x in term) for term in terms}
    if len(shapes) != 1 or any(len(row) != len(x[0]) for term in terms for x in term for row in x):
        raise BadInput(f"{path.name}: the terms have different formats")
    ((n, m), (_, p), _), *_ = shapes
    U, V, W = ([[exact_fraction(c) for row in term[k] for c in row] for term in terms] for k in range(3))
    return Matrices(U, V, W, shape=(n, m, p), rows=True)


# ---- npz -----------------------------------------------------------------------------------------------------------


def read_npz(path: Path, name: str | None) -> Matrices | BilinearMap:
    """Reads a native archive, or from AlphaTensor's the scheme `name`: [U, V, W], dimensions down, products across."""
    try:
        with zipfile.ZipFile(io.BytesIO(read_limited(path))) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if "about" in members:
                return native.from_npz({key: _plain_array(archive, info) for key, info in members.items()})
            if name is None and len(members) > 1:
                some = list(members)[:8]
                raise BadInput(
                    f"{path.name} contains {len(members)} schemes; name one, as in load(path, name={some[0]!r}); "
                    f"there are {', '.join(some)}"
                )
            chosen = name if name is not None else next(iter(members), "")
            if chosen not in members:
                raise BadInput(f"{path.name} contains no scheme {chosen!r}; there are {', '.join(list(members)[:20])}")
            arrays = _factors(archive, members[chosen])
    except BadInput:
        raise
    except _DAMAGED as problem:
        raise BadInput(f"{path.name} is not an .npz or is truncated: {str(problem)[:60]}") from None
    if len(arrays) != 3 or any(x.ndim != 2 for x in arrays):
        raise BadInput(f"{path.name}: {chosen!r} contains {len(arrays)} arrays, but three matrices are needed")
    U, V, W = arrays
    return Matrices(U, V, W)


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[bytes, tuple[int, ...], bool, np.dtype[Any]]:
    """The data after a .npy header, and the header's shape, Fortran order and dtype."""
    limit = 8 * MAX_COEFFICIENTS
    if info.file_size > limit:
        raise BadInput(f"{info.filename[:40]!r} unpacks to {info.file_size} bytes; the limit is {limit}")
    stream = io.BytesIO(archive.read(info))
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except ValueError as problem:
        raise BadInput(f"{info.filename[:40]!r} is not a .npy: {str(problem)[:60]}") from None
    return stream.read(), shape, fortran, dtype


def _plain_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    data, shape, fortran, dtype = _member(archive, info)
    count = 1
    for side in shape:
        count *= side
    if dtype.kind not in "iufU" or len(data) != count * dtype.itemsize:
        raise BadInput(
            f"{info.filename[:40]!r} declares {shape} of {dtype} for {len(data)} bytes; it is truncated or altered"
        )
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if fortran else "C")


def _factors(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> list[Array]:
    data, _, _, dtype = _member(archive, info)
    if dtype.kind == "O":
        arrays = arrays_of_numbers(data)
        return list(arrays[0]) if len(arrays) == 1 and arrays[0].ndim == 3 else arrays
    if dtype.kind not in "iu":
        raise BadInput(f"{info.filename[:40]!r} contains {dtype}; integers are needed")
    return list(_plain_array(archive, info))
