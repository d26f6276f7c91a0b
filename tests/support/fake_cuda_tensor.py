"""FakeCudaTensor, a CPU tensor that says it is on a CUDA device, and the operators on it; see pretend_cuda."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import torch
from fake_cuda_devices import active, generators, located, wait
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
WAITING = (
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten._unique2,
    aten.unique_dim, aten.unique_consecutive, aten.bincount, aten._linalg_check_errors, aten._linalg_eigh,
    aten._linalg_svd, aten._linalg_solve_ex, aten.linalg_lstsq, aten._linalg_eigvals, aten.linalg_eig,
)  # fmt: skip
"""Operators whose CUDA implementation copies a value to the host: a result's size, or whether the operator failed."""
PRODUCTS = (aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.mv, aten.addmv)
"""On some CPUs those of bfloat16 read between the rows of a matrix (see families/protocol/torch_linear)."""


class FakeCudaTensor(Tensor):
    """C++ sees a CPU tensor, Python one on a CUDA device, and every operator passes through `run`."""

    _index: int
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    device = property(lambda self: torch.device("cuda", self._index))
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        return self._index

    def to(self, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        return moved(self, *args, **kwargs)

    def cpu(self, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
        return self.to("cpu", memory_format=memory_format)

    def cuda(self, device: Any = None, non_blocking: bool = False) -> Tensor:  # type: ignore[override]
        return self.to("cuda" if device is None else device, non_blocking=non_blocking)

    def numpy(self, **kwargs: Any) -> Any:
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
            "memory first."
        )

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    def __dlpack__(self, **kwargs: Any) -> Any:
        raise TypeError(f"a pretended tensor on {self.device} has no memory that other libraries could use")

    def __dlpack_device__(self) -> Any:
        return (2, self._index)  # kDLCUDA

    def tolist(self) -> Any:
        wait("tolist")
        return plain(self).tolist()

    def new_tensor(self, data: Any, **kwargs: Any) -> Tensor:
        return torch.tensor(data, **{"dtype": self.dtype, "device": self.device, **kwargs})

    def __repr__(self, **kwargs: Any) -> str:
        return f"{plain(self)!r} on {self.device}"

    def __format__(self, spec: str) -> str:
        return self.item().__format__(spec) if self.dim() == 0 else super().__format__(spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            made = self.detach().clone().requires_grad_(self.requires_grad)
            is_parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(made, self.requires_grad) if is_parameter else made
        result: Tensor = memo[id(self)]
        return result

    def __reduce_ex__(self, protocol: Any) -> Any:
        return on_device, (plain(self), self._index)


def moved(x: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
    """x.to(*args, ...) for any x and any device."""
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    target = x.device if device is None else located(device)
    dtype, memory_format = dtype or x.dtype, memory_format or torch.preserve_format
    if target == x.device:
        return torch.Tensor.to(x, dtype, copy=copy, memory_format=memory_format)
    there: Tensor = _Move.apply(x, target, dtype, non_blocking)  # type: ignore[no-untyped-call]
    return torch.Tensor.to(there, there.dtype, memory_format=memory_format)


class NamedDevices(TorchFunctionMode):
    """Answers what C++ would ask a CUDA device's guard, which a CPU build lacks: the index of "cuda"."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.to:
            return moved(*args, **kwargs)
        if func is torch.Tensor.cuda:
            device = kwargs.pop("device", args[1] if len(args) > 1 else None)
            return moved(args[0], "cuda" if device is None else located(device), **kwargs)
        if func in (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor):
            device, graded = kwargs.pop("device", None), kwargs.pop("requires_grad", False)
            made = func(*args, **kwargs)  # within C++, on the CPU
            return (made if device is None else moved(made, device)).requires_grad_(graded or made.requires_grad)
        if isinstance(kwargs.get("device"), str | int | torch.device):
            kwargs = {**kwargs, "device": located(kwargs["device"])}
        return func(*args, **kwargs)


class Operators(TorchDispatchMode):
    """Factories, and operators on tensors of which none is on the device yet."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class _Move(torch.autograd.Function):
    """A copy to another device, and the gradient's copy back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, device: torch.device, dtype: torch.dtype, non_blocking: bool) -> Tensor:
        ctx.device, ctx.dtype = x.device, x.dtype
        return aten._to_copy.default(x, dtype=dtype, device=device, non_blocking=non_blocking)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0].to(ctx.device, ctx.dtype), None, None, None


def plain(x: Tensor) -> Tensor:
    """The CPU tensor that shares x's memory."""
    with torch._C._DisableTorchDispatch():
        return x.detach().as_subclass(Tensor)


def on_device(held: Tensor, index: int) -> FakeCudaTensor:
    """A tensor on cuda:index that shares the CPU tensor's memory."""
    cuda, size = active.cuda, held.untyped_storage().nbytes()
    if cuda is not None and size > cuda.memory_bytes:
        raise torch.OutOfMemoryError(
            f"CUDA out of memory. Tried to allocate {size / 2**30:.2f} GiB. GPU {index} has a total capacity of "
            f"{cuda.memory_bytes / 2**30:.2f} GiB"
        )
    made: FakeCudaTensor = torch.Tensor._make_subclass(FakeCudaTensor, held)  # type: ignore[attr-defined]
    made._index = index
    return made


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One operator on the CPU; its result is on the device of its arguments, or on the one that it asks for."""
    if (key := _made_of_others(func)) is not None:
        with contextlib.nullcontext() if active.cuda is None else Operators():
            return func._op_dk(key, *args, **kwargs)
    name, tensors = func.overloadpacket, list(_tensors((*args, *kwargs.values())))
    asked = None if kwargs.get("device") is None else located(kwargs["device"])
    if name in (aten.copy_, aten._to_copy):
        target = _copied(name, args, kwargs, asked)
    elif name in INDEXING:
        target = _indexed(name, args)
    else:
        target = _common(func, tensors, asked)
        if name in WAITING and any(isinstance(t, FakeCudaTensor) for t in tensors):
            wait(str(func))
    if generator := kwargs.get("generator"):
        kind = (target or torch.device("cpu")).type
        found = generators.get(generator._cdata, generator).device.type
        if found != kind:
            raise RuntimeError(f"Expected a '{kind}' device type for generator but found '{found}'")
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if target is None or target.type == "cpu":
        with torch._C._DisableTorchDispatch():
            return _each(func(*args, **kwargs), lambda t: t.as_subclass(Tensor) if isinstance(t, FakeCudaTensor) else t)
    return _on_cuda(func, args, kwargs, target.index)


def _on_cuda(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], index: int) -> Any:
    kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}

    def compute() -> Any:
        with torch._C._DisableTorchDispatch():
            given = [t.contiguous() for t in args if isinstance(t, Tensor)] if func.overloadpacket in PRODUCTS else args
            return func(*given, **kwargs)

    def wrapped(t: Tensor) -> Tensor:
        with torch._C._DisableTorchDispatch():
            return t if isinstance(t, FakeCudaTensor) else on_device(t, index)

    found = _each(compute(), wrapped)
    cuda = active.cuda
    if cuda is not None and cuda.recorded is not None and not func.is_view:

        def replay() -> None:
            for kept, again in zip(_tensors([found]), _tensors([compute()]), strict=True):
                if kept is not again:
                    with torch._C._DisableTorchDispatch():
                        kept.copy_(again)

        cuda.recorded.append(replay)
    return found


@cache
def _made_of_others(func: Any) -> Any:
    """The dispatch key of an operator that calls others: a composite one of torch, or one defined in Python."""
    keys = ["CompositeImplicitAutograd"]
    if func.namespace not in ("aten", "prims"):
        keys.append("CompositeExplicitAutograd")
    for key in keys:
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key):
            return getattr(torch._C.DispatchKey, key)
    return None


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _each(result: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(result, list | tuple):
        return type(result)(_each(part, change) for part in result)
    return change(result) if isinstance(result, Tensor) else result


def _common(func: Any, tensors: list[Tensor], asked: torch.device | None) -> torch.device | None:
    """Where all tensors are; numbers on the CPU, which are tensors without dimensions, go with any."""
    places = {t.device for t in tensors if t.dim() > 0 or t.device.type == "cuda"}
    if len(places) > 1:
        first, second, *_ = sorted(map(str, places), reverse=True)
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{first} and {second}! (in {func})"
        )
    return asked if asked is not None else places.pop() if places else None


def _copied(name: Any, args: tuple[Any, ...], kwargs: dict[str, Any], asked: torch.device | None) -> torch.device:
    """Where a copy goes to. The host waits for one from or to the CPU, unless it is non-blocking."""
    if name is aten.copy_:
        target, source, unblocked = args[0].device, args[1].device, len(args) > 2 and args[2]
    else:
        source = args[0].device
        target, unblocked = asked or source, False
    if target != source and "cpu" in (target.type, source.type) and not (unblocked or kwargs.get("non_blocking")):
        wait(f"a copy from {source} to {target}")
    located_target: torch.device = target
    return located_target


def _indexed(name: Any, args: tuple[Any, ...]) -> torch.device:
    """Where the indexed tensor is. Indices may be on the CPU; the host waits for their copy, and for a mask's count."""
    device: torch.device = args[0].device
    indices = [i for i in args[1] if i is not None]
    if any(i.device not in (device, torch.device("cpu")) for i in indices):
        raise RuntimeError(
            f"indices should be either on cpu or on the same device as the indexed tensor ({device.type})"
        )
    if device.type == "cuda":
        value = None if name is aten.index else args[2]
        if value is not None and value.device != device and value.dim() > 0:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {device} and "
                f"{value.device}! (in {name})"
            )
        if any(i.device != device for i in indices):
            wait(f"{name} by an index on the CPU")
        masks = sum(i.dtype in (torch.bool, torch.uint8) for i in indices)
        fills = value is not None and value.numel() == 1 and len(indices) == 1  # masked_fill
        if masks and not fills:
            wait(f"{name} by a mask")
    return device
