"""Launches a Triton kernel with a configuration resolved once per problem and a few microseconds of host time per call.

A kernel is bound to its integers and constants, which a caller does once per shape. The first call of a bound kernel
with certain dtypes, devices and alignments goes through Triton, which compiles; later ones look up the compiled kernel
by exactly these and launch it. Integers that Triton treats alike share a compiled kernel.
"""

from __future__ import annotations

import contextlib
import operator
import warnings
import weakref
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from basis_kernels.launch import tuning_file
from basis_kernels.launch.configuration import SHARED_BYTES, Configuration, Hardware, Problem, Space
from basis_kernels.launch.gpu import direct
from basis_kernels.launch.gpu.failures import FAILURES
from basis_kernels.launch.gpu.tuner import Tuner

MOST_SHAPES, MOST_COMPILED, MOST_LAUNCHES = 1024, 256, 16
"""Choices and compiled kernels per kernel, and launches per bound kernel; the oldest go first."""

_dtype = operator.attrgetter("dtype")


@cache
def hardware(device: torch.device) -> Hardware:
    """Of a CUDA device; the default of any other, whose driver only pretends to launch."""
    if device.type != "cuda":
        return Hardware()
    found = torch.cuda.get_device_properties(device)
    shared = getattr(found, "shared_memory_per_block_optin", SHARED_BYTES)
    return Hardware(found.name, found.multi_processor_count, shared)


class _Mode:
    """Process-wide switches."""

    by_triton = False


@contextlib.contextmanager
def launching_by_triton() -> Iterator[None]:
    """Every launch in the context takes Triton's own way, for comparison."""
    before, _Mode.by_triton = _Mode.by_triton, True
    try:
        yield
    finally:
        _Mode.by_triton = before


_launchers: weakref.WeakSet[Launcher] = weakref.WeakSet()


def forget() -> None:
    """Forgets every compiled kernel and choice, as when the driver or the tuning files have changed."""
    for launcher in _launchers:
        launcher.forget()


def _remember(known: dict[Any, Any], key: Any, value: Any, most: int) -> None:
    while len(known) >= most:
        known.pop(next(iter(known)), None)
    known[key] = value


