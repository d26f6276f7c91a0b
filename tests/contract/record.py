#!/usr/bin/env python3
"""Records the public contract into tests/contract/recorded: signatures, settings, formats, files of this version.

Run it only to record a deliberate change of the contract; test_contract.py loads and compares what it wrote.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import inspect
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

import basis_search as bs

RECORDED = Path(__file__).resolve().parent / "recorded"
SPECS: dict[str, dict[str, Any]] = {
    "dense": {},
    "int8": {},
    "lowrank": {"rank": 3},
    "stl": {"tile": 2, "rank": 7, "basis": "strassen"},
    "kronecker": {"chain": "(1,4,4,4)*(4,4,3,1)"},
    "pq": {"codebooks": 3},
}
MODULES = (
    "basis_search.record",
    "basis_search.torch_operator",
    "basis_search.huggingface",
    "basis_search.structured",
    "basis_search.families",
    "basis_search.schemes",
    "basis_search.schemes.actions",
    "basis_search.schemes.additions",
    "basis_search.schemes.alternative_basis",
    "basis_search.schemes.constructions",
    "basis_search.schemes.emit",
    "basis_search.schemes.formats",
    "basis_search.schemes.points",
    *(f"basis_search.families.{family}" for family in SPECS),
)
"""Import paths that the guides name."""
COMMANDS = ("watch", "report", "export", "kernels", "storage-proxy")


def a_model() -> nn.Sequential:
    """The model that all recorded files are of; its weights come from the recorded export."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 5)).eval()


def an_input(rows: int = 64) -> torch.Tensor:
    """[rows, 12], equal in every run."""
    return torch.sin(torch.arange(rows * 12, dtype=torch.float32)).reshape(rows, 12)


def signature(value: Any) -> str:
    """Names, order, kinds and defaults of the parameters; without annotations, addresses and paths."""
    found = inspect.signature(value)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
    text = str(found.replace(parameters=bare, return_annotation=inspect.Signature.empty))
    return re.sub(r" at 0x[0-9a-f]+|(?<=PosixPath\()'[^']*'", "", text)


def described(value: Any) -> Any:
    """What a user may rely on: a function's signature, a class's public members, a module's public names."""
    if inspect.ismodule(value):
        return {name: described(getattr(value, name)) for name in sorted(public(value))}
    if inspect.isclass(value):
        members: dict[str, Any] = {}
        with contextlib.suppress(ValueError):  # some built-in classes have no signature
            members["()"] = signature(value)
        for name, member in sorted(vars(value).items()):
            if name.startswith("_"):
                continue
            inner = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
            members[name] = signature(inner) if callable(inner) else type(member).__name__
        if dataclasses.is_dataclass(value):
            members["fields"] = [field.name for field in dataclasses.fields(value)]
        return members
    return signature(value) if callable(value) else type(value).__name__


def public(module: Any) -> list[str]:
    """`__all__`, or what the module itself defines."""
    if hasattr(module, "__all__"):
        return [n for n in module.__all__ if not inspect.ismodule(getattr(module, n))]
    source = module.__name__
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == source
    ]


def signatures() -> dict[str, Any]:
    """Of the package and of every documented module."""
    described_modules = {name: described(importlib.import_module(name)) for name in MODULES}
    return {"dir": dir(bs), "basis_search": described(bs), **described_modules}


def commands() -> dict[str, Any]:
    """Every command's settings with their defaults, or its help."""
    from basis_search import cli

    found: dict[str, Any] = {}
    for name, schema in cli.SCHEMAS.items():
        instance = schema()
        values = {f.name: getattr(instance, f.name) for f in dataclasses.fields(schema)}
        values = {k: v for k, v in values.items() if k not in ("run", "spaces")}  # a time; objects, told apart below
        found[name] = {**values, **({"run": ""} if hasattr(instance, "run") else {})}
    spaces = cli.SCHEMAS["search"]().spaces
    found["spaces"] = {name: dataclasses.asdict(space) for name, space in spaces.items()}
    for name in COMMANDS:
        out = io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.suppress(SystemExit),
            mock.patch.dict(os.environ, COLUMNS="80"),
        ):
            cli.main([name, "--help"])
        found[name] = sorted(set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", out.getvalue())))
    return json.loads(json.dumps(found))


def formats() -> dict[str, Any]:
    """Names that other programs rely on: wandb's ids and columns, the database's tables, torch's operator."""
    from basis_search.monitor import table, wandb_logger
    from basis_search.replacement import torch_operator
    from basis_search.workers import postgres_log

    with mock.patch("platform.node", return_value="a-machine"):
        wandb_id = wandb_logger.run_id(Path("/runs/mine"), 3)
    return {
        "wandb id": wandb_id,
        "wandb columns": list(table.COLUMNS),
        "PostgreSQL": " ".join(postgres_log.TABLES.split()),
        "operator": str(torch.ops.basis_search.structured_linear.default._schema),
        "operator's gradient": str(torch.ops.basis_search.structured_linear_backward.default._schema),
        "operator's home": torch_operator.NAME,
    }


def shapes(document: Any) -> Any:
    """A JSON value with its numbers and texts replaced by their type: the schema that readers rely on."""
    if isinstance(document, dict):
        return {key: shapes(value) for key, value in sorted(document.items())}
    if isinstance(document, list):
        return [shapes(document[0])] if document else []
    return type(document).__name__


def modules() -> None:
    """Whole modules as torch.save pickles them, one of each family, with their outputs."""
    folder = RECORDED / "modules"
    folder.mkdir(parents=True)
    layer = bs.capture(a_model(), [an_input(256) + shift for shift in (0.0, 0.5)])["0"]
    for family, spec in SPECS.items():
        module = bs.fit(layer, family, getattr(bs, family).Spec(**spec))
        with torch.no_grad():
            torch.save({"module": module, "output": module.use("reference")(an_input())}, folder / f"{family}.pt")


def exported() -> None:
    """A saved model of every family, with its outputs."""
    layers = bs.capture(a_model(), [an_input(256) + shift for shift in (0.0, 0.5)])
    for family, spec in SPECS.items():
        model = a_model()
        model[0] = bs.fit(layers["0"], family, getattr(bs, family).Spec(**spec)).use("reference")
        bs.save_pretrained(model, RECORDED / "exported" / family)
        with torch.no_grad():
            torch.save(model(an_input()), RECORDED / "exported" / f"{family}.pt")


def run_folder() -> None:
    """A run folder of the command line with its captured layers; pages and pictures left out."""
    from basis_search import cli

    before = Path.cwd()
    os.chdir(RECORDED)
    try:
        bs.capture(a_model(), [an_input(256) + shift for shift in (0.0, 0.5)]).save("layers")
        arguments = ["search", "layers=layers", "run=run", "trials=2", "report=false", "budgets={flops: [0.75]}"]
        sys.argv = ["basis-search"]
        assert cli.main(arguments) == 0
    finally:
        os.chdir(before)
    (RECORDED / "latest").unlink()
    (RECORDED / "run" / ".claims.json.lock").unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    shutil.rmtree(RECORDED, ignore_errors=True)
    RECORDED.mkdir()
    modules()
    exported()
    run_folder()
    for name, value in (("signatures", signatures()), ("commands", commands()), ("formats", formats())):
        (RECORDED / f"{name}.json").write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    for path in sorted(RECORDED.rglob("*")):
        if path.is_file():
            print(path.relative_to(RECORDED), path.stat().st_size)


if __name__ == "__main__":
    main()
