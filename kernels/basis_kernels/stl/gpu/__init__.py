"""Triton kernels of Strassen-Tile layers: encode, decode, multiply and decode in one launch, gradients of bases."""

from __future__ import annotations

from basis_kernels.stl.gpu.decode import decode
from basis_kernels.stl.gpu.encode import encode
from basis_kernels.stl.gpu.fused import multiply_decode
from basis_kernels.stl.gpu.fused import wins as fused_wins
from basis_kernels.stl.gpu.gradient import basis_gradient

__all__ = ["basis_gradient", "decode", "encode", "fused_wins", "multiply_decode"]
