"""Models that examples/ trains: their code, and the training where it has not run yet."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from basis_search.errors import BadInput

EXAMPLES = Path(__file__).parents[3] / "examples"


def code(name: str) -> ModuleType:
    """The module examples/NAME/model.py. Raises BadInput outside a checkout of the project."""
    path = EXAMPLES / name / "model.py"
    spec = importlib.util.spec_from_file_location(f"basis_search_example_{name}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise BadInput(f"{path} does not exist; run this from a checkout of the project, installed with pip install -e")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights(name: str, folder: Path) -> Path:
    """FOLDER/NAME/model.safetensors; examples/NAME/train.py writes it if it is not there."""
    path = folder / name / "model.safetensors"
    if not path.is_file():
        code(name)  # says where a checkout is needed
        subprocess.run([sys.executable, str(EXAMPLES / name / "train.py"), "--out", str(path.parent)], check=True)
    return path
