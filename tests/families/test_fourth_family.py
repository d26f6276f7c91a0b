"""A new family is a folder and its name in families/__init__.py: nothing else in the package or the tests is edited."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

DIAGONAL = {
    "__init__": '''
"""Block-diagonal layers, y_b = W_b x_b + bias_b: inputs and outputs in equally many groups."""

from basis_search.families.diagonal.cost import cost
from basis_search.families.diagonal.examples import examples
from basis_search.families.diagonal.fit import fit
from basis_search.families.diagonal.forecast import forecast
from basis_search.families.diagonal.kernels import KERNELS
from basis_search.families.diagonal.space import Space, suggest
from basis_search.families.diagonal.spec import Spec
from basis_search.families.diagonal.style import STYLE

__all__ = ["FITS_ROWS", "KERNELS", "STYLE", "Space", "Spec", "cost", "examples", "fit", "forecast", "suggest"]

FITS_ROWS = False
''',
    "spec": '''
from dataclasses import dataclass

from basis_search.errors import BadInput
from basis_search.layers.layer import LayerLike


@dataclass(frozen=True)
class Spec:
    blocks: int = 2

    def __post_init__(self) -> None:
        if isinstance(self.blocks, bool) or not isinstance(self.blocks, int) or self.blocks < 1:
            raise BadInput(f"diagonal: blocks is {self.blocks!r}, but an integer of at least 1 is needed")

    def sides(self, layer: LayerLike) -> tuple[int, int]:
        """Inputs and outputs of a block; the last block is padded."""
        return -(-layer.in_features // self.blocks), -(-layer.out_features // self.blocks)
''',
    "space": """
from dataclasses import dataclass
from typing import Any

from basis_search.errors import BadInput
from basis_search.families.diagonal.spec import Spec
from basis_search.layers.layer import Layer


@dataclass
class Space:
    most_blocks: int = 4


def suggest(trial: Any, layer: Layer, space: Space) -> Spec:
    most = min(space.most_blocks, layer.in_features, layer.out_features)
    if most < 2:
        raise BadInput(f"diagonal: layer {layer.name!r} is too narrow for two blocks; leave diagonal out for it")
    return Spec(trial.suggest_int("blocks", 2, most))
""",
    "fit": '''
import torch

from basis_search.families.diagonal.spec import Spec
from basis_search.families.protocol import Params
from basis_search.layers.layer import Layer


def fit(spec: Spec, layer: Layer) -> Params:
    """Least squares per block: "weight" [blocks, out of a block, in of a block], "bias" [out], "out_features"."""
    layer = layer.on_device()
    k, m = spec.sides(layer)
    x = layer.inputs.double()
    y = x @ layer.weight.double().T
    shift = y.mean(0) if layer.bias is not None else torch.zeros_like(y[0])
    mean = x.mean(0) if layer.bias is not None else torch.zeros_like(x[0])
    weight = x.new_zeros(spec.blocks, m, k)
    for b in range(spec.blocks):
        part, target = (x - mean)[:, b * k : (b + 1) * k], (y - shift)[:, b * m : (b + 1) * m]
        gram = part.T @ part
        gram.diagonal().add_(1e-6 * float(gram.trace()) + 1e-12)
        weight[b, : target.shape[1], : part.shape[1]] = torch.linalg.solve(gram, part.T @ target).T
    params = {"weight": weight.to(layer.dtype), "out_features": torch.tensor(layer.out_features, device=layer.device)}
    if layer.bias is not None:
        padded = torch.nn.functional.pad(mean, (0, k * spec.blocks - len(mean))).view(spec.blocks, k, 1)
        answered = (weight @ padded).flatten()[: layer.out_features]
        params["bias"] = (layer.bias.double() + shift - answered).to(layer.dtype)
    return params
''',
    "cost": """
from basis_search.families.diagonal.spec import Spec
from basis_search.families.protocol import Cost, element_size
from basis_search.layers.layer import LayerLike


def cost(spec: Spec, layer: LayerLike) -> Cost:
    k, m = spec.sides(layer)
    n, stored = layer.batch, spec.blocks * k * m
    traffic = stored + layer.out_features + n * (layer.in_features + layer.out_features)
    return Cost(n * stored, n * stored, 0, element_size(layer.dtype) * traffic, stored + layer.out_features)
""",
    "forecast": """
from basis_search.families.diagonal.spec import Spec
from basis_search.families.protocol import Forecast
from basis_search.layers.layer import Layer
from basis_search.layers.output_spectrum import searched_power


def forecast(spec: Spec, layer: Layer) -> Forecast:
    error = 1 - 1 / spec.blocks if searched_power(layer) > 0 else 0.0  # of outputs that nothing depends on
    return Forecast(error, 0.2 + 1 / spec.blocks)
""",
    "examples": """
