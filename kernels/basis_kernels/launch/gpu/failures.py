"""Exceptions by which Triton says that one configuration cannot run; none of them is a RuntimeError."""

from __future__ import annotations

import triton.runtime.errors
from triton.compiler.errors import CompilationError

FAILURES: tuple[type[Exception], ...] = (
    triton.runtime.errors.OutOfResources,
    CompilationError,
    *([triton.runtime.errors.PTXASError] if hasattr(triton.runtime.errors, "PTXASError") else []),
)
"""Too much shared memory or too many threads; an error of the compiler; an error of the assembler (Triton >= 3.3)."""
