"""Benchmarks of Kronecker-sparse chains: factorisation, kernels, time model, networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from basis_search.bench.kronecker import cpu, fit, gpu, network, time_model

PARTS: dict[str, Callable[..., Iterable[dict[str, Any]]]] = {
    **fit.PARTS,
    **cpu.PARTS,
    **time_model.PARTS,
    **network.PARTS,
    **gpu.PARTS,
}
DEVICES = {**dict.fromkeys(cpu.PARTS, "cpu"), **dict.fromkeys(gpu.PARTS, "cuda")}
