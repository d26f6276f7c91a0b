"""What a family of replacements is, what its kernels are, and which kernel runs: the whole of dispatch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor

from basis_search.errors import BadInput, near_miss
from basis_search.layers.layer import Layer, LayerLike

Params = dict[str, Tensor]
"""A fitted operator in its family's one canonical layout; "bias" [out] is there when the layer has one."""


@dataclass(frozen=True)
class Cost:
    """Analytic cost of one call on `batch` rows; what is done once per weight is not in it.

    Attributes:
        multiplications: scalar multiplications.
        additions: scalar additions, subtractions and compares.
        lookups: table entries fetched by a computed index.
        bytes: least memory traffic: parameters, inputs and outputs, each once.
        parameters: stored values, the bias included.
    """

    multiplications: int
    additions: int
    lookups: int
    bytes: int
    parameters: int

    @property
    def flops(self) -> int:
        """A multiply-add is 2."""
        return self.multiplications + self.additions

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(Cost)))


@dataclass(frozen=True)
class Forecast:
    """What a candidate is expected to be worth before anything is fitted: a first guess that searches correct.

    Attributes:
        error: relative squared output error, from spectra and closed forms.
        latency_ratio: latency over the dense layer's.
    """

    error: float
    latency_ratio: float


def _no_growth(spec: Any, params: Params) -> float:
    return 1.0


@dataclass(frozen=True)
class Kernel:
    """One way to run an operator.

    Attributes:
        name: "reference", "torch", "cpu-scalar", "cpu-avx2", "triton", ...
        run: (spec, packed, x [..., in]) -> y [..., out] in x's dtype, the bias included.
        pack: (spec, params) -> whatever `run` wants; called once per set of parameters. For a differentiable
            kernel it is itself differentiable.
        refuses: (spec, layer) -> None where the kernel can run, else a sentence that says why not.
        differentiable: gradients reach the parameters (and the input where the operator has a gradient).
        growth: (spec, params) -> factor on the rounding tolerance where the operator's own arithmetic cancels.
        frozen: names of parameters that no gradient reaches, such as the thresholds of a hash.
        linear: but for its bias, and for rounding.
    """

    name: str
    run: Callable[[Any, Any, Tensor], Tensor]
    pack: Callable[[Any, Params], Any]
    refuses: Callable[[Any, LayerLike], str | None]
    differentiable: bool = False
    growth: Callable[[Any, Params], float] = _no_growth
    frozen: frozenset[str] = frozenset()
    linear: bool = False


def keep(spec: Any, params: Params) -> Params:
    """A `pack` that leaves the parameters as they are."""
    return params


def accept(spec: Any, layer: LayerLike) -> None:
    """A `refuses` that never does."""
    return


def reference_kernel(
    reference: Callable[[Any, Params, Tensor], Tensor],
    *,
    refuses: Callable[[Any, LayerLike], str | None] = accept,
    differentiable: bool = True,
    growth: Callable[[Any, Params], float] = _no_growth,
    linear: bool = True,
) -> Kernel:
    """The kernel "reference" from a family's float64 statement of its meaning, back in x's dtype."""

    def run(spec: Any, params: Params, x: Tensor) -> Tensor:
        return reference(spec, params, x).to(x.dtype)

    return Kernel("reference", run, keep, refuses, differentiable=differentiable, growth=growth, linear=linear)


NOT_INSTALLED = "the compiled CPU kernels are not installed; a C++ compiler at install time builds them"
COMPILED_DTYPES = (torch.float32, torch.bfloat16)
"""What the compiled CPU kernels take."""

TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the Triton kernels take."""


def compiled_refusal(supports: Callable[[str], bool] | None, isa: str, layer: LayerLike) -> str | None:
    """Why a family's compiled kernel of an instruction set cannot run on the layer; None if it can.

    `supports` tells whether this CPU has an instruction set; None where the compiled module is not installed.
    """
    if supports is None:
        return NOT_INSTALLED
    if layer.device.type != "cpu":
        return f"the layer is on {layer.device.type}, and this kernel runs on the CPU; use the torch kernel there"
    if layer.dtype not in COMPILED_DTYPES:
        return f"it takes float32 and bfloat16, not {str(layer.dtype).removeprefix('torch.')}; use the torch kernel"
    if not supports(isa):
        return f"this CPU has no {isa}; use cpu-scalar or the torch kernel"
    return None


LEAST_CAPABILITY = (8, 0)
"""The oldest GPUs that the Triton kernels are compiled for."""


def triton_refusal(layer: LayerLike) -> str | None:
    """Why a family's Triton kernel cannot run on the layer; None if it can."""
    if find_spec("triton") is None:
        return "triton is not installed, which comes with torch on Linux; use the torch kernel"
    if layer.device.type != "cuda":
        return f"the layer is on {layer.device.type}, and this kernel runs on CUDA devices; use the torch kernel there"
    if layer.dtype not in TRITON_DTYPES:
        name = str(layer.dtype).removeprefix("torch.")
        return f"it takes float32, float16 and bfloat16, not {name}; use the torch kernel"
    # A shape may be asked about on a machine without a GPU.
    if torch.cuda.is_available() and torch.cuda.get_device_capability(layer.device) < LEAST_CAPABILITY:
        return "the GPU's compute capability is below 8.0; use the torch kernel"
    return None


