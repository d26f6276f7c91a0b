"""A pytest plugin: the outcome of every test in a JSON file as it ends; tests that passed before are not run again.

pytest -p stored_outcomes --stored FILE
"""

from __future__ import annotations

from pathlib import Path

import pytest

from basis_search.bench.timed_parts import PartFile


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--stored", type=Path, help="a JSON file of outcomes")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--stored")
    if path is not None:
        config.pluginmanager.register(_Outcomes(PartFile(path), not hasattr(config, "workerinput")))


class _Outcomes:
    def __init__(self, file: PartFile, writes: bool):
        self.file = file
        self.writes = writes  # not in the processes of pytest-xdist, whose reports arrive in the first one
        self.passed = {name for name, outcome in file.results.items() if outcome["outcome"] == "passed"}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leaves out what has passed; every process of pytest-xdist must collect the same."""
        known = [item for item in items if item.nodeid in self.passed]
        if known:
            items[:] = [item for item in items if item.nodeid not in self.passed]
            config.hook.pytest_deselected(items=known)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self.writes and (report.when == "call" or report.outcome != "passed"):
            outcome = {"outcome": report.outcome, "seconds": report.duration}
            if report.failed:
                outcome["reason"] = str(report.longrepr)[-2000:]
            self.file.add(report.nodeid, outcome)
            counts = [found["outcome"] for found in self.file.results.values()]
            self.file.summarise(", ".join(f"{counts.count(name)} {name}" for name in dict.fromkeys(counts)))

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Nothing left to run is no failure."""
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self.file.results:
            session.exitstatus = pytest.ExitCode.OK
