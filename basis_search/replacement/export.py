"""Replace a model's layers by a plan's choices or an exported directory; save the replaced layers and load them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from basis_search.errors import BadInput, near_miss
from basis_search.evaluation import fitted_store
from basis_search.evaluation.candidate import Evaluation
from basis_search.layers.collection import Layers
from basis_search.layers.dense_modules import View, dense
from basis_search.layers.device import usable_dtype
from basis_search.layers.layer import Layer
from basis_search.planning.plan import Plan
from basis_search.replacement.exported_directory import (
    Replacements,
    assemble,
    build,
    read_configs,
    read_rest,
    write_directory,
)
from basis_search.replacement.structure import Structure
from basis_search.replacement.structured_linear import StructuredLinear, fit


def apply_(model: nn.Module, plan: Plan | str | Path, layers: Layers | None = None) -> nn.Module:
    """Replaces the model's layers in place by a plan's choices or by the layers of an exported directory.

    Args:
        model: its dense layers (nn.Linear, GPT-2's Conv1D, convolutions of size 1) are looked up by full name.
        plan: of `plan()`, or a directory of `save_plan` or `save_pretrained`, such as RUN/export/flops-0.50. Choices
            whose parameters their search stored have those; all others are fitted.
        layers: what the plan is fitted to, where it was read from a file and holds no layers.

    Each replacement goes to the device of the layer that it replaces, in the dtype that the plan was searched in.

    Raises:
        BadInput: the model lacks a layer, has it in another shape or without values (on the meta device), or the
            directory is damaged. Then the model is unchanged.
    """
    _require_values(model)
    replacements = _fitted(plan, layers) if isinstance(plan, Plan) else _built(Path(plan), model)
    _name_other_dtypes(model, replacements)
    replace_layers(model, replacements)
    return model


def save_plan(
    plan: Plan, directory: str | Path, layers: Layers | None = None, provenance: Mapping[str, Any] | None = None
) -> Path:
    """Writes the layers that `apply_` would put into a model: an index, and a JSON and a safetensors file per layer.

    Args:
        plan, layers: as of `apply_`.
        directory: made if it is not there.
        provenance: JSON values for readers of the files.

    Raises:
        BadInput: a layer of the plan is missing or another, or the directory cannot be written.
    """
    modules = _fitted(plan, layers)
    evaluations = {name: e.to_json() for name, e in plan.choices.items()}
    return write_directory(Path(directory), modules, evaluations, provenance or {}, rest=None)


def save_pretrained(model: nn.Module, directory: str | Path) -> Path:
    """Writes the model's structured layers as `save_plan` does, and all its other parameters.

    Raises:
        BadInput: the model has no structured layer, or the directory cannot be written.
    """
    modules = structured_layers(model)
    if not modules:
        raise BadInput("the model has no StructuredLinear; replace layers with apply_ first")
    inside = tuple(f"{name}." for names in modules.values() for name in names)
    rest = {k: v for k, v in model.state_dict().items() if not k.startswith(inside)}
    fastest = {names[0]: {"kernel": module.preferred} for module, names in modules.items() if module.preferred}
    return write_directory(
        Path(directory), {tuple(names): module for module, names in modules.items()}, fastest, {}, rest
    )


def _require_values(model: nn.Module) -> None:
    """Raises BadInput where a layer is on the meta device: what is put in its place would be lost there."""
    for name, module in model.named_modules():
        if dense(module) is not None and next(module.parameters()).is_meta:
            raise BadInput(
                f"the model's layer {name!r} is on the meta device, which holds no values; load the model's weights "
                "first, or take its offloaded layers back from accelerate's hooks"
            )


def _name_other_dtypes(model: nn.Module, replacements: Replacements) -> None:
    """Prints where replacements run in another dtype than the model's layers, which then needs autocast."""
    modules = dict(model.named_modules(remove_duplicate=False))
    pairs = {
        (str(module.dtype), str(next(modules[names[0]].parameters()).dtype)): names[0]
        for names, module in replacements.items()
        if names[0] in modules
    }
    for (new, old), name in pairs.items():
        if new != old:
            print(
                f"layer {name!r} was searched in {new}, but the model's runs in {old}: convert the model, as with "
                f"model.to({new}), or run it under autocast",
                file=sys.stderr,
            )


def structured_layers(model: nn.Module) -> dict[StructuredLinear, list[str]]:
    """Every structured layer with all its names."""
    found: dict[StructuredLinear, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, StructuredLinear):
            found.setdefault(module, []).append(name)
    return found


def load_pretrained(model: nn.Module, directory: str | Path) -> nn.Module:
    """Loads what `save_pretrained` or `save_plan` wrote into a model of the same architecture, and returns it.

    Raises:
        BadInput: the model lacks a layer or a parameter, shapes differ, or a file is damaged. Then the model is
            unchanged.
    """
    _require_values(model)
    directory = Path(directory)
    replacements = _built(directory, model)
    rest = read_rest(directory)
    if rest is not None:
        inside = tuple(f"{name}." for names in replacements for name in names)
        own = {k: v for k, v in model.state_dict().items() if not k.startswith(inside)}
        if own.keys() != rest.keys():
            odd = sorted(own.keys() ^ rest.keys())
            raise BadInput(
                f"{directory} is of another architecture: {len(odd)} parameters are only in one of the two, such as "
                f"{odd[0]!r}"
            )
        for key, tensor in rest.items():
            if tensor.shape != own[key].shape:
                raise BadInput(
                    f"{directory}: {key} has shape {tuple(tensor.shape)}, but the model's has {tuple(own[key].shape)}"
                )
    _name_other_dtypes(model, replacements)
    replace_layers(model, replacements)
    if rest is not None:
        model.load_state_dict(rest, strict=False)
    return model


def _built(directory: Path, model: nn.Module) -> Replacements:
    configs = read_configs(directory)
    modules = dict(model.named_modules(remove_duplicate=False))
    for config in configs:  # before anything of a size that a file says is allocated
        for name in (config.name, *config.aliases):
            _place(modules, name, config.in_features, config.out_features)
    return {(c.name, *c.aliases): build(c, directory) for c in configs}


def _fitted(plan: Plan, layers: Layers | None) -> Replacements:
    result: Replacements = {}
    for name, evaluation in plan.choices.items():
        layer = plan.layers.get(name) if layers is None else layers[name]
        if layer is None:
            raise BadInput(
                f"the plan does not hold the captured layer {name!r}; pass layers=Layers.load(directory), or apply an "
                "exported directory"
            )
        if (layer := _as_evaluated(layer, evaluation)) is None:
            raise BadInput(f"the layer {name!r} is not the one the plan was made for: its weights or inputs differ")
        module = _stored(layer, evaluation)
        if module is None:
            module = fit(layer, evaluation.candidate.family, evaluation.candidate.spec)
        module.prefer(evaluation.kernel)
        result[(name, *layer.aliases)] = module
    return result


def _as_evaluated(layer: Layer, evaluation: Evaluation) -> Layer | None:
    """The layer as it was evaluated, on the CPU where that was on a GPU and there is none; None if it is another.

    Layers loaded from a file run on the CPU in the dtype that they were captured in, wherever they were searched.
    """
    if layer.content_hash != evaluation.layer_hash:
        device = torch.device("cuda" if evaluation.device.is_gpu else "cpu")
        dtype = usable_dtype(evaluation.kind.rpartition(", ")[2]) if evaluation.kind else layer.dtype
        layer = replace(layer, device=device, dtype=dtype)
        if layer.content_hash != evaluation.layer_hash:
            return None
    return layer if torch.cuda.is_available() else layer.to("cpu")


def _stored(layer: Layer, evaluation: Evaluation) -> StructuredLinear | None:
    """The layer with the parameters that its search stored.

    Returns:
        None where no search has stored any, or where they cannot be used; then a line on stderr says why.
    """
    try:
        params = fitted_store.find(evaluation)
        if params is None:
            return None
        if ("bias" in params) != (layer.bias is not None):
            raise BadInput("its stored parameters and the layer differ in whether there is a bias")
        family, spec = evaluation.candidate.family, evaluation.candidate.spec
        structure = Structure(layer.in_features, layer.out_features, layer.batch, family, spec, tuple(params))
        return assemble(layer.name, structure, params, layer.dtype).to(layer.device)
    except BadInput as problem:
        print(f"layer {layer.name!r} is fitted again: {problem}", file=sys.stderr)
        return None


def replace_layers(model: nn.Module, replacements: Replacements) -> None:
    """Puts the layers into the model; every name and shape is checked before the first module is replaced."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for names, new in replacements.items():
        for name in names:
            new.view = _place(modules, name, new.in_features, new.out_features)
    for names, new in replacements.items():
        device = next(iter(modules[names[0]].parameters())).device
        new.to(device).train(model.training)
        for name in names:
            parent, _, leaf = name.rpartition(".")
            setattr(modules[parent], leaf, new)


def _place(modules: Mapping[str, nn.Module], name: str, in_features: int, out_features: int) -> View:
    """How rows lie in the model's layer of that name; raises BadInput if there is none of that shape."""
    old = _shape(modules.get(name))
    if old is None:
        linears = [n for n, m in modules.items() if _shape(m) is not None]
        raise BadInput(f"the model has no linear layer {name[:200]!r}{near_miss(name[:200], linears)}")
    if old[:2] != (in_features, out_features):
        raise BadInput(
            f"the model's layer {name!r} is {old[0]} -> {old[1]}, but the replacement is {in_features} -> "
            f"{out_features}"
        )
    return old[2]


def _shape(module: nn.Module | None) -> tuple[int, int, View] | None:
    """Features in and out of a layer that can be replaced, and how its rows lie."""
    found = module if module is None or isinstance(module, StructuredLinear) else dense(module)
    return None if found is None else (found.in_features, found.out_features, found.view)
