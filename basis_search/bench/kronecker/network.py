"""Latency of transformer blocks with Monarch chains for their linear layers against dense ones, random weights.

ratio = dense over ours, per block, in one run, alternating: ViT-S/16 (width 384, hidden 1536, 197 tokens) and
GPT-2-medium (1024, 4096, one token at a time).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basis_search.bench.kronecker.cpu import clock_of
from basis_search.evaluation.timing import measure
from basis_search.families import kronecker
from basis_search.families.kronecker import KroneckerChain
from basis_search.families.kronecker.time_model import REFERENCE_CPU
from basis_search.layers.layer import LayerShape
from basis_search.replacement.structured_linear import StructuredLinear

Rows = list[dict[str, Any]]
MODELS = {"ViT-S/16": (384, 1536, 6, 197), "GPT-2-medium": (1024, 4096, 16, 1)}
BATCHES = (1, 8, 128)


class NetworkBlock(nn.Module):
    """A transformer block, x [batch, tokens, width] -> the same."""

    def __init__(self, width: int, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv: nn.Module = nn.Linear(width, 3 * width)
        self.out: nn.Module = nn.Linear(width, width)
        self.up: nn.Module = nn.Linear(width, hidden)
        self.down: nn.Module = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(attended)
        y: Tensor = x + self.down(F.gelu(self.up(self.between(x))))
        return y


def cheapest_monarch(rows: int, columns: int, batch: int) -> KroneckerChain:
    """The rank-1 Monarch chain of least predicted time."""
    sides = kronecker.chain_enumeration.divisors
    options = [
        KroneckerChain.monarch(rows, columns, p, q)
        for p in sides(rows)
        for q in sides(columns)
        if 4 <= p <= rows // 4 and 4 <= q <= columns // 4
    ]
    return min(options, key=lambda chain: REFERENCE_CPU.chain(chain, batch))


def structured(block: NetworkBlock, batch: int, device: str) -> NetworkBlock:
    """The block with a chain for each linear layer."""
    made = copy.deepcopy(block)
    for name in ("qkv", "out", "up", "down"):
        linear = getattr(made, name)
        shape = LayerShape(linear.in_features, linear.out_features, batch, device=torch.device(device))
        spec = kronecker.Spec(chain=str(cheapest_monarch(linear.out_features, linear.in_features, batch)))
        params = kronecker.initialize(spec, shape, seed=0)
        sides = linear.in_features, linear.out_features
        setattr(made, name, StructuredLinear(*sides, "kronecker", spec, params, batch=batch))
    return made


def network(device: str, threads: int) -> Rows:
    """Latency of one block, dense over chains, at batch 1, 8 and 128; the share of wins."""
    rows: Rows = []
    for name, (width, hidden, heads, tokens) in MODELS.items():
        for batch in BATCHES:
            torch.manual_seed(0)
            dense = NetworkBlock(width, hidden, heads).to(device).eval()
            chains = structured(dense, batch * tokens, device).to(device).eval()
            x = torch.randn(batch, tokens, width, device=device)
            with torch.inference_mode():
                timings = measure(
                    {"dense": lambda m=dense, x=x: m(x), "chains": lambda m=chains, x=x: m(x)},  # type: ignore[misc]
                    "dense", device=device, threads=threads, rounds=5, seconds=0.02,
                    timer=clock_of(threads) if device == "cpu" else time.perf_counter,
                )  # fmt: skip
            rows.append(
                {
                    "case": f"{name}, batch {batch}, {tokens} tokens", "dense ms": 1e3 * timings["dense"].seconds,
                    "chains ms": 1e3 * timings["chains"].seconds, "ratio": 1 / timings["chains"].ratio,
                    "spread": timings["chains"].ratio_spread,
                    "density": sum(p.numel() for p in chains.parameters()) / sum(p.numel() for p in dense.parameters()),
                }
            )  # fmt: skip
    rows.append({"case": "share of wins", "ratio": sum(row["ratio"] > 1 for row in rows) / len(rows)})
    return rows


PARTS: dict[str, Callable[..., Rows]] = {"network": network}
