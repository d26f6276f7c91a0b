"""Cache of parameters packed for a kernel, packed again after a tensor changed, moved or was freed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from basis_search.families.protocol import Kernel, keep
from basis_search.replacement.structure import Structure, parameters


def version(tensor: Tensor) -> int:
    """Grows with each change in place; 0 for inference tensors, whose changes torch does not count."""
    return 0 if tensor.is_inference() else tensor._version


def in_compiled_graph(device: torch.device) -> bool:
    """Whether torch.compile records the call in a CUDA graph, or runs it once in the graph's memory before.

    There it is an error of torch's if a tensor outlives the call, and what was packed before would be part of every
    replay, which does not see that parameters have changed.
    """
    if device.type != "cuda":
        return False
    if torch.cuda.is_current_stream_capturing():
        return True
    trees = sys.modules.get("torch._inductor.cudagraph_trees")
    name = "tree_manager_containers"  # of this thread, if it runs such graphs
    if trees is None or not (hasattr(trees.local, name) or torch._C._is_key_in_tls(name)):
        return False
    manager = trees.get_manager(device.index, create_if_none_exists=False)
    return manager is not None and bool(manager.in_warmup)


@dataclass(frozen=True)
class _Entry:
    versions: tuple[int, ...]
    storages: tuple[StorageWeakRef, ...]
    kernel: Kernel
    value: Any

    def lives(self) -> bool:
        return not any(s.expired() for s in self.storages)  # type: ignore[no-untyped-call]


class PackedParameters:
    """Packed parameters by structure, dtypes, device and storages of the tensors.

    Args:
        shared: one cache for the tensors of many modules, whose life it must not prolong: entries hold copies and go
            after the tensors have gone; CUDA graphs of torch.compile pack anew in every replay. Else the cache is part
            of one module and holds its latest entry only.
    """

    def __init__(self, *, shared: bool):
        self._shared = shared
        self._entries: dict[tuple[Any, ...], _Entry] = {}

    def get(
        self, structure: Structure, text: str, x: Tensor, tensors: Sequence[Tensor], dtype: torch.dtype | None
    ) -> tuple[Kernel, Any]:
        """The kernel for x and the parameters as it wants them.

        Args:
            structure: of the layer; `text` is its `to_text()`.
            x: input of the call.
            tensors: in the order of the structure's names.
            dtype: what floating tensors are cast to; None leaves them.
        """
        cached = not (self._shared and in_compiled_graph(x.device))
        storages = [t.untyped_storage() for t in tensors]
        places = ((s._cdata, t.storage_offset(), t.dtype) for s, t in zip(storages, tensors, strict=True))
        key = (text, x.dtype, x.device, dtype, *places)
        versions = tuple(map(version, tensors))
        entry = self._entries.get(key) if cached else None
        if entry is not None and entry.versions == versions and entry.lives():
            return entry.kernel, entry.value
        kernel = structure.choose(x.dtype, x.device)
        with torch.no_grad():
            detached = [t.detach() for t in tensors]
            if not cached:
                return kernel, kernel.pack(structure.spec, parameters(structure, detached, dtype))
            if not self._shared:
                self._entries.clear()
            elif kernel.pack is keep:
                return kernel, parameters(structure, detached, dtype)
            else:
                for old in [k for k, e in self._entries.items() if not e.lives()]:
                    del self._entries[old]
                detached = [t.clone() for t in detached]
            value = kernel.pack(structure.spec, parameters(structure, detached, dtype))
        self._entries[key] = _Entry(versions, tuple(map(StorageWeakRef, storages)), kernel, value)
        return kernel, value

    def alive(self, text: str) -> int:
        """How many entries of that structure belong to tensors that still exist."""
        return sum(key[0] == text and entry.lives() for key, entry in self._entries.items())
