"""Which kernels run on this machine, and why others do not."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from basis_search.families import FAMILIES
from basis_search.layers.layer import LayerShape


def kernel_list() -> Iterator[str]:
    """A line for each kernel of each family: that it runs on this CPU or its GPU, or the reason why it does not."""
    shapes = [LayerShape(256, 256, 64)]
    if torch.cuda.is_available():
        shapes.append(LayerShape(256, 256, 64, torch.bfloat16, torch.device("cuda", torch.cuda.current_device())))
    for name, family in FAMILIES.items():
        for kernel in family.KERNELS:
            refusals = [kernel.refuses(family.Spec(), shape) or "runs" for shape in shapes]
            # Of two refusals, the one that says more than that the kernel is for the other device.
            said = sorted(refusals, key=lambda text: (text != "runs", text.startswith("the layer is on")))
            yield f"{name:11} {kernel.name:15} {said[0]}"