from basis_search.families.diagonal.spec import Spec
from basis_search.layers.layer import LayerLike


def examples(layer: LayerLike) -> tuple[Spec, ...]:
    return Spec(2), Spec(3)
""",
    "reference": '''
import torch
from torch import Tensor

from basis_search.families.diagonal.spec import Spec
from basis_search.families.protocol import Params


def reference(spec: Spec, params: Params, x: Tensor) -> Tensor:
    """x [..., in] -> y [..., out], float64, by one dense matrix of the blocks."""
    whole = torch.block_diag(*params["weight"].double())[: int(params["out_features"]), : x.shape[-1]]
    y = x.double() @ whole.T
    return y + params["bias"].double() if "bias" in params else y
''',
    "kernels": """
import torch
import torch.nn.functional as F
from torch import Tensor

from basis_search.families.diagonal.reference import reference
from basis_search.families.diagonal.spec import Spec
from basis_search.families.protocol import Kernel, Params, accept, keep, reference_kernel


def _torch(spec: Spec, params: Params, x: Tensor) -> Tensor:
    blocks, m, k = params["weight"].shape
    rows = F.pad(x.reshape(-1, x.shape[-1]), (0, blocks * k - x.shape[-1])).view(-1, blocks, k)
    y = torch.bmm(rows.transpose(0, 1), params["weight"].transpose(1, 2)).transpose(0, 1).reshape(-1, blocks * m)
    y = y[:, : int(params["out_features"])]
    if "bias" in params:
        y = y + params["bias"]
    return y.reshape(*x.shape[:-1], y.shape[1])


KERNELS = (reference_kernel(reference), Kernel("torch", _torch, keep, accept, differentiable=True))
""",
    "style": """
from basis_search.families.protocol import Style

STYLE = Style(light="#CC79A7", dark="#E8A6CB", marker="pentagon")
""",
}

SEARCH = """
from pathlib import Path
import torch
import basis_search as bs
from basis_search import report
from basis_search.families import FAMILIES
from made_up_run import a_run

torch.manual_seed(0)
layer = bs.Layer.from_linear(torch.nn.Linear(48, 32), torch.randn(400, 48), "fc", batch=16)
front = bs.search(layer, ("dense", "diagonal"), trials=3)
assert {e.candidate.family for e in front.evaluations} == {"dense", "diagonal"}, front
assert bs.diagonal is FAMILIES["diagonal"]
page = report.write(a_run(Path("run"))).read_text()
assert "#CC79A7" in page and "#E8A6CB" in page and "diagonal: blocks=3" in page
assert {"layers.png", "report.html"} <= {path.name for path in Path("run").iterdir()}
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and its tests with one more family."""
    root = tmp_path_factory.mktemp("fourth")
    caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "conf", root / "conf", ignore=caches)
    for folder in ("basis_search", "tests/families", "tests/support", "tests/replacement"):
        shutil.copytree(ROOT / folder, root / folder, ignore=caches)
    for file in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy(ROOT / file, root / file)
    families = root / "basis_search" / "families"
    (families / "diagonal").mkdir()
    for name, source in DIAGONAL.items():
        (families / "diagonal" / f"{name}.py").write_text(source.lstrip())
    names = families / "__init__.py"
    text = names.read_text()
    assert text.count('    "dense",\n') == 1
    names.write_text(text.replace('    "dense",\n', '    "dense",\n    "diagonal",\n'))
    return root


def python(root: Path, *arguments: str) -> str:
    """Output of Python over the copy; -S leaves out the .pth files, by which an editable install would come first."""
    paths = [str(root), str(root / "tests" / "support"), *filter(None, sys.path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-S", *arguments], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_it_passes_the_conformance_suite(checkout: Path) -> None:
    files = ("test_conformance.py", "test_kernel_conformance.py", "test_layout.py", "test_forecast.py")
    out = python(
        checkout, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "diagonal", "-m", "not gpu",
        *(f"tests/families/{file}" for file in files), "tests/replacement/test_export.py",
    )  # fmt: skip
    passed = re.search(r"(\d+) passed", out)
    assert passed is not None
    assert int(passed[1]) >= 25, out
    assert "skipped" not in out


def test_it_is_searched_reported_and_known_by_name(checkout: Path) -> None:
    python(checkout, "-c", SEARCH)


def test_the_command_line_lists_its_kernels(checkout: Path) -> None:
    out = python(checkout, "-m", "basis_search.cli", "kernels")
    assert [line.split()[1:3] for line in out.splitlines() if line.startswith("diagonal")] == [
        ["reference", "runs"],
        ["torch", "runs"],
    ]


def test_the_copy_is_what_ran(checkout: Path) -> None:
    where = python(checkout, "-c", "import basis_search; print(basis_search.__file__)").strip()
    assert Path(where).is_relative_to(checkout)