class Launcher:
    """A kernel with its space of configurations.

    Args:
        kernel: compiled by `triton.jit`; its parameters are tensors, integers, constants, then block sizes.
        space: its configurations.

    Attributes:
        reason: why launches take Triton's own way; None where they do not.
    """

    def __init__(self, kernel: Any, space: Space):
        self.kernel, self.space = kernel, space
        self.reason = direct.refusal() if isinstance(kernel, JITFunction) else "the interpreter runs the kernel"
        self._names: tuple[str, ...] = tuple(kernel.arg_names)
        for candidate in space.candidates:
            blocks = tuple(candidate.blocks)
            if self._names[-len(blocks) :] != blocks:
                raise TypeError(f"{space.name} ends with {self._names[-len(blocks) :]}, not with {blocks}")
        self.bounds: weakref.WeakSet[Bound] = weakref.WeakSet()
        self._compiled: dict[Any, Any] = {}
        self._chosen: dict[Any, Configuration] = {}
        self._cannot: dict[Configuration, str] = {}
        _launchers.add(self)

    def forget_choices(self) -> None:
        """Configurations are looked up again."""
        self._chosen.clear()
        for bound in self.bounds:
            bound.launches.clear()

    def forget(self) -> None:
        """Forgets choices and compiled kernels, Triton's too."""
        self.forget_choices()
        self._compiled.clear()
        self._cannot.clear()
        caches: dict[Any, Any] = getattr(self.kernel, "device_caches", {})
        for by_triton in caches.values():
            by_triton[0].clear()

    def bind(self, integers: tuple[int, ...], constants: tuple[Any, ...]) -> Bound:
        """The kernel with the parameters after its tensors; block sizes follow from the configuration."""
        return Bound(self, integers, constants)

    def problem(self, tensors: tuple[Tensor, ...], integers: tuple[int, ...], constants: tuple[Any, ...]) -> Problem:
        """The problem of a call, of which the tensors' number and first dtype count."""
        names, dtype = self._names[len(tensors) :], tensors[0].dtype
        values = dict(zip(names, (*integers, *constants), strict=False))
        return Problem(str(dtype).removeprefix("torch."), dtype.itemsize, values)

    def configurations(self, device: torch.device, problem: Problem) -> list[Configuration]:
        """In the order in which they are tried: a tuning file's, then by the closed form, without those that failed."""
        if not isinstance(self.kernel, JITFunction):
            return [self.space.interpreted(problem)]
        chip = hardware(device)
        ranked = self.space.ranked(problem, chip)
        found = tuning_file.nearest(self.space, problem, chip.name) if chip.name else None
        if found is not None:
            ranked.insert(0, found[1])
        return [c for c in dict.fromkeys(ranked) if c not in self._cannot] or ranked[:1]

    def beats_other(self, device: torch.device, problem: Problem) -> bool:
        """Whether the tuning file says of the nearest problem that this kernel is faster than the other way."""
        name = hardware(device).name
        found = tuning_file.nearest(self.space, problem, name) if name else None
        if found is None:
            return False
        own, other = found[0].get("whole_microseconds"), found[0].get("other_microseconds")
        return isinstance(own, float) and isinstance(other, float) and own < other

    def launch_new(self, bound: Bound, key: Any, tensors: tuple[Tensor, ...]) -> None:
        """The first launch of a bound kernel with these tensors, or one that is not to be direct."""
        device, problem = tensors[0].device, self.problem(tensors, bound.integers, bound.constants)
        if Tuner.active is not None:
            self.forget_choices()
            fastest = Tuner.active.choose(
                self.space, problem, hardware(device), lambda c: self._by_triton(device, c, tensors, problem)
            )
            self._by_triton(device, fastest, tensors, problem)
            return
        sizes = tuple((size - 1).bit_length() for size in self.space.sizes_of(problem).values())
        like = (device.index, sizes, *self.space.exact_of(problem).values())
        chosen, compiled, launched = self._chosen.get(like), None, False
        if chosen is None or not self.space.fits(chosen, problem):
            chosen, compiled = self._first_that_runs(device, tensors, problem)
            launched = True  # the interpreter returns no compiled kernel
            _remember(self._chosen, like, chosen, MOST_SHAPES)
        if self.reason is not None or _Mode.by_triton or direct.hooked(self.kernel):
            if not launched:
                self._by_triton(device, chosen, tensors, problem)
            return
        kind = (direct.specialisation(bound.integers), bound.constants, key, chosen)
        if not launched and kind not in self._compiled:
            compiled, launched = self._by_triton(device, chosen, tensors, problem), True
        if compiled is None:
            compiled = self._compiled[kind]
        tail = (*bound.integers, *bound.constants, *chosen.blocks.values())
        launch = direct.Launch(compiled, self.space.grid(chosen.blocks, problem), tail)
        _remember(self._compiled, kind, compiled, MOST_COMPILED)
        _remember(bound.launches, key, launch, MOST_LAUNCHES)
        if not launched:
            launch(tensors[0].get_device(), [t.data_ptr() for t in tensors])

    def _first_that_runs(
        self, device: torch.device, tensors: tuple[Tensor, ...], problem: Problem
    ) -> tuple[Configuration, Any]:
        """Launches the first configuration that the compiler and the chip accept."""
        options = self.configurations(device, problem)
        for place, configuration in enumerate(options):
            try:
                return configuration, self._by_triton(device, configuration, tensors, problem)
            except FAILURES as failure:
                if place + 1 == len(options):
                    raise
                self._cannot[configuration] = f"{type(failure).__name__}: {failure}"
                warnings.warn(
                    f"{self.space.name} cannot run as {configuration.to_json()} ({self._cannot[configuration]}); "
                    "the next configuration is tried",
                    stacklevel=2,
                )
        raise AssertionError(options)

    def _by_triton(
        self, device: torch.device, configuration: Configuration, tensors: tuple[Tensor, ...], problem: Problem
    ) -> Any:
        """Launches by Triton's own way, and returns the compiled kernel."""
        blocks = configuration.blocks
        options = {} if not isinstance(self.kernel, JITFunction) else {
            "num_warps": configuration.num_warps, "num_stages": configuration.num_stages
        }  # fmt: skip
        with _current(device):
            grid = self.space.grid(blocks, problem)
            return self.kernel[grid](*tensors, *problem.values.values(), *blocks.values(), **options)


class Bound:
    """A kernel with all parameters but its tensors, for repeated calls."""

    __slots__ = ("__weakref__", "constants", "integers", "kernel", "launcher", "launches")

    def __init__(self, launcher: Launcher, integers: tuple[int, ...], constants: tuple[Any, ...]):
        self.launcher, self.kernel, self.integers, self.constants = launcher, launcher.kernel, integers, constants
        self.launches: dict[Any, direct.Launch] = {}
        launcher.bounds.add(self)

    def __call__(self, *tensors: Tensor) -> None:
        """Launches in the current stream of the first tensor's device.

        Args:
            tensors: on one device. One that the constants make the kernel ignore may be any.
        """
        devices = tuple(map(Tensor.get_device, tensors))
        pointers = list(map(Tensor.data_ptr, tensors))
        bits = 0
        for pointer in pointers:
            bits |= pointer
        key = (devices, tuple(map(_dtype, tensors)), bits & 15 and direct.misaligned(pointers))
        launch = self.launches.get(key)
        if launch is None or _Mode.by_triton or Tuner.active is not None or direct.hooked(self.kernel):
            self.launcher.launch_new(self, key, tensors)
        else:
            launch(devices[0], pointers)


def _current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A context in which the device is the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
