"""Native scheme files: JSON with provenance and fingerprint, fast-matmul text, and npz without pickles."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from typing import Any

import numpy as np

from basis_search.errors import BadInput
from basis_search.schemes.algebra.bilinear import BilinearMap
from basis_search.schemes.algebra.brent import Numerators
from basis_search.schemes.algebra.convolution import ConvolutionScheme
from basis_search.schemes.algebra.rings import Array, Gaussian
from basis_search.schemes.algebra.scheme import BilinearScheme
from basis_search.schemes.files.identify import check_size, parse_coefficient

SCHEMA = "basis_search/scheme"
VERSION = 1
HEADER = "# basis_search "


def _kind_and_format(scheme: BilinearMap) -> dict[str, Any]:
    if isinstance(scheme, BilinearScheme):
        return {"kind": "matmul", "format": list(scheme.shape)}
    if isinstance(scheme, ConvolutionScheme):
        return {"kind": scheme.kind, "format": [list(pair) for pair in scheme.sizes]}
    raise BadInput(f"{type(scheme).__name__} has no file format")


def build(kind: Any, shape: Any, matrices: list[Any], ring: Any) -> BilinearMap:
    """The scheme in a native file, verified unless its ring is R.

    Raises:
        BadInput: an unknown kind, a malformed format, or a violated equation.
    """
    whole = isinstance(shape, list) and shape and all(isinstance(x, int) for x in shape)
    pairs = (
        isinstance(shape, list)
        and shape
        and all(isinstance(x, list) and len(x) == 2 and all(isinstance(y, int) for y in x) for x in shape)
    )
    U, V, W = matrices
    scheme: BilinearMap
    if kind == "matmul" and whole and len(shape) == 3:
        scheme = BilinearScheme(shape[0], shape[1], shape[2], U, V, W, ring)
    elif kind in ("polynomial", "correlation") and pairs and len(shape) <= 3:
        scheme = ConvolutionScheme(kind, tuple((a, b) for a, b in shape), U, V, W, ring)
    else:
        raise BadInput(
            f"kind {str(kind)[:20]!r} with format {str(shape)[:40]} is unknown; matmul with three sizes, or polynomial "
            "or correlation with up to three pairs of sizes is read"
        )
    if scheme.ring_of.exact and (violation := scheme.first_violation()) is not None:
        raise BadInput(f"the file is not an exact scheme: {violation}")
    return scheme


# ---- JSON --------------------------------------------------------------------------------------------------------


def _cells(matrix: Array) -> list[list[Any]]:
    if matrix.dtype != object:
        return [[int(x) if x == int(x) else x for x in row] for row in matrix.tolist()]
    return [[_cell(x) for x in row] for row in matrix.tolist()]


def _cell(value: Any) -> Any:
    if isinstance(value, Gaussian):
        value = value.re if not value.im else str(value)
    if isinstance(value, Fraction):
        return value.numerator if value.denominator == 1 else str(value)
    return value


def to_json(scheme: BilinearMap, provenance: dict[str, Any]) -> bytes:
    """JSON with one row of U, V or W per line, so that diffs are readable."""
    head = {"schema": SCHEMA, "version": VERSION, **_kind_and_format(scheme), "rank": scheme.rank, "ring": scheme.ring}
    head |= {"fingerprint": scheme.fingerprint, "provenance": provenance}
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    blocks = []
    for letter, matrix in zip("UVW", (scheme.U, scheme.V, scheme.W), strict=True):
        rows = ",\n".join("    " + json.dumps(row, separators=(",", ":")) for row in _cells(matrix))
        blocks.append(f'  "{letter}": [\n{rows}\n  ]')
    return ("{\n" + "\n".join(lines) + "\n" + ",\n".join(blocks) + "\n}\n").encode()


def is_native(data: Any) -> bool:
    """Whether parsed JSON is in the native format."""
    return isinstance(data, dict) and data.get("schema") == SCHEMA


def from_json(data: dict[str, Any]) -> BilinearMap:
    """The scheme in parsed native JSON.

    Raises:
        BadInput: a newer version, missing keys, a violated equation, or a fingerprint that does not match the matrices.
    """
    version = data.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise BadInput(f"the file has schema version {version!r}, but this release reads up to {VERSION}; update it")
    missing = [key for key in ("kind", "format", "rank", "ring", "U", "V", "W") if key not in data]
    if missing:
        raise BadInput(f"the file lacks {missing[0]!r}")
    matrices = [coefficient_matrix(data[letter], letter) for letter in "UVW"]
    scheme = build(data["kind"], data["format"], matrices, data["ring"])
    if scheme.rank != data["rank"]:
        raise BadInput(f"the file says rank {data['rank']!r}, but its matrices have {scheme.rank} rows")
    if data.get("fingerprint", scheme.fingerprint) != scheme.fingerprint:
        raise BadInput("the matrices do not match the file's fingerprint: the file was edited by hand")
    return scheme


def coefficient_matrix(rows: Any, what: str) -> Array:
    """Rows of JSON coefficients as an array: int64, or objects if a coefficient is not a small integer.

    Raises:
        BadInput: rows of different lengths, a size beyond the limits, or a cell that is not a coefficient.
    """
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) and row for row in rows):
        raise BadInput(f"{what} is not a list of rows of coefficients")
    width = len(rows[0])
    odd = next((k for k, row in enumerate(rows) if len(row) != width), None)
    if odd is not None:
        raise BadInput(f"{what} has {width} entries in its first row but {len(rows[odd])} in row {odd}")
    check_size(len(rows), width, what)
    array = np.empty((len(rows), width), dtype=object)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            array[i, j] = cell if type(cell) is int else parse_coefficient(cell, what)
    if all(type(x) is int for x in array.flat) and all(abs(x) < 1 << 62 for x in array.flat):
        return array.astype(np.int64)
    return array


# ---- text --------------------------------------------------------------------------------------------------------


def to_text(scheme: BilinearMap, provenance: dict[str, Any]) -> bytes:
    """The blocks that fast-matmul reads, after a comment line with kind, format and ring."""
    lines = [HEADER + json.dumps({**_kind_and_format(scheme), "rank": scheme.rank, "ring": scheme.ring})]
    for k, matrix in enumerate((scheme.U, scheme.V, scheme.W)):
        lines += ["#"] if k else []
        lines += [" ".join(str(_cell(x)) for x in column) for column in matrix.T.tolist()]
    return ("\n".join(lines) + "\n").encode()


def header_of(text: str) -> dict[str, Any] | None:
    """The header in the first line of native text, or None for other text."""
    first = text.split("\n", 1)[0]
    if not first.startswith(HEADER + "{"):
        return None
    try:
        header = json.loads(first[len(HEADER) :])
    except ValueError:
        raise BadInput(f"the first line {first[:40]!r} is truncated or altered") from None
    return header if isinstance(header, dict) else None


# ---- npz ---------------------------------------------------------------------------------------------------------


def to_npz(scheme: BilinearMap, provenance: dict[str, Any]) -> bytes:
    """Integer numerators over one denominator per matrix, as arrays of numbers and text without pickles."""
    about = {"schema": SCHEMA, "version": VERSION, **_kind_and_format(scheme), "ring": scheme.ring}
    arrays: dict[str, Any] = {"about": np.array(json.dumps(about))}
    for letter, matrix in zip("UVW", (scheme.U, scheme.V, scheme.W), strict=True):
        if matrix.dtype == np.float64:
            arrays[letter] = matrix
            continue
        part = Numerators.of(matrix)
        if part.re.dtype == object or part.denominator >= 1 << 62 or (part.im is not None and part.im.dtype == object):
            raise BadInput(f"{letter} has coefficients beyond 64 bits, the limit of .npz files; write .json")
        arrays[letter] = part.re
        arrays[f"{letter}_denominator"] = np.array(part.denominator)
        if part.im is not None:
            arrays[f"{letter}_imaginary"] = part.im
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def from_npz(arrays: dict[str, Array]) -> BilinearMap:
    """The scheme in the arrays of a native .npz.

    Raises:
        BadInput: missing or malformed arrays, a newer version, or a violated equation.
    """
    try:
        about = json.loads(str(arrays["about"]))
        kind, shape, ring = about["kind"], about["format"], about["ring"]
        version = about["version"]
        matrices = []
        for letter in "UVW":
            matrix = arrays[letter]
            if matrix.dtype.kind in "iu":
                denominator = int(arrays[f"{letter}_denominator"])
                imaginary = arrays.get(f"{letter}_imaginary")
                if denominator != 1 or imaginary is not None:
                    unit = Gaussian(Fraction(0), Fraction(1, denominator))
                    matrix = matrix.astype(object) * Fraction(1, denominator)
                    matrix = matrix if imaginary is None else matrix + imaginary.astype(object) * unit
            matrices.append(matrix)
    except (KeyError, ValueError, TypeError, ZeroDivisionError) as problem:
        raise BadInput(f"the .npz is not a native scheme: {type(problem).__name__} {str(problem)[:60]}") from None
    if not isinstance(version, int) or version > VERSION:
        raise BadInput(f"the file has schema version {version!r}, but this release reads up to {VERSION}; update it")
    return build(kind, shape, matrices, ring)
