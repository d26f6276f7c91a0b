"""An exported directory: an index, and for each layer a JSON file and a safetensors file; nothing in it is executed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from basis_search.errors import BadInput
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
from basis_search.replacement.layer_config import MAX_BYTES, SCHEMA_VERSION, LayerConfig
from basis_search.replacement.structure import Structure
from basis_search.replacement.structured_linear import StructuredLinear

INDEX_FORMAT = "basis_search.export"
INDEX = "basis_search.json"
REST = "model.safetensors"
"""The model's other parameters, where they were saved as well."""
WRONG_TENSORS = (RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, AssertionError)
"""What a kernel raises for tensors that are not of its spec."""

Replacements = dict[tuple[str, ...], StructuredLinear]
"""By all names that one layer has in the model."""


def write_directory(
    directory: Path,
    modules: Replacements,
    evaluations: Mapping[str, Mapping[str, Any]],
    provenance: Mapping[str, Any],
    rest: Params | None,
) -> Path:
    """Writes the layers, and `rest` in a file next to them; the index last, without which a directory is unfinished.

    Args:
        directory: made if it is not there.
        modules: the layers.
        evaluations: by a layer's first name, for readers and for the kernel to prefer.
        provenance: for readers.
        rest: the model's other parameters, or None.

    Raises:
        BadInput: it cannot be written.
    """
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


def read_configs(directory: Path) -> list[LayerConfig]:
    """What the directory says of its layers, without their tensors.

    Raises:
        BadInput: it is not an exported directory, or one of its JSON files is damaged.
    """
    path = directory / INDEX
    if not path.is_file():
        exports = sorted((directory / "export").glob(f"*/{INDEX}"))
        hint = f"; the run's exported plans are in {exports[0].parent} and next to it" if exports else ""
        raise BadInput(f"{directory} is no exported directory: it holds no {INDEX}{hint}")
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


def read_rest(directory: Path) -> Params | None:
    """The model's other parameters; None where only layers were saved. Raises BadInput where they are damaged."""
    digest = read_json(directory / INDEX, MAX_BYTES).get("rest")
    return None if digest is None else read_tensors(directory, REST, digest)


def build(config: LayerConfig, directory: Path) -> StructuredLinear:
    """The layer with its tensors.

    Raises:
        BadInput: the tensors file is missing, damaged, or of another structure.
    """
    params = read_tensors(directory, config.tensors, config.sha256)
    check_finite(params, directory / config.tensors)
    spec = spec_from_json(family_named(config.family), config.spec)
    for key, tensor in params.items():
        if tensor.dtype in (torch.int16, torch.int32, torch.int64) and bool((tensor < 0).any()):
            raise BadInput(f"layer {config.name!r}: {key!r} holds negative places; restore {config.tensors}")
    if ("bias" in params) != config.bias:
        raise BadInput(f"layer {config.name!r}: the config says bias={config.bias}, but the tensors file disagrees")
    preferred = (config.evaluation or {}).get("kernel")
    structure = Structure(
        config.in_features, config.out_features, config.batch, config.family, spec, tuple(params),
        prefer=preferred if isinstance(preferred, str) else None,
    )  # fmt: skip
    return assemble(config.name, structure, params, getattr(torch, config.dtype))


def assemble(name: str, structure: Structure, params: Params, dtype: torch.dtype) -> StructuredLinear:
    """The layer, after one row through its reference and its kernel has shown that the tensors are of its structure.

    Raises:
        BadInput: they are not; `name` is the layer's in the message.
    """
    reference, spec, out = structure.kernels[0], structure.spec, structure.out_features
    x = torch.zeros(1, structure.in_features, dtype=torch.float64)
    try:
        y = reference.run(spec, reference.pack(spec, params), x)
    except WRONG_TENSORS as problem:
        raise BadInput(
            f"layer {name!r}: its tensors do not fit its spec {str(spec_to_json(spec))[:200]}: "
            f"{str(problem).splitlines()[0][:300] if str(problem) else type(problem).__name__}"
        ) from problem
    if "bias" in params and params["bias"].shape != (out,):
        raise BadInput(f"layer {name!r}: its bias has shape {tuple(params['bias'].shape)}, but it has {out} outputs")
    if y.shape != (1, out):
        raise BadInput(f"layer {name!r}: its tensors give {y.shape[-1]} outputs, but it has {out}")
    module = StructuredLinear(
        structure.in_features, out, structure.family, spec, params, batch=structure.batch, prefer=structure.prefer,
        dtype=dtype,
    )  # fmt: skip
    try:  # what the reference broadcasts, a kernel may not
        with torch.no_grad():
            module(torch.zeros(1, structure.in_features, dtype=module.dtype))
    except WRONG_TENSORS as problem:
        raise BadInput(f"layer {name!r}: its tensors fit no kernel: {str(problem)[:300]}") from problem
    return module
