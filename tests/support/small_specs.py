"""A spec of each family for a layer of 12 inputs and 16 outputs or near."""

from __future__ import annotations

from typing import Any

import basis_search as bs

SPECS: dict[str, Any] = {
    "dense": bs.dense.Spec(),
    "int8": bs.int8.Spec(),
    "lowrank": bs.lowrank.Spec(rank=3),
    "stl": bs.stl.Spec(tile=2, rank=7, basis="strassen"),
    "kronecker": bs.kronecker.Spec(chain="(1,4,4,4)*(4,4,3,1)"),
    "pq": bs.pq.Spec(codebooks=3),
}
