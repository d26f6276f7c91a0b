"""The dense layer to replace: its weight, its bias, and samples of the inputs that it sees in the model."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.layers.device import is_on, usable_device, usable_dtype
from basis_search.layers.output_metric import OutputMetric
from basis_search.layers.row_sample import hold_out


class LayerLike(Protocol):
    """A layer as cost models and kernels see it: sizes, dtype and device, no weights and no inputs."""

    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...


TENSORS = ("weight", "bias", "inputs", "held_out", "moment", "gradient_moment")


@dataclass(frozen=True)
class LayerShape:
    """A `LayerLike` and no more; `batch` is the number of rows of one call."""

    in_features: int
    out_features: int
    batch: int = 1
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Layer:
    """A dense layer y = x W^T + b and samples of its inputs.

    Args:
        name: its fully qualified name in the model.
        weight: [out, in].
        bias: [out] or None.
        inputs: [samples, in], the rows a fit may see.
        held_out: [samples', in], the rows on which a fit is evaluated and which it never sees.
        batch: rows of one call of the layer; latency and cost are per call.
        dtype, device: of the layer as it runs; the tensors here may have another floating dtype and lie elsewhere.
        sensitivity: rise of the model's loss per unit of relative squared output error; 1 if not measured.
        moment: [in, in] E[x x^T] over more rows than `inputs` has, or None.
        gradient_moment: [out, out] second moment of the gradient of the loss at the output, or None.
        calls: calls of the layer in one forward pass of the model; more than 1 where modules share it.
        aliases: other names in the model of the same weight, replaced together with this one.
        output_metric: what the model's output feels of errors at this layer's output, summed over its calls; or None.

    Raises:
        BadInput: shapes disagree, a sample set is empty, or a value is NaN or infinite.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    inputs: Tensor
    held_out: Tensor
    batch: int
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")
    sensitivity: float = 1.0
    moment: Tensor | None = None
    gradient_moment: Tensor | None = None
    calls: int = 1
    aliases: tuple[str, ...] = ()
    output_metric: OutputMetric | None = None

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or 0 in self.weight.shape:
            raise BadInput(
                f"layer {self.name!r}: the weight has shape {tuple(self.weight.shape)}, but [out, in] with both >= 1 "
                "is needed"
            )
        if self.bias is not None and self.bias.shape != (self.out_features,):
            raise BadInput(
                f"layer {self.name!r}: the bias has shape {tuple(self.bias.shape)}, but the weight has "
                f"{self.out_features} rows; pass a bias of shape [{self.out_features}] or None"
            )
        for label, rows in (("inputs", self.inputs), ("held_out", self.held_out)):
            if rows.ndim != 2 or rows.shape[1] != self.in_features:
                raise BadInput(
                    f"layer {self.name!r}: {label} has shape {tuple(rows.shape)}, but [samples, {self.in_features}] is "
                    "needed (the weight has that many columns)"
                )
            if len(rows) == 0:
                raise BadInput(
                    f"layer {self.name!r}: {label} is empty; give at least one row of real inputs to fit on and one to "
                    "evaluate on"
                )
        for label, moment, width in (
            ("moment", self.moment, self.in_features),
            ("gradient_moment", self.gradient_moment, self.out_features),
        ):
            if moment is not None and moment.shape != (width, width):
                raise BadInput(
                    f"layer {self.name!r}: {label} has shape {tuple(moment.shape)}, but [{width}, {width}] is needed; "
                    "pass None to do without"
                )
        if self.output_metric is not None and self.output_metric.width != self.out_features:
            raise BadInput(
                f"layer {self.name!r}: output_metric is of {self.output_metric.width} outputs, but the layer has "
                f"{self.out_features}; pass None to do without"
            )
        if self.batch < 1:
            raise BadInput(f"layer {self.name!r}: batch is {self.batch}, but at least 1 row per call is needed")
        if self.calls < 1:
            raise BadInput(f"layer {self.name!r}: calls is {self.calls}, but a forward pass calls it at least once")
        for label in TENSORS:
            tensor = getattr(self, label)
            if tensor is not None and not _finite(tensor):
                bad = int((~torch.isfinite(tensor)).sum())
                raise BadInput(
                    f"layer {self.name!r}: {label} holds {bad} NaN or infinite values out of {tensor.numel()}; repair "
                    "the checkpoint or drop those rows"
                )

    @classmethod
    def from_linear(
        cls,
        linear: torch.nn.Linear,
        inputs: Tensor,
        name: str = "linear",
        *,
        batch: int | None = None,
        seed: int = 0,
    ) -> Layer:
        """A layer from a module and inputs that it sees; a random quarter of the examples is held out, by `seed`.

        Args:
            linear: the module.
            inputs: [rows, in], each row an example, or [examples, ..., in], whose examples are held out whole.
            name: of the layer.
            batch: rows of one call; by default the number of rows given.
            seed: of the examples held out.

        Raises:
            BadInput: fewer than two examples, a wrong width, NaN or infinite values.
        """
        if inputs.ndim == 0 or inputs.shape[-1] != linear.in_features:
            raise BadInput(
                f"layer {name!r}: the inputs have shape {tuple(inputs.shape)}, but the last dimension must be "
                f"{linear.in_features}"
            )
        rows = inputs.detach().reshape(-1, linear.in_features)
        if len(rows) < 2:
            raise BadInput(
                f"layer {name!r}: {len(rows)} rows of inputs were given, but at least 2 are needed: some to fit on, "
                "some to evaluate on"
            )
        examples = inputs.detach() if inputs.ndim > 2 else rows
        if len(examples) < 2:
            raise BadInput(
                f"layer {name!r}: the inputs have shape {tuple(inputs.shape)}, which is one example along dimension 0, "
                "but at least 2 are needed: some to fit on, some to evaluate on; flatten them to [rows, in] if each "
                "row is an example"
            )
        fit, held_out = (index.to(rows.device) for index in hold_out(len(examples), seed))
        return cls(
            name=name,
            weight=linear.weight.detach(),
            bias=None if linear.bias is None else linear.bias.detach(),
            inputs=examples[fit].reshape(-1, linear.in_features),
            held_out=examples[held_out].reshape(-1, linear.in_features),
            batch=len(rows) if batch is None else batch,
            dtype=linear.weight.dtype,
            device=linear.weight.device,
        )

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def shape(self) -> LayerShape:
        return LayerShape(self.in_features, self.out_features, self.batch, self.dtype, self.device)

    @property
    def kind(self) -> str:
        """Rows, features, bias and dtype: layers of one kind share measured latencies."""
        bias = "" if self.bias is None else " with bias"
        return f"{self.batch} x {self.in_features} -> {self.out_features}{bias}, {self.dtype}"

    @cached_property
    def second_moment(self) -> Tensor:
        """E[x x^T] over all rows that a fit may see, [in, in], float64."""
        if self.moment is not None:
            return self.moment.double()
        x = self.inputs.double()
        return x.T @ x / len(x)

    @cached_property
    def metric_sensitivity(self) -> float | None:
        """tr(G W S W^T), the damage of the output 0 in units of the model output's squared error; None without G."""
        if self.output_metric is None:
            return None
        if self in _originals and (original := _originals[self]()) is not None:
            return original.metric_sensitivity
        placed = self.on_device()
        assert placed.output_metric is not None
        return max(0.0, float(placed.output_metric.damage(placed.weight.double(), placed.second_moment)))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors that are there, by their names in a file."""
        own = {name: tensor for name in TENSORS if (tensor := getattr(self, name)) is not None}
        return own if self.output_metric is None else own | self.output_metric.tensors()

    def moved(self, move: Callable[[Tensor], Tensor]) -> Layer:
        """The layer of the tensors that `move` makes of its tensors; they lie elsewhere, and are the same."""
        moved: dict[str, Any] = {n: move(tensor) for n in TENSORS if (tensor := getattr(self, n)) is not None}
        if self.output_metric is not None:
            moved["output_metric"] = self.output_metric.moved(move)
        return replace(self, **moved)

    def to(self, device: str | int | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Layer:
        """The same layer, running on another device or in another dtype; its tensors are shared, not moved or cast.

        Raises:
            BadInput: a device that torch does not see, or a dtype in which no dense layer runs.
        """
        device = self.device if device is None else usable_device(device)
        dtype = self.dtype if dtype is None else usable_dtype(dtype)
        return self if (device, dtype) == (self.device, self.dtype) else replace(self, device=device, dtype=dtype)

    def on_device(self) -> Layer:
        """The same layer with all tensors on `device`: itself if they lie there.

        A copy is kept until another layer is copied or this one is gone, so that a device holds one layer at a time.
        """
        global _copy
        if all(is_on(tensor, self.device) for tensor in self.tensors.values()):
            return self
        if _copy is not None and _copy[0]() is self:
            return _copy[1]
        usable_device(self.device)
        _copy = None  # frees its memory first
        copy = self.moved(lambda tensor: tensor.to(self.device))
        _originals[copy] = weakref.ref(self)
        _copy = weakref.ref(self, _forget), copy
        return copy

    @cached_property
    def content_hash(self) -> str:
        """sha256 of everything that an evaluation of the layer depends on; key of caches and resumed searches.

        It is the same wherever the tensors lie.
        """
        if self in _originals and (original := _originals[self]()) is not None:
            return original.content_hash
        digest = hashlib.sha256()
        digest.update(repr((self.name, self.batch, str(self.dtype), self.device.type)).encode())
        for tensor in (self.weight, self.bias, self.inputs, self.held_out, self.moment):
            if tensor is not None:
                digest.update(repr((str(tensor.dtype), tuple(tensor.shape))).encode())
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        for name, tensor in {} if self.output_metric is None else self.output_metric.tensors().items():
            digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def _finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite: so if their sum is finite, which is read faster; it may overflow."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


_copy: tuple[weakref.ref[Layer], Layer] | None = None  # the layer that `on_device` copied last
_originals: weakref.WeakKeyDictionary[Layer, weakref.ref[Layer]] = weakref.WeakKeyDictionary()


def _forget(original: weakref.ref[Layer]) -> None:
    global _copy
    if _copy is not None and _copy[0] is original:
        _copy = None
