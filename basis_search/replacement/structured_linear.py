"""StructuredLinear: the module that replaces a dense layer, for every family."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from basis_search.errors import BadInput
from basis_search.families import family as family_named
from basis_search.families.protocol import Params, choose, spec_to_json
from basis_search.layers.dense_modules import LAST_CHANNEL, View
from basis_search.layers.layer import Layer, LayerShape
from basis_search.replacement.packed_parameters import PackedParameters
from basis_search.replacement.structure import Structure, parameters
from basis_search.replacement.torch_operator import structured_linear


class _Operator(nn.Module):
    """Holds a family's parameters, so that their names do not meet the module's own."""

    def __init__(self, params: Params, frozen: frozenset[str]):
        super().__init__()
        self._names = tuple(params)
        for name, tensor in params.items():
            if tensor.is_floating_point():
                # DistributedDataParallel waits for the gradient of every parameter that requires one.
                self.register_parameter(name, nn.Parameter(tensor.detach().clone(), requires_grad=name not in frozen))
            else:
                self.register_buffer(name, tensor.detach().clone())

    def tensors(self) -> Params:
        own, buffers = self._parameters, self._buffers  # nn.Module looks a name up in several microseconds
        found = {n: own[n] if n in own else buffers[n] if n in buffers else getattr(self, n) for n in self._names}
        return cast(Params, found)


class StructuredLinear(nn.Module):
    """y [..., out] = operator(x [..., in]), run by the fastest kernel that accepts.

    Parameters are under `operator` with their family's names: floating ones as nn.Parameters, integer ones as buffers.
    Calls that need gradients run a differentiable kernel; for others parameters are packed once, and again after a
    change. torch.compile and torch.export trace it as one operator without a graph break. Under autocast the layer runs
    as if it had been converted to autocast's dtype.

    Args:
        in_features, out_features: as of nn.Linear.
        family, spec: the structure.
        params: fitted parameters, "bias" among them if there is one.
        batch: expected rows per call, by which kernels may choose.
        prefer: the kernel to take where it accepts; else the fastest that does.
        dtype: of the layer, needed where the operator has no floating parameter.
        view: layout of the input, where the layer replaces a convolution of kernel size 1.

    Raises:
        BadInput: an unknown family, or no kernel accepts.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        family: str,
        spec: Any,
        params: Params,
        *,
        batch: int = 1,
        prefer: str | None = None,
        dtype: torch.dtype = torch.float32,
        view: View = LAST_CHANNEL,
    ):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.family, self.spec, self.batch, self.view = family, spec, batch, view
        kernels = family_named(family).KERNELS
        self.operator = _Operator(params, frozenset().union(*(k.frozen for k in kernels)))
        self._dtype = dtype
        self._set(Structure(in_features, out_features, batch, family, spec, tuple(params), prefer))

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, family: str, spec: Any, inputs: Tensor, name: str = "linear"
    ) -> StructuredLinear:
        """Fits the structure to a layer on inputs that it sees, as of `Layer.from_linear`."""
        return fit(Layer.from_linear(linear, inputs, name), family, spec)

    @property
    def params(self) -> Params:
        """The operator's parameters and buffers, by name."""
        return self.operator.tensors()

    @property
    def bias(self) -> Tensor | None:
        """[out], or None."""
        return self.params.get("bias")

    @property
    def kernel(self) -> str:
        """The name of the kernel that runs calls without gradients."""
        return self._structure.choose(self.dtype, self.device).name

    @property
    def preferred(self) -> str | None:
        """The kernel that runs where it accepts, if one was named."""
        return self._structure.prefer

    @property
    def dtype(self) -> torch.dtype:
        """That it was made with or converted to; scales of codes may be float32 in a layer of 16 bits."""
        found = {t.dtype for t in self.params.values() if t.is_floating_point()}
        return self._dtype if self._dtype in found or found <= {torch.float32} else found.pop()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StructuredLinear:
        """Conversions of the module, which convert all floating parameters."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._dtype = fn(torch.empty(0, dtype=self._dtype)).dtype
        return self

    @property
    def device(self) -> torch.device:
        return next(iter(self.params.values())).device

    def prefer(self, kernel: str) -> None:
        """Sets the kernel to take where it accepts, such as the one measured fastest."""
        self._set(dataclasses.replace(self._structure, prefer=kernel, forced=False))

    def _set(self, structure: Structure) -> None:
        self._structure, self._text = structure, structure.to_text()
        self._packed: PackedParameters | None = None
        self._gradeless: str | None = None  # why the forced kernel gives no gradients

    def use(self, kernel: str | None) -> StructuredLinear:
        """Forces a kernel by name, also for gradients; None lets the module choose again. Returns self.

        Raises:
            BadInput: there is no such kernel, or it refuses.
        """
        if kernel is not None:
            shape = LayerShape(self.in_features, self.out_features, self.batch, self.dtype, self.device)
            choose(self._structure.kernels, self.spec, shape, kernel)
        self._set(dataclasses.replace(self._structure, prefer=kernel, forced=kernel is not None))
        if kernel is not None:
            try:
                self._structure.differentiable(self.dtype, self.device)
            except BadInput as refusal:
                self._gradeless = str(refusal)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out], or in the layout of the convolution that it replaces."""
        if self.view == LAST_CHANNEL:
            return self._linear(x)
        return self.view.restore(self._linear(self.view.rows(x)))

    def _linear(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise BadInput(f"the input has {x.shape[-1]} features, but this layer takes {self.in_features}")
        tensors, kind, dtype = self.params, x.device.type, None
        if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(kind)
            x = x.to(dtype)
        graded = torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in tensors.values()))
        if torch.compiler.is_compiling():
            if graded and self._gradeless is not None:
                raise BadInput(self._gradeless)
            return structured_linear(x, list(tensors.values()), self._text, dtype)
        if dtype is None:
            return self._eager(x, tensors, graded)
        with torch.autocast(kind, enabled=False):
            return self._eager(x, tensors, graded, dtype)

    def _eager(self, x: Tensor, tensors: Params, graded: bool, dtype: torch.dtype | None = None) -> Tensor:
        if graded:
            kernel = self._structure.differentiable(x.dtype, x.device)
            params = parameters(self._structure, tensors.values(), dtype)
            y: Tensor = kernel.run(self.spec, kernel.pack(self.spec, params), x)
            return y
        if self._packed is None:
            self._packed = PackedParameters(shared=False)
        kernel, packed = self._packed.get(self._structure, self._text, x, list(tensors.values()), dtype)
        return kernel.run(self.spec, packed, x)

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """The dense layer that computes the same.

        Raises:
            BadInput: the operator is not a linear map of each row (it quantises, or mixes rows).
        """
        reference = self._structure.kernels[0]
        params = {n: t.detach().double() if t.is_floating_point() else t for n, t in self.params.items()}
        packed = reference.pack(self.spec, params)
        generator = torch.Generator().manual_seed(0)

        bias = self.params.get("bias")

        def operator(rows: Tensor) -> Tensor:
            y = reference.run(self.spec, packed, rows)
            return y if bias is None else y - bias.double()

        weight = operator(torch.eye(self.in_features, dtype=torch.float64, device=self.device)).T
        x = torch.randn(64, self.in_features, dtype=torch.float64, generator=generator).to(weight.device)
        y, linear = operator(x), x @ weight.T
        if float((y - linear).norm()) > 1e-6 * float(linear.norm()):
            raise BadInput(
                f"a layer of the family {self.family!r} with {spec_to_json(self.spec)} is no linear map of each row, "
                "so no dense layer equals it"
            )
        dense = nn.Linear(self.in_features, self.out_features, bias=bias is not None)
        dense = dense.to(self.device, self.dtype)
        dense.weight.copy_(weight)
        if bias is not None:
            dense.bias.copy_(bias)
        return dense

    def extra_repr(self) -> str:
        fields = ", ".join(f"{k}={v!r}" for k, v in spec_to_json(self.spec).items())
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"{self.family}({fields})"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without packed parameters, which only this process can use."""
        return {**self.__dict__, "_packed": None}


def fit(layer: Layer, family: str, spec: Any) -> StructuredLinear:
    """A structure fitted to the layer's weight and inputs.

    Raises:
        BadInput: an unknown family, a spec of another family, or one that does not suit the layer's shape.
    """
    module = family_named(family)
    if not isinstance(spec, module.Spec):
        raise BadInput(f"{spec!r} is not a spec of the family {family!r}; make one with {family}.Spec(...)")
    return StructuredLinear(
        layer.in_features,
        layer.out_features,
        family,
        spec,
        module.fit(spec, layer),
        batch=layer.batch,
        dtype=layer.dtype,
    ).to(layer.device)
