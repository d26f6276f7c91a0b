"""The first example of each family for a layer of 12 inputs and 16 outputs."""

from __future__ import annotations

from typing import Any

from basis_search.families import FAMILIES
from basis_search.layers.layer import LayerShape

SPECS: dict[str, Any] = {name: family.examples(LayerShape(12, 16))[0] for name, family in FAMILIES.items()}
