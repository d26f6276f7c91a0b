"""Recursive multiplication by a scheme: encode blocks, multiply, decode, C = W^T ((U A) * (V B))."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from basis_search.errors import BadInput

if TYPE_CHECKING:
    from basis_search.schemes.algebra.bilinear import BilinearMap
    from basis_search.schemes.algebra.scheme import BilinearScheme

MAX_LEVELS = 12


def _common_dtype(s: BilinearMap, a: Any, b: Any) -> tuple[Any, Any, Any, Any, Any]:
    """a, b, U, V, W with one dtype, array library (numpy or torch) and device.

    Integers stay integers over an integer ring; with fractions they become float64. Python objects stay exact.

    Raises:
        BadInput: floating-point operands for a scheme over GF(p), or operands of different libraries.
    """
    ring = s.ring_of
    wider: dict[str, Any]
    whole: Any
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        kind = np.result_type(a, b).kind
        if kind == "O" and ring.exact:
            return a, b, s.U, s.V, s.W
        dtype: Any = np.result_type(a, b)
        wider, whole = {"f": np.float64, "c": np.complex64}, np.int64
    else:
        import torch

        if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
            raise BadInput(
                f"operands of types {type(a).__name__} and {type(b).__name__}: give numpy arrays or torch tensors"
            )
        dtype = torch.promote_types(a.dtype, b.dtype)
        kind = "f" if dtype.is_floating_point else "c" if dtype.is_complex else "i"
        wider, whole = {"f": torch.float64, "c": torch.complex64}, torch.int64
    if ring.characteristic and kind in "fc":
        raise BadInput(f"a scheme over {s.ring} multiplies integers modulo {ring.characteristic}, not {dtype}")
    if kind not in "fc":
        dtype = whole if s.U.dtype.kind == "i" else wider["f"]
    if ring.complex:
        dtype = _promoted(dtype, wider["c"])
    matrices = (s.U, s.V, s.W) if s.U.dtype.kind == "i" else s.floats()
    if isinstance(a, np.ndarray):
        return a.astype(dtype), b.astype(dtype), *(x.astype(dtype) for x in matrices)
    return a.to(dtype), b.to(dtype), *(torch.tensor(x, dtype=dtype, device=a.device) for x in matrices)


def _promoted(x: Any, y: Any) -> Any:
    if isinstance(x, np.dtype | type):
        return np.result_type(x, y)
    import torch

    return torch.promote_types(x, y)


def multiply(
    s: BilinearScheme, a: Any, b: Any, levels: int = 1, product: Callable[[Any, Any], Any] | None = None
) -> Any:
    """C = A B by `levels` recursion steps of the scheme; sizes are padded with zeros.

    Args:
        a: [..., M, K], b: [..., K, N], numpy arrays or torch tensors with the same leading dimensions.
        levels: recursion depth, 0 to 12; `product` multiplies the innermost blocks.
        product: multiplies stacks [..., M', K'] by [..., K', N']; `@` by default.

    Raises:
        BadInput: incompatible shapes, levels out of range, or floats for a scheme over GF(p).
    """
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2]:
        raise BadInput(f"shapes {list(a.shape)} and {list(b.shape)} do not multiply; give [..., M, K] and [..., K, N]")
    if not 0 <= levels <= MAX_LEVELS:
        raise BadInput(f"levels = {levels}, but 0 to {MAX_LEVELS} are allowed")
    a, b, U, V, W = _common_dtype(s, a, b)
    p = s.ring_of.characteristic
    (rows, _), columns = a.shape[-2:], b.shape[-1]
    xp = _array_module(a)
    x = _padded(xp, a.reshape(-1, *a.shape[-2:]), s.n**levels, s.m**levels)
    y = _padded(xp, b.reshape(-1, *b.shape[-2:]), s.m**levels, s.p**levels)
    for _ in range(levels):
        x, y = _encode(xp, U, x, s.n, s.m, p), _encode(xp, V, y, s.m, s.p, p)
    c = x @ y if product is None else product(x, y)
    for _ in range(levels):
        c = _decode(xp, W, c, s.n, s.p, p)
    c = c[:, :rows, :columns].reshape(*a.shape[:-2], rows, columns)
    return c % p if p else c


def apply(s: BilinearMap, a: Any, b: Any) -> Any:
    """c = W^T ((U a) * (V b)), [..., C], for a: [..., A] and b: [..., B], numpy or torch."""
    a, b, U, V, W = _common_dtype(s, a, b)
    c = ((a @ U.T) * (b @ V.T)) @ W
    return c % s.ring_of.characteristic if s.ring_of.characteristic else c


def _array_module(a: Any) -> Any:
    if isinstance(a, np.ndarray):
        return np
    import torch

    return torch


def _padded(xp: Any, x: Any, row_step: int, column_step: int) -> Any:
    rows, columns = -x.shape[1] % row_step, -x.shape[2] % column_step
    if not rows and not columns:
        return x
    wide = xp.zeros((x.shape[0], x.shape[1] + rows, x.shape[2] + columns), dtype=x.dtype, **_device(xp, x))
    wide[:, : x.shape[1], : x.shape[2]] = x
    return wide


def _device(xp: Any, x: Any) -> dict[str, Any]:
    return {} if xp is np else {"device": x.device}


def _encode(xp: Any, U: Any, x: Any, n: int, m: int, p: int) -> Any:
    """[B, n R, m S] -> [B r, R, S]"""
    batch, rows, columns = x.shape[0], x.shape[1] // n, x.shape[2] // m
    blocks = x.reshape(batch, n, rows, m, columns).swapaxes(2, 3).reshape(batch, n * m, rows * columns)
    return _reduced(U @ blocks, p).reshape(-1, rows, columns)


def _decode(xp: Any, W: Any, c: Any, n: int, p_: int, p: int) -> Any:
    """[B r, R, S] -> [B, n R, p S]"""
    rows, columns = c.shape[1:]
    blocks = _reduced(W.T @ c.reshape(-1, len(W), rows * columns), p)
    return blocks.reshape(-1, n, p_, rows, columns).swapaxes(2, 3).reshape(-1, n * rows, p_ * columns)


def _reduced(x: Any, p: int) -> Any:
    return x % p if p else x
