"""The passes of a model that capture() records: forward, of the loss and of the output's probes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from basis_search.errors import BadInput
from basis_search.layers.batches import Mask, examples, forward, token_mask
from basis_search.layers.dense_modules import Group
from basis_search.layers.frozen import frozen
from basis_search.layers.metric_sums import MetricSums
from basis_search.layers.probes import Probes, check_parameters
from basis_search.layers.recorder import Pass, Recorder, graph_begins
from basis_search.layers.second_moment import SharedMoments
from basis_search.layers.sensitivity import NOISE_BATCHES


class Passes:
    """All passes of the model, recorded.

    Attributes:
        first: the first `NOISE_BATCHES` batches.
        largest_batch: examples of the largest.
        examples: of all batches.
        gradients: sums over the gradients of the loss.
        metrics: sums over the gradients of the output's probes.
    """

    def __init__(
        self,
        model: nn.Module,
        recorders: list[Recorder],
        now: Pass,
        loss: Callable[[nn.Module, Any], Tensor] | None,
        probes: Probes | None,
        mask: Mask,
    ):
        self.model, self.recorders, self.now, self.loss, self.probes, self.mask = (
            model, recorders, now, loss, probes, mask,
        )  # fmt: skip
        self.first: list[Any] = []
        self.batches = self.largest_batch = self.examples = 0
        self.gradients, self.metrics = SharedMoments(), MetricSums()

    def all(self, batches: Iterable[Any], groups: Sequence[Group]) -> None:
        """Runs every batch; the model is afterwards as it was."""
        if self.probes is not None:
            check_parameters(self.model)
        with frozen(self.model, parameters=self.loss is not None or self.probes is not None), self._hooks(groups):
            for batch in batches:
                self.batches += 1
                if len(self.first) < NOISE_BATCHES:
                    self.first.append(batch)
                for recorder in self.recorders:
                    recorder.start_forward()
                self.now.mask = token_mask(batch, self.mask, default=self.probes is not None)
                self.now.inputs = True
                if self.loss is not None:
                    self._loss_pass(self.loss, batch)
                if self.probes is not None:
                    self._probe_pass(self.probes, batch)
                else:
                    self._count(examples(batch))
                if self.loss is None and self.probes is None:
                    with torch.no_grad():
                        forward(self.model, batch)
                for sums in (self.recorders[0].inputs, self.gradients, self.metrics):
                    sums.flush()
            for recorder in self.recorders:
                recorder.start_forward()
        if self.batches == 0:
            raise BadInput("no batch was given; capture needs at least one batch of real inputs")

    def check_gradients(self) -> None:
        """Refuses gradients that reach no layer, or not those layers that run."""
        if self.loss is not None and not any(r.rows_with_gradient(self.gradients) for r in self.recorders):
            raise BadInput(
                "the loss has no gradient at any captured layer's output: it does not depend on one, or is computed "
                "under torch.no_grad() or from numbers; return a scalar tensor computed from the model's output"
            )
        if self.probes is None:
            return
        apart = [r.name for r in self.recorders if r.without_gradient and not r.rows_with_gradient(self.metrics)]
        if apart:
            raise BadInput(
                f"these layers run under torch.no_grad(), or in reentrant checkpointing of inputs that require no "
                f"gradient, so that no gradient of the output reaches them: {', '.join(apart)}; use "
                "checkpoint(..., use_reentrant=False), or leave them out by exclude=[...]"
            )

    def _loss_pass(self, loss: Callable[[nn.Module, Any], Tensor], batch: Any) -> None:
        self.now.gradients = self.gradients
        with torch.inference_mode(False), torch.enable_grad():
            value = loss(self.model, batch)
            if not bool(torch.isfinite(value)):
                raise BadInput(
                    f"the model's loss is NaN or infinite on batch {self.batches}; repair the model or the data first"
                )
            self.now.inputs = False
            if value.requires_grad:
                value.backward()  # type: ignore[no-untyped-call]

    def _probe_pass(self, probes: Probes, batch: Any) -> None:
        self.now.gradients = self.metrics
        with torch.inference_mode(False), torch.enable_grad():
            f, softmax = probes.output(self.model, batch, self.batches)
            self.now.inputs = False
            self._count(examples(batch, default=len(f) if f.ndim else 1))
            probes.backward(f, softmax, self.now.mask, self.batches)

    def _count(self, count: int) -> None:
        self.largest_batch, self.examples = max(self.largest_batch, count), self.examples + count

    @contextmanager
    def _hooks(self, groups: Sequence[Group]) -> Iterator[None]:
        handles = [
            module.register_forward_hook(recorder, with_kwargs=True)
            for recorder, (_, found) in zip(self.recorders, groups, strict=True)
            for module in {id(d.module): d.module for d in found}.values()
        ]
        if self.probes is not None:  # reentrant checkpointing has gradients only of inputs that require one
            handles += [m.register_forward_hook(graph_begins) for m in self.model.modules() if type(m) is nn.Embedding]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
