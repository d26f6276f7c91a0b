"""Found layers as files any PyTorch model loads: one JSON and one safetensors per layer, nothing executed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from basis_search.errors import BadInput, near_miss
from basis_search.families import family as family_named
from basis_search.families.protocol import Params, spec_from_json, spec_to_json
from basis_search.files import (
    check_document,
    check_finite,
    file_name,
    is_file_name,
    read_json,
    read_tensors,
    sha256,
    write_json,
)
from basis_search.layers.collection import Layers
from basis_search.layers.dense_modules import View, dense
from basis_search.planning.plan import Plan
from basis_search.replacement.layer_config import MAX_BYTES, SCHEMA_VERSION, LayerConfig
from basis_search.replacement.structured_linear import StructuredLinear, fit

INDEX_FORMAT = "basis_search.export"
INDEX = "basis_search.json"
REST = "model.safetensors"


def apply_(model: nn.Module, plan: Plan | str | Path, layers: Layers | None = None) -> nn.Module:
    """Replaces the model's layers in place: by a plan, fitted now, or by what an exported directory holds.

    Args:
        model: its dense layers (nn.Linear, GPT-2's Conv1D, convolutions of size 1) are looked up by full name.
        plan: of `plan()`, or a directory of `save_plan` or `save_pretrained`.
        layers: what the plan is fitted to, where it was read from a file and has none of its own.

    Raises:
        BadInput: the model lacks a layer or has it in another shape, or the directory is damaged. Then the model
            is as it was.
    """
    replace_layers(model, _fitted(plan, layers) if isinstance(plan, Plan) else _built(Path(plan), model))
    return model


def save_plan(
    plan: Plan, directory: str | Path, layers: Layers | None = None, provenance: Mapping[str, Any] | None = None
) -> Path:
    """Fits the plan's layers and writes them: an index, and a JSON and a safetensors file per layer."""
    modules = _fitted(plan, layers)
    evaluations = {name: e.to_json() for name, e in plan.choices.items()}
    return _write(Path(directory), modules, evaluations, provenance or {}, rest=None)


def save_pretrained(model: nn.Module, directory: str | Path) -> Path:
    """Writes the model's structured layers as `save_plan` does, and all its other parameters beside them.

    Raises:
        BadInput: the model has no structured layer, or the directory cannot be written.
    """
    modules = structured_layers(model)
    if not modules:
        raise BadInput("the model has no StructuredLinear; replace layers with apply_ first")
    inside = tuple(f"{name}." for names in modules.values() for name in names)
    rest = {k: v for k, v in model.state_dict().items() if not k.startswith(inside)}
    fastest = {names[0]: {"kernel": module.preferred} for module, names in modules.items() if module.preferred}
    return _write(Path(directory), {tuple(names): module for module, names in modules.items()}, fastest, {}, rest)


def structured_layers(model: nn.Module) -> dict[StructuredLinear, list[str]]:
    """Every structured layer with all its names."""
    found: dict[StructuredLinear, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, StructuredLinear):
            found.setdefault(module, []).append(name)
    return found


def load_pretrained(model: nn.Module, directory: str | Path) -> nn.Module:
    """Puts what `save_pretrained` or `save_plan` wrote into a model of the same architecture, and returns it.

    Raises:
        BadInput: the model lacks a layer or a parameter, shapes differ, or a file is damaged. Then the model is as
            it was.
    """
    directory = Path(directory)
    replacements = _built(directory, model)
    index = read_json(directory / INDEX, MAX_BYTES)
    rest = None
    if index.get("rest") is not None:
        rest = read_tensors(directory, REST, index["rest"])
        inside = tuple(f"{name}." for names in replacements for name in names)
        own = {k: v for k, v in model.state_dict().items() if not k.startswith(inside)}
        if own.keys() != rest.keys():
            odd = sorted(own.keys() ^ rest.keys())
            raise BadInput(
                f"{directory} is of another architecture: {len(odd)} parameters stand on one side only, such as "
                f"{odd[0]!r}"
            )
        for key, tensor in rest.items():
            if tensor.shape != own[key].shape:
                raise BadInput(
                    f"{directory}: {key} has shape {tuple(tensor.shape)}, but the model's has {tuple(own[key].shape)}"
                )
    replace_layers(model, replacements)
    if rest is not None:
        model.load_state_dict(rest, strict=False)
    return model


_Replacements = dict[tuple[str, ...], StructuredLinear]
"""By all names that one layer has in the model."""


def _built(directory: Path, model: nn.Module) -> _Replacements:
    """Sizes are the model's own before anything of a size that a file says is made."""
    configs = _read(directory)
    modules = dict(model.named_modules(remove_duplicate=False))
    for config in configs:
        for name in (config.name, *config.aliases):
            _place(modules, name, config.in_features, config.out_features)
    return {(c.name, *c.aliases): _build(c, directory) for c in configs}


def _fitted(plan: Plan, layers: Layers | None) -> _Replacements:
    result: _Replacements = {}
    for name, evaluation in plan.choices.items():
        layer = plan.layers.get(name) if layers is None else layers[name]
        if layer is None:
            raise BadInput(
                f"the plan does not hold the captured layer {name!r}; pass layers=Layers.load(directory), or apply an "
                "exported directory"
            )
        if layer.content_hash != evaluation.layer_hash:
            raise BadInput(f"the layer {name!r} is not the one the plan was made for: its weights or inputs differ")
        module = fit(layer, evaluation.candidate.family, evaluation.candidate.spec)
        module.prefer(evaluation.kernel)
        result[(name, *layer.aliases)] = module
    return result


def _write(
    directory: Path,
    modules: Mapping[tuple[str, ...], StructuredLinear],
    evaluations: Mapping[str, Mapping[str, Any]],
    provenance: Mapping[str, Any],
    rest: Params | None,
) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        entries = []
        for (name, *aliases), module in modules.items():
            tensors = directory / file_name(name, ".safetensors")
            save_file({k: _plain(v) for k, v in module.params.items()}, tensors)
            config = LayerConfig(
                name=name,
                in_features=module.in_features,
                out_features=module.out_features,
                bias="bias" in module.params,
                dtype=str(module.dtype).removeprefix("torch."),
                batch=module.batch,
                family=module.family,
                spec=spec_to_json(module.spec),
                tensors=tensors.name,
                sha256=sha256(tensors),
                evaluation=evaluations.get(name),
                provenance={**_producer(), **provenance},
                aliases=aliases,
            )
            write_json(directory / file_name(name, ".json"), config.to_json())
            entries.append(file_name(name, ".json"))
        digest = None
        if rest is not None:
            save_file({k: _plain(v) for k, v in rest.items()}, directory / REST)
            digest = sha256(directory / REST)
        # Written last: a directory without it was never finished.
        index = {"format": INDEX_FORMAT, "schema_version": SCHEMA_VERSION, "layers": entries, "rest": digest}
        write_json(directory / INDEX, index)
    except OSError as problem:
        raise BadInput(
            f"{directory} cannot be written: {problem.strerror or problem}; name another directory"
        ) from problem
    return directory


def _producer() -> dict[str, str]:
    from importlib.metadata import version

    return {"basis_search": version("basis_search"), "torch": str(torch.__version__)}


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _read(directory: Path) -> list[LayerConfig]:
    path = directory / INDEX
    if not path.is_file():
        raise BadInput(f"{directory} is no exported directory: it holds no {INDEX}")
    index = read_json(path, MAX_BYTES)
    check_document(index, INDEX_FORMAT, SCHEMA_VERSION, path)
    names = index.get("layers")
    if not isinstance(names, list) or not all(map(is_file_name, names)):
        raise BadInput(f"{path}: layers is not a list of plain file names")
    configs = [LayerConfig.from_json(read_json(directory / name, MAX_BYTES), directory / name) for name in names]
    seen: set[str] = set()
    for config in configs:
        for name in (config.name, *config.aliases):
            if name in seen:
                raise BadInput(f"{path}: the layer {name[:100]!r} is there twice")
            seen.add(name)
    return configs


def _build(config: LayerConfig, directory: Path) -> StructuredLinear:
    """The module, after one row through its reference has shown that tensors and structure belong together."""
    params = read_tensors(directory, config.tensors, config.sha256)
    check_finite(params, directory / config.tensors)
    module = family_named(config.family)
    spec = spec_from_json(module, config.spec)
    for key, tensor in params.items():
        if tensor.dtype in (torch.int16, torch.int32, torch.int64) and bool((tensor < 0).any()):
            raise BadInput(f"layer {config.name!r}: {key!r} holds negative places; restore {config.tensors}")
    if ("bias" in params) != config.bias:
        raise BadInput(f"layer {config.name!r}: the config says bias={config.bias}, but the tensors file disagrees")
    reference = module.KERNELS[0]
    x = torch.zeros(1, config.in_features, dtype=torch.float64)
    try:
        y = reference.run(spec, reference.pack(spec, params), x)
    except (RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, AssertionError) as problem:
        raise BadInput(
            f"layer {config.name!r}: its tensors do not fit its spec {str(dict(config.spec))[:200]}: "
            f"{str(problem).splitlines()[0][:300] if str(problem) else type(problem).__name__}"
        ) from problem
    if config.bias and params["bias"].shape != (config.out_features,):
        raise BadInput(
            f"layer {config.name!r}: its bias has shape {tuple(params['bias'].shape)}, but the config says "
            f"{config.out_features} outputs"
        )
    if y.shape != (1, config.out_features):
        raise BadInput(
            f"layer {config.name!r}: its tensors give {y.shape[-1]} outputs, but the config says {config.out_features}"
        )
    preferred = (config.evaluation or {}).get("kernel")
    built = StructuredLinear(
        config.in_features, config.out_features, config.family, spec, params, batch=config.batch,
        prefer=preferred if isinstance(preferred, str) else None, dtype=getattr(torch, config.dtype),
    )  # fmt: skip
    try:  # what the reference broadcasts, a kernel may not
        with torch.no_grad():
            built(torch.zeros(1, config.in_features, dtype=built.dtype))
    except (RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, AssertionError) as problem:
        raise BadInput(f"layer {config.name!r}: its tensors fit no kernel: {str(problem)[:300]}") from problem
    return built


def replace_layers(model: nn.Module, replacements: _Replacements) -> None:
    """All or nothing: every name and shape is checked before the first module is changed."""
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
    """Where the features of the model's layer lie; raises BadInput if there is none of that name and shape."""
    old = _shape(modules.get(name))
    if old is None:
        linears = [n for n, m in modules.items() if _shape(m) is not None]
        raise BadInput(f"the model has no linear layer {name[:200]!r}{near_miss(name[:200], linears)}")
    if old[:2] != (in_features, out_features):
        raise BadInput(
            f"the model's layer {name!r} is {old[0]} -> {old[1]}, but {in_features} -> {out_features} was found for it"
        )
    return old[2]


def _shape(module: nn.Module | None) -> tuple[int, int, View] | None:
    """Features in and out of a layer that can be replaced, and where they lie."""
    found = module if module is None or isinstance(module, StructuredLinear) else dense(module)
    return None if found is None else (found.in_features, found.out_features, found.view)