class Family(Protocol):
    """A package under `families/`; its public names are these."""

    @property
    def Space(self) -> type[Any]:
        """Bounds of the search: a dataclass with a default for every field."""

    @property
    def Spec(self) -> type[Any]:
        """The structure of one candidate: frozen, hashable, JSON-able, no tensors; it checks itself when made."""

    @property
    def KERNELS(self) -> tuple[Kernel, ...]:
        """Slowest first; KERNELS[0] is "reference", plain float64 torch."""

    @property
    def FITS_ROWS(self) -> bool:
        """Whether a fit takes longer the more rows there are: then a search tries it on few of them first."""

    def suggest(self, trial: Any, layer: Layer, space: Any, /) -> Any:
        """One spec from an optuna trial. Raises BadInput if the layer admits none: a sentence says why."""

    def fit(self, spec: Any, layer: Layer, /) -> Params:
        """Parameters that minimise the output error on `layer.inputs`; deterministic."""

    def cost(self, spec: Any, layer: LayerLike, /) -> Cost:
        """Analytic cost per call of `layer.batch` rows, padding included."""

    def forecast(self, spec: Any, layer: Layer, /) -> Forecast:
        """Error and latency without a fit, in far less time than one; deterministic."""


def choose(kernels: Sequence[Kernel], spec: Any, layer: LayerLike, name: str | None = None) -> Kernel:
    """The fastest kernel that accepts, or the one of that name.

    Raises:
        BadInput: no kernel of that name, or it refuses, or all refuse; the reasons are in the sentence.
    """
    if name is not None:
        for kernel in kernels:
            if kernel.name == name:
                reason = kernel.refuses(spec, layer)
                if reason is not None:
                    raise BadInput(f"the kernel {name!r} refuses: {reason}")
                return kernel
        raise BadInput(f"there is no kernel {name!r} here{near_miss(name, [k.name for k in kernels])}")
    reasons = []
    for kernel in reversed(kernels):
        reason = kernel.refuses(spec, layer)
        if reason is None:
            return kernel
        reasons.append(f"{kernel.name}: {reason}")
    raise BadInput("every kernel refuses: " + "; ".join(reasons))


def tolerance(dtype: torch.dtype, length: int, growth: float = 1.0) -> float:
    """Largest relative Frobenius gap between a kernel and its reference that rounding explains.

    Inputs, intermediates and outputs are each rounded once to `dtype` (4 roundings of eps/2 at most along one path),
    sums of `length` terms are kept in float32 or better, where errors of either sign grow like sqrt(length).
    """
    storage = torch.finfo(dtype).eps
    accumulator = min(storage, torch.finfo(torch.float32).eps)
    return growth * (2 * storage + accumulator * math.sqrt(length))


def relative_gap(y: Tensor, expected: Tensor) -> float:
    """||y - expected|| / ||expected|| in float64; infinite if `y` is not finite, absolute if `expected` is zero."""
    difference = float((y.double() - expected.double()).norm())
    if difference != difference:
        return float("inf")
    scale = float(expected.double().norm())
    return difference / scale if scale > 0 else difference


def spec_to_json(spec: Any) -> dict[str, Any]:
    """The fields of a spec as JSON values."""
    result: dict[str, Any] = dataclasses.asdict(spec)
    return result


def spec_from_json(family: Family, data: Mapping[str, Any]) -> Any:
    """The spec that `spec_to_json` wrote.

    Raises:
        BadInput: a field is missing, unknown, of the wrong type or out of its limits.
    """
    fields = {f.name: f for f in dataclasses.fields(family.Spec)}
    for key in data:
        if key not in fields:
            raise BadInput(f"a spec has no field {key!r}{near_miss(key, list(fields))}")
    try:
        return family.Spec(**data)
    except TypeError as error:
        raise BadInput(f"{dict(data)} does not make a spec: {error}") from error


def spec_hash(family: str, spec: Any) -> str:
    """sha256 of the canonical JSON of family and spec."""
    text = json.dumps({"family": family, "spec": spec_to_json(spec)}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def element_size(dtype: torch.dtype) -> int:
    """Bytes of one value."""
    return torch.empty((), dtype=dtype).element_size()
