"""A run folder: the names of its files, and readers that say in a sentence what is missing or damaged."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from basis_search.errors import BadInput
from basis_search.evaluation.candidate import Evaluation
from basis_search.evaluation.pareto import ParetoFront
from basis_search.files import check_version, read_json, write_json

SCHEMA_VERSION = 1
"""Of front.json, plans.json and summary.json."""


class RunFolder:
    """The folder of one run. Its files appear as the search proceeds; any of them may be missing.

    Args:
        path: the folder.

    Attributes:
        config_file: the search's settings, YAML.
        evaluations_file: the evaluation log, JSON lines.
        leases_file: which worker evaluates which candidate, JSON.
        studies_file: optuna's journal.
        front_file: the non-dominated evaluations of each layer, JSON.
        plans_file: the plans, JSON.
        summary_file: measurements of the whole model, JSON.
        report_file: the report's page.
        exports: the folder of exported plans.
        fitted: the folder of fitted parameters.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.evaluations_file = self.path / "evaluations.jsonl"
        self.leases_file = self.path / "claims.json"
        self.studies_file = self.path / "studies.journal"
        self.front_file = self.path / "front.json"
        self.plans_file = self.path / "plans.json"
        self.summary_file = self.path / "summary.json"
        self.report_file = self.path / "report.html"
        self.exports = self.path / "export"
        self.fitted = self.path / "fitted"

    def check(self) -> None:
        """Raises BadInput unless a search has begun here."""
        if not self.config_file.is_file() and not self.evaluations_file.is_file():
            raise BadInput(
                f"{self.path} is no run folder: it holds neither {self.config_file.name} nor "
                f"{self.evaluations_file.name}; name the folder that a search writes, like runs/latest"
            )

    def check_evaluated(self) -> None:
        """Raises BadInput unless candidates have been evaluated here."""
        if not self.path.is_dir():
            raise BadInput(
                f"there is no run folder {str(self.path)!r}; give the folder that a search wrote, like runs/latest"
            )
        if not self.evaluations_file.is_file():
            raise BadInput(
                f"{str(self.path)!r} is no run folder: it holds no {self.evaluations_file.name}; give the folder that "
                "a search wrote, like runs/latest"
            )

    def config(self) -> dict[str, Any]:
        """The search's settings. Raises BadInput where they cannot be read."""
        path = self.config_file
        try:
            config = yaml.safe_load(path.read_text())
        except (OSError, ValueError, yaml.YAMLError) as problem:
            raise BadInput(f"{path} cannot be read ({problem}); name a run folder as a search left it") from problem
        if not isinstance(config, dict):
            raise BadInput(f"{path} holds no settings; name a run folder as a search left it")
        return config

    def replace_config(self, text: str) -> None:
        """Stores new settings; the earlier ones stay as config-1.yaml, config-2.yaml, ..."""
        new = self.path / f".config.{os.getpid()}"
        new.write_text(text)
        earlier = self.path / f"config-{1 + len(list(self.path.glob('config-*.yaml')))}.yaml"
        earlier.write_bytes(self.config_file.read_bytes())  # a copy: other workers find the settings at every moment
        new.replace(self.config_file)

    def front(self) -> dict[str, ParetoFront]:
        """The fronts by layer, without the layers' tensors. Raises BadInput: not finished, damaged, or newer."""
        path = self.front_file
        try:
            return {
                str(name): ParetoFront(tuple(Evaluation.from_json(e) for e in evaluations))
                for name, evaluations in self._document(path)["layers"].items()
            }
        except BadInput as problem:
            raise BadInput(f"{path}: {problem}") from problem
        except (KeyError, TypeError, AttributeError) as problem:
            raise BadInput(f"{path} is not a front of basis_search: {problem!r}") from problem

    def plans(self) -> Sequence[Mapping[str, Any]]:
        """The plans as JSON objects. Raises BadInput: not finished, damaged, or newer."""
        plans = self._document(self.plans_file).get("plans")
        if not isinstance(plans, list) or not all(isinstance(plan, dict) for plan in plans):
            raise BadInput(f"{self.plans_file} holds no plans of basis_search: its plans are not a list of objects")
        return plans

    def summary(self) -> Mapping[str, Any]:
        """Measurements of the whole model as a JSON object. Raises BadInput: not there, damaged, or newer."""
        return self._document(self.summary_file)

    def write_front(self, fronts: Mapping[str, ParetoFront]) -> None:
        """Stores the non-dominated evaluations of each layer."""
        layers = {name: [e.to_json() for e in front.evaluations] for name, front in fronts.items()}
        write_json(self.front_file, {"schema_version": SCHEMA_VERSION, "layers": layers})

    def write_plans(self, plans: Sequence[Mapping[str, Any]]) -> None:
        """Stores plans, given as JSON objects."""
        write_json(self.plans_file, {"schema_version": SCHEMA_VERSION, "plans": plans})

    def _document(self, path: Path) -> dict[str, Any]:
        if not path.is_file():
            raise BadInput(
                f"{self.path} is no finished run: it holds no {path.name}; name a folder that a search wrote"
            )
        document: dict[str, Any] = read_json(path)
        check_version(document, SCHEMA_VERSION, path)
        return document
