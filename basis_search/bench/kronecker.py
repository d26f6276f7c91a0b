"""Kronecker-sparse chains measured: factorisation, kernels, cost model, networks; each in a module beside this one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from basis_search.bench import kronecker_costs, kronecker_cpu, kronecker_fit, kronecker_gpu, kronecker_network

Rows = list[dict[str, Any]]

PARTS: dict[str, Callable[..., Rows]] = {
    **kronecker_fit.PARTS,
    **kronecker_cpu.PARTS,
    **kronecker_costs.PARTS,
    **kronecker_network.PARTS,
    **kronecker_gpu.PARTS,
}
DEVICES = {**dict.fromkeys(kronecker_cpu.PARTS, "cpu"), **dict.fromkeys(kronecker_gpu.PARTS, "cuda")}
