"""Arrays of numbers from a pickled .npy without executing anything: every name in it maps to a stand-in class."""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any, NoReturn

import numpy as np

from basis_search.errors import BadInput
from basis_search.schemes.algebra.rings import Array
from basis_search.schemes.files.identify import MAX_COEFFICIENTS

MAX_OPCODES = 1 << 17
# opcodes that numpy writes for arrays, containers and numbers; only the GLOBALs in _STAND_INS resolve
_OPCODES = {
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
    *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"),
    *("BINUNICODE", "SHORT_BINUNICODE", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "STRING", "BINBYTES"),
    *(
        "SHORT_BINBYTES",
        "EMPTY_LIST",
        "APPEND",
        "APPENDS",
        "LIST",
        "EMPTY_TUPLE",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
    ),
    *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
}


class _Dtype:
    def __init__(self, name: Any = "", *_: Any) -> None:
        self.name = name
        self.order = "|"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1] if isinstance(state, tuple) and len(state) > 1 else "?"


class _Ndarray:
    """Stand-in for numpy.ndarray that stores its pickled state."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _reconstruct(*_: Any) -> _Ndarray:
    return _Ndarray()


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    """Stand-in for _codecs.encode, which older pickles use for bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise BadInput("the pickle calls an encoder in a way that numpy does not write")
    return text.encode("latin1")


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Ndarray,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _STAND_INS.get((module, name))
        if found is None:
            raise BadInput(f"the pickle asks for {module}.{name}; only arrays of numbers are read from pickles")
        return found

    def persistent_load(self, pid: Any) -> NoReturn:
        raise BadInput("the pickle refers to external objects; only arrays of numbers are read from pickles")


def arrays_of_numbers(data: bytes) -> list[Array]:
    """The matrices in a pickled array of objects, as numpy.save writes [U, V, W].

    Raises:
        BadInput: an opcode, a name or a dtype that arrays of numbers do not need, or truncated data.
    """
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if opcode.name not in _OPCODES or count > MAX_OPCODES:
                raise BadInput(f"the pickle uses {opcode.name}; only arrays of numbers are read from pickles")
            # the unpickler allocates memory in proportion to the memo index
            if "PUT" in opcode.name and int(argument or 0) > MAX_OPCODES:
                raise BadInput(f"the pickle numbers an object {argument}; the limit is {MAX_OPCODES}")
        found = _plain(_Unpickler(io.BytesIO(data)).load(), 0)
    except BadInput:
        raise
    except Exception as problem:  # a malformed pickle may fail anywhere inside the unpickler
        raise BadInput(f"the pickle cannot be read ({type(problem).__name__}: {str(problem)[:60]})") from None
    matrices = found if isinstance(found, list) else [found]
    return [np.array(x) for x in matrices]


def _plain(value: Any, depth: int) -> Any:
    """The arrays and nested lists of numbers that stand-ins represent."""
    if depth > 4:
        raise BadInput("the pickle nests arrays more than 4 deep")
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, list | tuple):
        return [_plain(x, depth + 1) for x in value]
    if not isinstance(value, _Ndarray) or not isinstance(value.state, tuple) or len(value.state) != 5:
        raise BadInput(f"the pickle contains {type(value).__name__}; only arrays of numbers are read from pickles")
    _, shape, dtype, fortran, raw = value.state
    proper = isinstance(shape, tuple) and all(isinstance(x, int) and x > 0 for x in shape)
    if not isinstance(dtype, _Dtype) or not proper:
        raise BadInput("the pickle contains an array without a valid shape or dtype")
    count = 1
    for x in shape:
        count *= x
    if count > MAX_COEFFICIENTS:
        raise BadInput(f"the pickle contains an array of shape {shape}; the limit is {MAX_COEFFICIENTS} coefficients")
    if dtype.name in ("O8", "O4", "O") and isinstance(raw, list) and len(raw) == count:
        cells = [_plain(x, depth + 1) for x in raw]
        if all(isinstance(x, int) for x in cells):
            return np.array(cells, dtype=np.int64).reshape(shape)
        return cells
    if dtype.name not in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "f4", "f8") or not isinstance(raw, bytes):
        raise BadInput(f"the pickle contains an array of dtype {str(dtype.name)[:20]!r}; numbers are needed")
    order = ">" if dtype.order == ">" else "<"
    plain = np.dtype(order + dtype.name)
    if len(raw) != count * plain.itemsize:
        raise BadInput(
            f"the pickle contains {len(raw)} bytes for an array of shape {shape}; it is truncated or altered"
        )
    values = np.frombuffer(raw, dtype=plain).reshape(shape, order="F" if fortran else "C")
    if dtype.name.startswith("f"):
        return values if (values != np.rint(values)).any() else values.astype(np.int64)
    return values.astype(np.int64)
