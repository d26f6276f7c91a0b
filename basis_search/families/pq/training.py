"""Straight-through training: y = sum_c sum_k w_c[k] T[c, k], w the hard code forward and a soft tree's leaves backward.

A soft tree goes right at a node with probability sigmoid((x_j - v) / width); a leaf's weight is the product along its
path (soft decision trees, arXiv 1711.09784; differentiable MADDNESS, arXiv 2311.10207). Tables are rounded to the 8
bits of their storage, and the gradient ignores the rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basis_search.errors import BadInput
from basis_search.families.pq.fit import dequantise, store_table
from basis_search.families.pq.reference import encode
from basis_search.families.pq.spec import BUCKETS, LEVELS, Spec
from basis_search.families.protocol import Params

SOFT_WIDTH = 0.25
"""Width of a soft comparison, in standard deviations of its column."""


class TrainableProduct(nn.Module):
    """A product-quantised layer with gradients for thresholds, tables, bias and input.

    Its outputs equal those of the layer with `params()`: run a trained one as
    `StructuredLinear(in, out, "pq", spec, module.params())`. Split columns are fixed.

    Args:
        spec: a spec with the tree encoder and exact sums.
        params: fitted parameters of the family.
        rows: [..., in] inputs of the layer, which set the width of its soft comparisons.

    Raises:
        BadInput: k-means codes, which have no threshold to train, or averaged sums.
    """

    split_columns: Tensor
    width: Tensor

    def __init__(self, spec: Spec, params: Params, rows: Tensor):
        super().__init__()
        if spec.encoder != "tree" or spec.group > 1:
            raise BadInput(f"{spec} cannot be trained: only trees with exact sums can; fit one with encoder='tree'")
        self.spec = spec
        self.register_buffer("split_columns", params["split_columns"].clone())
        deviation = rows.detach().reshape(-1, rows.shape[-1]).float().std(0, correction=0)
        split = deviation[params["split_columns"].long()]  # [C, 4]
        nodes = torch.cat([split[:, t : t + 1].expand(-1, 2**t) for t in range(LEVELS)], 1)  # [C, 15]
        self.register_buffer("width", (SOFT_WIDTH * nodes).clamp(min=torch.finfo(torch.float32).tiny))
        self.dtype = params["thresholds"].dtype
        self.thresholds = nn.Parameter(params["thresholds"].detach().float().clone())
        self.table = nn.Parameter(dequantise(spec, params).float())  # [C, 16, out]
        self.bias = nn.Parameter(params["bias"].detach().float().clone()) if "bias" in params else None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> y [..., out] in x's dtype."""
        rows = x.reshape(-1, x.shape[-1])
        hard = {"split_columns": self.split_columns, "thresholds": self.thresholds.detach().to(self.dtype)}
        codes = F.one_hot(encode(self.spec, hard, rows.detach()), BUCKETS).float()  # [n, C, 16]
        leaves = self._soft_leaves(rows.float())
        weights = codes + leaves - leaves.detach()
        table: Tensor = self.table
        if self.spec.table == "uint8":
            stored = store_table(table.detach().double(), "uint8")
            table = table + (dequantise(self.spec, stored).float() - table).detach()
        y = weights.flatten(1) @ table.flatten(0, 1)
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], y.shape[1])

    def params(self) -> Params:
        """The current parameters in the family's layout, detached."""
        params = {
            "split_columns": self.split_columns.clone(),
            "thresholds": self.thresholds.detach().to(self.dtype),
            **store_table(self.table.detach().double(), self.spec.table),
        }
        if self.bias is not None:
            params["bias"] = self.bias.detach().to(self.dtype)
        return params

    def _soft_leaves(self, rows: Tensor) -> Tensor:
        values = rows[:, self.split_columns.long()]  # [n, C, 4]
        limit = torch.finfo(torch.float32).max / 4  # nodes that never split have the largest threshold
        thresholds = self.thresholds.clamp(-limit, limit)
        leaves = torch.ones_like(values[:, :, :1])
        for t in range(LEVELS):
            nodes = slice(2**t - 1, 2 ** (t + 1) - 1)
            right = torch.sigmoid((values[:, :, t : t + 1] - thresholds[:, nodes]) / self.width[:, nodes])
            leaves = torch.stack([leaves * (1 - right), leaves * right], 3).flatten(2)  # [n, C, 2^(t + 1)]
        return leaves
