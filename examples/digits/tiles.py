"""Strassen-Tile layers in the digits transformer: initialization, cost and learning rates."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from model import BLOCKS, DigitsTransformer, batches
from torch import Tensor, nn

import basis_search as bs
from basis_search.families import dense, lowrank, stl
from basis_search.families.stl.fit import encode_weight
from basis_search.schemes.numerical import approximation, starts, ternary_catalogue

TILE = 4
TOKENS = 16
"""Rows per image: a tile holds four tokens of one image."""
BATCH = 32
BLOCK_LAYERS = tuple(f"blocks.{i}.{name}" for i in range(BLOCKS) for name in ("qkv", "proj", "fc1", "fc2"))
ENDS = ("embed", "head")
"""Dense by default: with 4 inputs the embedding costs more in tiles, and the head has one row per image."""

RATE, WEIGHTS_RATE, BASES_RATE = 1e-3, 1.6e-3, 4e-4
"""AdamW changes every parameter by about its rate, whatever its gradient, so each kind needs a separate rate. Norms,
biases and dense layers have RATE. An encoded weight acts through a row of E and a column of D: WEIGHTS_RATE is for rows
and columns of length 1 and is divided by their lengths, so that a step changes the outputs equally whatever the
arbitrary scale of the bases (the catalogue's real bases are about thirteen times as long as normal ones; with one rate
for all, starts would be compared by their scale). Each entry of a basis acts on all tiles: BASES_RATE is relative to
the entries' size. Bases have no weight decay: the encoded weights would only grow to compensate."""

START_NAMES = ("random", "catalogue", "ternary", "strassen", "polynomial")


def factors(start: str, rank: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """E [r, 16], E_W [r, 16] and D^T [r, 16] of a start.

    "catalogue": the best approximate bases of the catalogue; "ternary": its best bases of -1, 0 and 1, which are not
    trained, so that they still cost only additions; "strassen": `rank` of the 49 terms of Strassen's scheme nested
    once; "polynomial": `rank` terms of rows times columns by Toom-Cook; "random": normal entries.
    """
    rng = np.random.default_rng(seed)
    form = (TILE, TILE, TILE)
    if start in ("catalogue", "ternary"):
        kept = (approximation if start == "catalogue" else ternary_catalogue).load(*form, rank)
        found = kept.U, kept.V, kept.W
    elif start == "strassen":
        terms = rng.choice(49, rank, replace=False)
        whole = starts.exact(form, 49)[0]
        found = whole[0][terms], whole[1][terms], whole[2][terms]
    elif start == "polynomial":
        found = starts.polynomial(form, rank, rng)
    else:
        found = starts.noise(form, rank, rng)
    E, V, W = (torch.from_numpy(np.ascontiguousarray(f)) for f in found)
    return E, V, W


def started(linear: nn.Linear, start: str, rank: int, seed: int) -> bs.StructuredLinear:
    """An stl layer whose outputs have the variance of the dense layer's on white inputs."""
    E, V, W = factors(start, rank, seed)
    D = W.T.contiguous()
    weight = linear.weight.detach().double()
    encoded = encode_weight(V, weight, TILE)
    flat = encoded.flatten(1)
    gain = ((D.T @ D) * (E @ E.T) * (flat @ flat.T)).sum() / (TILE * weight.square().sum())
    encoded = encoded / gain.sqrt()
    params = {"weight": encoded, "encode": E, "decode": D, "bias": linear.bias.detach().double()}
    params = {name: tensor.float() for name, tensor in params.items()}
    params["out_features"] = torch.tensor(linear.out_features)
    spec = stl.Spec(TILE, rank, "ternary" if start == "ternary" else "approximate")
    return bs.StructuredLinear(linear.in_features, linear.out_features, "stl", spec, params, batch=BATCH * TOKENS)


def replaced(model: nn.Module, layer_of: Callable[[str, nn.Linear], nn.Module], names: tuple[str, ...]) -> nn.Module:
    """A copy of the model with the layers of those names replaced."""
    model = copy.deepcopy(model)
    for name in names:
        parent, _, child = name.rpartition(".")
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        setattr(model.get_submodule(parent), child, layer_of(name, linear))
    return model


def flops(model: nn.Module) -> float:
    """Operations of all linear layers over those of the dense model, including encode, decode and padding."""
    spent = whole = 0.0
    plain = DigitsTransformer()
    for name in (*BLOCK_LAYERS, *ENDS):
        linear, now = plain.get_submodule(name), model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        rows = BATCH * (1 if name == "head" else TOKENS)
        shape = bs.LayerShape(linear.in_features, linear.out_features, rows)
        share = dense.cost(dense.Spec(), shape).flops
        whole += share
        if isinstance(now, bs.StructuredLinear):
            module = {"stl": stl, "lowrank": lowrank}[now.family]
            share = module.cost(now.spec, shape).flops
        spent += share
    return spent / whole


@dataclass(frozen=True)
class Rates:
    """Peak learning rates: of encoded weights with bases of unit length, of bases relative to their entries (0: bases
    are not trained), of all other parameters."""

    weights: float = WEIGHTS_RATE
    bases: float = BASES_RATE
    rest: float = RATE


def groups(model: nn.Module, rates: Rates) -> list[dict[str, Any]]:
    """AdamW's parameter groups: the rest, then each layer's encoded weights and bases; also freezes untrained bases."""
    found: list[dict[str, Any]] = []
    for module in model.modules():
        if isinstance(module, bs.StructuredLinear) and module.family == "stl":
            named = dict(module.operator.named_parameters())
            encode, decode = named["encode"], named["decode"]  # [r, 16], [16, r]
            with torch.no_grad():
                length = float((encode.square().sum(dim=1) * decode.square().sum(dim=0)).mean().sqrt())
                sizes = [(basis, float(basis.square().mean().sqrt())) for basis in (encode, decode)]
            found.append({"params": [named["weight"]], "lr": rates.weights / length})
            trains = rates.bases > 0 and module.spec.basis == "approximate"
            for basis, size in sizes:
                basis.requires_grad_(trains)
                found.append({"params": [basis], "lr": rates.bases * size if trains else 0.0, "weight_decay": 0.0})
    apart = {id(parameter) for group in found for parameter in group["params"]}
    rest = [p for p in model.parameters() if id(p) not in apart]
    return [{"params": rest, "lr": rates.rest}, *found]


def optimise(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    rates: Rates,
    seed: int,
    decay: float = 0.05,
) -> None:
    """AdamW with a one-cycle rate on `loss(images, labels)`, in batches of BATCH."""
    generator = torch.Generator().manual_seed(seed)
    parts = groups(model, rates)
    optimizer = torch.optim.AdamW(parts, weight_decay=decay)
    steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [part["lr"] for part in parts], total_steps=steps)
    model.train()
    for _ in range(epochs):
        for x, y in batches(images, labels, BATCH, generator):
            optimizer.zero_grad(set_to_none=True)
            loss(x, y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()


def classify(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross entropy with label smoothing."""
    return lambda x, y: F.cross_entropy(model(x), y, label_smoothing=0.05)
