"""The pretended CUDA devices: which is current, and what made the host wait for one; see pretend_cuda."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class FakeCuda:
    """Two CUDA devices, and what happened on them.

    Attributes:
        memory_bytes: a tensor with more is out of memory.
        devices: how many there are.
        current: index of the current device.
        waits: what made the host wait for the device, in order.
        sync_debug_mode: "default", or "error" where a wait raises, as of torch.cuda.set_sync_debug_mode.
        recorded: the operators of the graph that is being captured, else None.
    """

    memory_bytes: int = 80 << 30
    devices: int = 2
    current: int = 0
    waits: list[str] = field(default_factory=list)
    sync_debug_mode: str = "default"
    recorded: list[Callable[[], None]] | None = None

    @property
    def synchronizations(self) -> int:
        """How often the host waited for a device."""
        return len(self.waits)

    @contextlib.contextmanager
    def synchronization_raises(self) -> Iterator[None]:
        """Inside, what makes the host wait raises, in the words of torch.cuda.set_sync_debug_mode("error")."""
        before, self.sync_debug_mode = self.sync_debug_mode, "error"
        try:
            yield
        finally:
            self.sync_debug_mode = before

    def wait(self, what: str) -> None:
        self.waits.append(what)
        if self.recorded is not None:
            raise torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing")
        if self.sync_debug_mode == "error":
            raise RuntimeError(f"called a synchronizing CUDA operation ({what})")


class _Active:
    cuda: FakeCuda | None = None


active = _Active()
"""The pretended devices of the innermost `pretend_cuda`."""


generators: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
"""The generators that say they are on a device, by address: operators are given another object for the same one."""


def located(device: torch.device | str | int) -> torch.device:
    """The device with its index: "cuda" is the current one.

    Raises:
        AcceleratorError: there is no device of that index.
    """
    found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if found.type != "cuda":
        return found
    cuda = active.cuda
    index = found.index if found.index is not None else 0 if cuda is None else cuda.current
    if cuda is not None and index >= cuda.devices:
        raise torch.AcceleratorError("CUDA error: invalid device ordinal")
    return torch.device("cuda", index)


def wait(what: str) -> None:
    """The host waits for a device."""
    if active.cuda is not None:
        active.cuda.wait(what)
