"""Choice of a chain for a matrix within a budget: fusion by dynamic programming, least error by branch and bound.

Fusing neighbours preserves the matrix and trades multiplications for fewer passes: best(j) = min_{i<j} best(i) +
t(product of factors i..j). A chain whose lower bound max_s E_s exceeds the best error so far is not factorised.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.families.kronecker import blocks, kernels_cpu, kernels_triton
from basis_search.families.kronecker.factorization import Factorization, bounds, factorize
from basis_search.families.kronecker.patterns import KroneckerChain, KroneckerPattern
from basis_search.families.protocol import TRITON_DTYPES

Cost = Callable[[KroneckerPattern], float]


class MeasuredCosts:
    """Measured seconds of one factor on this machine, by pattern; each pattern is measured once.

    Args:
        batch: rows of a call.
        dtype, device: of the data.
        rounds: timings per pattern, of which the median is taken.
    """

    def __init__(
        self, batch: int, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", rounds: int = 7
    ):
        if batch < 1:
            raise BadInput(f"batch is {batch}, but at least 1 row per call is needed")
        self.batch, self.dtype, self.device, self.rounds = batch, dtype, torch.device(device), rounds
        self.known: dict[KroneckerPattern, float] = {}

    def __call__(self, pattern: KroneckerPattern) -> float:
        if pattern not in self.known:
            x = torch.ones(self.batch, pattern.columns, dtype=self.dtype, device=self.device)
            w = torch.ones(pattern.storage, dtype=self.dtype, device=self.device)
            self.known[pattern] = self._clock(_call(x, w))
        return self.known[pattern]

    def dense(self, rows: int, columns: int) -> float:
        """Measured seconds of torch's dense layer [rows, columns]."""
        x = torch.ones(self.batch, columns, dtype=self.dtype, device=self.device)
        w = torch.ones(rows, columns, dtype=self.dtype, device=self.device)
        return self._clock(lambda: torch.nn.functional.linear(x, w))

    def _clock(self, call: Callable[[], object]) -> float:
        with torch.inference_mode():
            call()
            samples = []
            for _ in range(self.rounds):
                self._wait()
                start = time.perf_counter()
                call()
                self._wait()
                samples.append(time.perf_counter() - start)
        return statistics.median(samples)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _call(x: Tensor, w: Tensor) -> Callable[[], Tensor]:
    """A call of the fastest available kernel on a packed factor."""
    if kernels_triton.runs_on(x.device) and x.dtype in TRITON_DTYPES:
        weights = [kernels_triton.packed_factor(w)]
        return lambda: kernels_triton.chain(x, weights)
    isa = kernels_cpu.fastest(x)
    if isa is not None:
        packed = kernels_cpu.packed_chain(isa, [w], None, KroneckerPattern(*w.shape).rows)
        return lambda: kernels_cpu.run_packed(packed, x)
    return lambda: blocks.apply(w, x)


def best_fusion(chain: KroneckerChain, cost: Cost) -> tuple[tuple[int, ...], float]:
    """The cheapest fusion of contiguous factors: (group sizes for `chain.fuse`, cost).

    Raises:
        BadInput: the chain is not chainable.
    """
    chain.require_chainable()
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for end in range(1, len(chain) + 1):
        options = (
            (best[start][0] + cost(chain[start:end].product), (*best[start][1], end - start)) for start in range(end)
        )
        best.append(min(options))
    return best[-1][1], best[-1][0]


@dataclass(frozen=True, eq=False)
class Choice:
    """The chosen chain.

    Attributes:
        factorization: of the matrix by the chain, which is fused where that is cheaper.
        cost: of the chain, in the units of the costs given.
        considered: number of chains within the budget.
        factorized: number of those that the lower bound did not exclude.
    """

    factorization: Factorization
    cost: float
    considered: int
    factorized: int

    @property
    def chain(self) -> KroneckerChain:
        return self.factorization.chain


def choose_chain(
    matrix: Tensor, chains: Iterable[KroneckerChain], budget: float, cost: Cost, *, sweeps: int = 20
) -> Choice:
    """The chain of least error ||A - K|| among those whose factors together cost at most `budget`.

    Args:
        matrix: A, [M, N].
        chains: candidates, such as `cheapest_chains(M, N, ...)`.
        budget: in the units of `cost`: seconds with `MeasuredCosts`, stored values with `lambda p: p.nnz`.
        cost: of one factor.
        sweeps: limit on least-squares passes after each factorisation.

    A chain that fusion makes cheaper is fused first: the fused chain represents every product of the original one.

    Raises:
        BadInput: no chain is within the budget; the message names the cheapest and its cost.
    """
    options: dict[KroneckerChain, float] = {}
    least: tuple[float, str] | None = None
    for chain in chains:
        groups, seconds = best_fusion(chain, cost)
        least = min(least or (seconds, str(chain)), (seconds, str(chain)))
        if seconds <= budget:
            options[chain.fuse(groups)] = seconds
    if not options:
        if least is None:
            raise BadInput("no chain was given to choose from; list some with cheapest_chains(rows, columns)")
        raise BadInput(
            f"no chain is within the budget of {budget:.3g}: the cheapest, {least[1]}, costs {least[0]:.3g}; raise the "
            "budget or keep the layer dense"
        )
    target = matrix.detach().to(torch.complex128 if matrix.is_complex() else torch.float64)
    least_errors = torch.stack([bounds(target, chain)[0] for chain in options]).tolist()  # one read for all chains
    bounded = sorted((bound, str(chain), chain) for bound, chain in zip(least_errors, options, strict=True))
    best: Factorization | None = None
    tried = 0
    for bound, _, chain in bounded:
        if best is not None and bound >= best.error:
            break
        tried += 1
        found = factorize(matrix, chain, sweeps=sweeps)
        if best is None or found.error < best.error:
            best = found
    assert best is not None
    return Choice(best, options[best.chain], len(options), tried)
