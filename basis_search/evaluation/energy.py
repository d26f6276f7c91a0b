"""Energy per call by the counter of an NVIDIA GPU's driver, read with NVML (package nvidia-ml-py, extra "energy")."""

from __future__ import annotations

import time
from collections.abc import Callable

LEAST_SECONDS, MOST_SECONDS = 0.3, 2.0
"""Between the first and the last change of the counter, which drivers update every 20 to 100 ms; then given up."""


def energy_counter(uuid: str) -> Callable[[], int] | None:
    """Reads the millijoules that the GPU has used so far; None where the driver does not report them.

    Args:
        uuid: of the GPU, with or without the prefix "GPU-".
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:  # no library, a virtual or too old GPU, a part of one
        return None
    return lambda: int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))


def joules_per_call(
    counter: Callable[[], int], repeat: Callable[[], int], now: Callable[[], float] = time.perf_counter
) -> float | None:
    """Energy of one call, what the idle device would use included; None if the counter does not move.

    Both ends of the measurement are changes of the counter, so that its resolution in time adds no error.

    Args:
        counter: reads millijoules.
        repeat: makes calls, waits for them, and returns their number.
        now: seconds.
    """
    begun, before = now(), counter()
    first: int | None = None
    start, calls, last, calls_at_last = begun, 0, before, 0
    while now() - begun < MOST_SECONDS:
        calls += repeat()
        value = counter()
        if value == last:
            continue
        if first is None:
            first, start, calls = value, now(), 0
        last, calls_at_last = value, calls
        if calls and now() - start >= LEAST_SECONDS:
            break
    if first is None or not calls_at_last:
        return None
    return (last - first) / 1e3 / calls_at_last
