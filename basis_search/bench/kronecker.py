"""Kronecker-sparse chains measured: factorisation against known errors here, kernels in the modules beside this one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from basis_search.bench import kronecker_costs, kronecker_cpu, kronecker_gpu, kronecker_network
from basis_search.families import kronecker
from basis_search.families.kronecker import KroneckerChain
from basis_search.timing import torch_threads

Rows = list[dict[str, Any]]
MONARCH_64, MONARCH_256 = "(1,8,8,8)*(8,8,8,1)", "(1,16,16,16)*(16,16,16,1)"


def fit(device: str, threads: int) -> Rows:
    """factorize() on Gaussian matrices (numpy default_rng(0)): error before and after the polish, certificate, time."""
    cases = (
        ("Monarch", 64, MONARCH_64, 0.7778414161),
        ("Monarch", 256, MONARCH_256, 0.8863653873),
        ("dyadic", 64, None, 0.8934101),
        ("dyadic", 128, None, None),
        ("dyadic", 1024, None, None),
        ("Monarch", 1024, "(1,32,32,32)*(32,32,32,1)", None),
        ("Monarch", 4096, "(1,64,64,64)*(64,64,64,1)", None),
    )
    rows = []
    with torch_threads(threads):
        for name, side, text, known in cases:
            matrix = torch.from_numpy(np.random.default_rng(0).standard_normal((side, side)))
            chain = KroneckerChain.dyadic(side) if text is None else KroneckerChain.parse(text)
            start = time.perf_counter()
            plain = kronecker.factorize(matrix, chain, polish=False)
            seconds = time.perf_counter() - start
            polished = kronecker.factorize(matrix, chain, polish=True) if side <= 256 else None
            rows.append(
                {
                    "case": f"{name} Gaussian {side}",
                    "error": plain.error,
                    "published": known,
                    "polished": None if polished is None else polished.error,
                    "lower bound": plain.lower_bound,
                    "seconds": seconds,
                }
            )
    return rows


PARTS: dict[str, Callable[..., Rows]] = {
    "fit": fit,
    **kronecker_cpu.PARTS,
    **kronecker_costs.PARTS,
    **kronecker_network.PARTS,
    **kronecker_gpu.PARTS,
}
DEVICES = {**dict.fromkeys(kronecker_cpu.PARTS, "cpu"), **dict.fromkeys(kronecker_gpu.PARTS, "cuda")}
