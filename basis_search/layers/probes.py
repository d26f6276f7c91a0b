"""Backward passes of random projections of a model's output: the gradients that output metrics are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from basis_search.errors import BadInput, near_miss
from basis_search.layers.batches import TokenMask, forward, tensors

Output = Callable[[nn.Module, Any], Tensor] | bool | None
LIKELIHOODS = ("normal", "softmax")
WAY = "give output= a callable (model, batch) -> floating tensor, such as lambda model, batch: model(**batch)[0]"


class Probes:
    """The output of a model, and v for it: gradients of v . f are those that an output metric sums up.

    Args:
        output: a callable (model, batch) -> f, or True for the first floating tensor of what the model returns.
        likelihood: "normal" draws v standard normal, so that E[g g^T] is of the squared error of f; "softmax" draws a
            label y from softmax(f) at each position, v . f then having the gradient of log p(y): the Fisher matrix.
            None is "softmax" where the model itself names its output `logits`, else "normal".
        count: of probes per batch.
        seed: of v and of the labels.

    Raises:
        BadInput: arguments that are none of these.
    """

    def __init__(self, output: Output, likelihood: str | None, count: int, seed: int):
        if not (callable(output) or output is True):
            raise BadInput(f"output is {output!r}, but a callable or True is needed; {WAY}")
        if likelihood is not None and likelihood not in LIKELIHOODS:
            raise BadInput(f"there is no likelihood {likelihood!r}{near_miss(likelihood, LIKELIHOODS)}")
        if count < 1:
            raise BadInput(f"probes is {count}, but at least 1 backward pass per batch is needed")
        self.count = count
        self._output, self._likelihood, self._seed = output, likelihood, seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def output(self, model: nn.Module, batch: Any, number: int) -> tuple[Tensor, bool]:
        """The output for a batch, and whether labels are drawn from its softmax.

        Raises:
            BadInput: there is no floating tensor with a gradient; `number` names the batch.
        """
        try:
            found, named = (
                (self._output(model, batch), False) if callable(self._output) else _first(forward(model, batch))
            )
        except RuntimeError as problem:
            if "nference tensor" not in str(problem):
                raise
            with _backward():
                raise
        if not isinstance(found, Tensor):
            what = "nothing (None)" if found is None else f"a {type(found).__name__}"
            raise BadInput(f"the output callable returns {what}, but a tensor is needed: return what matters; {WAY}")
        if not found.is_floating_point():
            raise BadInput(
                f"the output is a {found.dtype} tensor, which has no gradient, as of argmax; return the floating "
                "values that it is computed from, such as logits with likelihood='softmax'"
            )
        if not found.requires_grad:
            raise BadInput(
                f"the output has no gradient on batch {number}: it is detached, computed under torch.no_grad() or from "
                "numbers, or depends on no captured layer; return the tensor that the model computes, and capture the "
                "layers that it depends on"
            )
        classes = found.shape[-1] if found.ndim else 0
        if self._likelihood == "softmax" and classes < 2:
            raise BadInput(
                f"the output has shape {tuple(found.shape)}, but likelihood='softmax' needs at least 2 logits along "
                "the last dimension; use likelihood='normal'"
            )
        softmax = named and classes > 1 if self._likelihood is None else self._likelihood == "softmax"
        return found, softmax

    def backward(self, f: Tensor, softmax: bool, mask: TokenMask | None, number: int) -> None:
        """One backward pass per probe from the output; masked positions of the default output count nothing.

        Raises:
            BadInput: the output is NaN or infinite, or the model forbids a backward pass.
        """
        mask = None if callable(self._output) else mask
        seen = f.detach()
        seen = torch.softmax(seen.float(), -1) if softmax else seen  # logits of minus infinity are allowed
        if not bool(torch.isfinite((seen if mask is None else mask.cover(seen)).sum(dtype=torch.float64))):
            raise BadInput(
                f"the model's output is NaN or infinite on batch {number}; repair the model or the data first"
            )
        for index in range(self.count):
            v = self._label(seen) if softmax else self._normal(seen)
            v = (v if mask is None else mask.cover(v)).to(f.dtype)
            with _backward():
                torch.autograd.backward(f, v, retain_graph=index < self.count - 1)

    def _normal(self, f: Tensor) -> Tensor:
        return torch.randn(f.shape, generator=self._generator(f.device), device=f.device)

    def _label(self, p: Tensor) -> Tensor:
        """The gradient of log p(y) at the logits: the unit vector of y less p."""
        uniform = torch.rand(*p.shape[:-1], 1, generator=self._generator(p.device), device=p.device)
        below = p.cumsum(-1)
        labels = (below < uniform * below[..., -1:]).sum(-1, keepdim=True).clamp(max=p.shape[-1] - 1)
        return (-p).scatter_add(-1, labels, torch.ones_like(uniform))

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]


@contextmanager
def _backward() -> Iterator[None]:
    """Within, errors of autograd become sentences."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as problem:
        reason = str(problem).strip().partition("\n")[0]
        raise BadInput(
            f"the model forbids a backward pass: {reason}; replace what has no gradient (attn_implementation='eager', "
            "tensors made outside of torch.inference_mode), or capture without output="
        ) from problem


def check_parameters(model: nn.Module) -> None:
    """Refuses parameters that autograd may not save.

    Raises:
        BadInput: a parameter or buffer was made under torch.inference_mode.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_inference():
            raise BadInput(
                f"{name!r} was made under torch.inference_mode, which forbids a backward pass; load the model outside "
                "of it, or capture without output="
            )


def _first(found: Any) -> tuple[Tensor, bool]:
    """The logits, or the first floating tensor with a dimension; and whether it is called logits."""
    logits = found.get("logits") if isinstance(found, Mapping) else getattr(found, "logits", None)
    if isinstance(logits, Tensor):
        return logits, True
    parts = [tensor for tensor in tensors(found) if tensor.ndim]
    for part in parts:
        if part.is_floating_point():
            return part, False
    if parts:
        return parts[0], False  # refused for its dtype
    raise BadInput(f"the model returns a {type(found).__name__} without a floating tensor; {WAY}")
