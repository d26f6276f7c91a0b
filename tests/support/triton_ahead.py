"""Compile a Triton kernel for a GPU that is not present, and report registers, spills and shared memory."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Shared memory that one block may ask for, in bytes (CUDA C++ Programming Guide, technical specifications).
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


@dataclass(frozen=True)
class Compiled:
    """What came out: the PTX, registers per thread, spilling loads and stores, shared memory per block in bytes."""

    ptx: str
    registers: int
    spills: int
    shared_bytes: int

    @property
    def tensor_cores(self) -> bool:
        """Whether any tensor-core instruction is in it: mma.sync (8.0), wgmma (9.0), tcgen05.mma (10.0)."""
        return re.search(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)", self.ptx) is not None


def compile_ahead(
    kernel: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    capability: int,
    num_warps: int = 4,
    num_stages: int = 3,
) -> Compiled:
    """Compiles a `@triton.jit` kernel (an autotuned one too) for compute capability 80, 90 or 100.

    `signature` maps every run-time argument to its type as Triton writes it ("*bf16", "*fp32", "i32"), `constexprs`
    every compile-time one to its value. Pointers and sizes are taken as multiples of 16, as they mostly are. Raises
    what Triton raises; nothing is launched, so no GPU is needed, but Triton's interpreter must be off.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    while not isinstance(kernel, triton.JITFunction):
        inner = getattr(kernel, "fn", None)
        assert inner is not None, f"{kernel!r} is no compiled Triton kernel: is TRITON_INTERPRET set?"
        kernel = inner
    names = kernel.arg_names
    missing = set(names) - set(signature) - set(constexprs)
    assert not missing, f"arguments without a type or value: {sorted(missing)}"
    types = {name: "constexpr" if name in constexprs else signature[name] for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names)
               if types[name].startswith("*") or types[name] == "i32"}  # fmt: skip
    source = ASTSource(kernel, types, constexprs={(names.index(k),): v for k, v in constexprs.items()}, attrs=aligned)
    made = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": num_warps, "num_stages": num_stages}
    )
    registers, spills = _resources(made.asm["cubin"])
    shared = int(made.metadata.shared)
    assert shared <= SHARED_LIMIT[capability], f"{shared} bytes of shared memory, {SHARED_LIMIT[capability]} there"
    return Compiled(made.asm["ptx"], registers, spills, shared)


def _resources(cubin: bytes) -> tuple[int, int]:
    """(registers per thread, loads and stores of local memory in the machine code), by the tools that Triton ships."""
    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        usage = subprocess.run([tools / "cuobjdump", "-res-usage", file], capture_output=True, text=True, check=True)
        code = subprocess.run([tools / "nvdisasm", "-c", file], capture_output=True, text=True, check=True)
    registers = re.findall(r"\bREG:(\d+)", usage.stdout)
    assert registers, f"cuobjdump said nothing of registers: {usage.stdout!r}"
    return max(map(int, registers)), len(re.findall(r"\b(?:STL|LDL)\b", code.stdout))
