"""Triton kernels of Strassen-Tile layers: encode, decode, and one launch that multiplies and decodes at once."""

from __future__ import annotations

from basis_kernels.stl.gpu.decode import decode
from basis_kernels.stl.gpu.encode import encode
from basis_kernels.stl.gpu.fused import multiply_decode
from basis_kernels.stl.gpu.gradient import basis_gradient

__all__ = ["basis_gradient", "decode", "encode", "multiply_decode"]
