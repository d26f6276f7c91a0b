"""What layers of one input see in two models on the same batches: samples of rows, and moments of all rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from basis_search.layers.batches import forward, token_mask
from basis_search.layers.dense_modules import View
from basis_search.layers.row_sample import RowSample


@dataclass(frozen=True)
class PairedInputs:
    """Inputs x of a layer in the dense model and x' in the replaced one; the same rows in the same order.

    Attributes:
        inputs, held_out: x', samples of the rows to fit on and of those held out, [samples, in].
        dense_held_out: x of the held-out rows.
        rows: number of all rows to fit on.
        moment, cross: sums of x' x'^T and of x x'^T over these, [in, in], float64.
        mean, dense_mean: of x' and x over these, [in], float64.
        call_rows: rows of the largest call.
    """

    inputs: Tensor
    held_out: Tensor
    dense_held_out: Tensor
    rows: int
    moment: Tensor
    cross: Tensor
    mean: Tensor
    dense_mean: Tensor
    call_rows: int


class _Reached(Exception):
    """Ends a forward pass at the layer whose inputs are wanted."""


def paired_inputs(
    original: nn.Module,
    model: nn.Module,
    names: Sequence[str],
    batches: Sequence[Any],
    view: View,
    samples: int,
    seed: int,
    masked: bool,
) -> PairedInputs:
    """Of the layer of these names in both models.

    Args:
        masked: leave padding out, as dict batches' "attention_mask" tells it, as `capture` does with an output.

    Raises:
        BadInput: there are too few examples to hold any out.
    """
    ours, dense = RowSample(samples, seed), RowSample(samples, seed)
    totals: dict[str, Tensor] = {}
    count = 0
    for batch in batches:
        pair, mask = [], token_mask(batch, None, default=masked)
        for sample, run in ((dense, original), (ours, model)):
            sample.start_batch()
            pair.append([sample.add(x, mask) for x in _seen(run, names, batch, view)])
        x, x_new = (torch.cat(rows) if rows else None for rows in pair)
        if x is None or x_new is None or len(x) == 0:  # held out, or the layer did not run
            continue
        count += len(x)
        wide = x if x.dtype == torch.float64 else x.float()
        wide_new = x_new if x.dtype == torch.float64 else x_new.float()
        for name, term in (
            ("moment", wide_new.T @ wide_new),
            ("cross", wide.T @ wide_new),
            ("mean", wide_new.sum(0)),
            ("dense_mean", wide.sum(0)),
        ):
            totals[name] = totals[name] + term.double() if name in totals else term.double()
    (inputs, held_out), (_, dense_held_out) = ours.tensors(names[0]), dense.tensors(names[0])
    totals |= {name: totals[name] / count for name in ("mean", "dense_mean")}
    return PairedInputs(inputs, held_out, dense_held_out, count, call_rows=ours.call_rows, **totals)


def _seen(model: nn.Module, names: Sequence[str], batch: Any, view: View) -> list[Tensor]:
    """Inputs of all calls in one forward pass, which ends there if the layer has one name."""
    found: list[Tensor] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> None:
        found.append(view.rows((args[0] if args else next(iter(kwargs.values()))).detach().clone()))
        if len(names) == 1:
            raise _Reached

    modules = {id(m): m for m in (model.get_submodule(name) for name in names)}.values()
    handles = [module.register_forward_hook(record, with_kwargs=True) for module in modules]
    try:
        with torch.no_grad():
            forward(model, batch)
        return found
    except _Reached:
        return found
    finally:
        for handle in handles:
            handle.remove()
