"""Fixtures: made-up evaluations and run folders, the device of Triton kernels, a folder of published schemes."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import postgres
import pytest
import torch
from basis_kernels.launch.configuration import Space
from made_up_run import a_run, an_evaluation

from basis_search.evaluation.candidate import Evaluation

if TYPE_CHECKING:
    from fake_cuda_devices import FakeCuda


@pytest.fixture
def evaluation() -> Callable[..., Evaluation]:
    """evaluation(layer, family="dense", spec=None, **changes) of made-up numbers."""
    return an_evaluation


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """write_run(layers=..., trials=..., workers=..., seed=..., measured=...) writes a run folder and returns it."""

    def write(**sizes: Any) -> Path:
        return a_run(tmp_path / "run", **sizes)

    return write


@pytest.fixture
def fake_cuda() -> Iterator[FakeCuda]:
    """Two pretended CUDA devices, with the count of what made the host wait for one; see pretend_cuda."""
    from pretend_cuda import pretend_cuda  # imports torch's compiler, which takes a second

    with pretend_cuda() as cuda:
        yield cuda


@pytest.fixture(params=["cpu", "double", pytest.param("gpu", marks=pytest.mark.gpu)])
def where(request: pytest.FixtureRequest) -> Iterator[str]:
    """The places of tests.support.conformance: "cpu", inside the test double of a CUDA device, or a GPU."""
    if request.param != "double":
        yield request.param
        return
    from pretend_cuda import pretend_cuda

    with pretend_cuda():
        yield request.param


@pytest.fixture(autouse=True)
def one_configuration(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU every Triton kernel of a test has one configuration, the interpreter's: compiling takes the time."""
    if request.node.get_closest_marker("gpu"):
        monkeypatch.setenv("BASIS_SEARCH_TUNING", "closed-form")
        monkeypatch.setattr(Space, "ranked", lambda self, problem, hardware: [self.interpreted(problem)])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` need one."""
    absent = not torch.cuda.is_available()
    for item in items:
        if absent and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no GPU here; ./scripts/gpu runs these on a machine with one"))


@pytest.fixture
def triton_device(request: pytest.FixtureRequest) -> str:
    """Where Triton kernels run: "cuda" where there is one, else "cpu" by the interpreter. For interpreted tests."""
    assert request.node.get_closest_marker("interpreted"), (
        "mark the test `interpreted`: ./scripts/test runs those apart"
    )
    if torch.cuda.is_available():
        return "cuda"
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("no GPU, and TRITON_INTERPRET=1 is not set, as ./scripts/test sets it for these tests")
    return "cpu"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--published-data", type=Path, help="a folder of published schemes with a MANIFEST.json")


FAST = "fast and not slow"


def pytest_configure(config: pytest.Config) -> None:
    """`slow` takes a test out of the fast set that its module is in; small tensors are faster in one thread."""
    if config.option.markexpr in ("fast", FAST):  # pytest-xdist's workers are given the second
        config.option.markexpr = FAST
        torch.set_num_threads(1)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Neither set imports a test module without a test of its own: imports take longer than the tests."""
    wanted = {FAST: "mark.fast", "gpu": r"mark\.gpu|in_places|def test_.*\bwhere\b"}.get(config.option.markexpr)
    if wanted is not None and collection_path.name.startswith("test_"):
        return re.search(wanted, collection_path.read_text()) is None or None
    return None


@pytest.fixture
def published_data(request: pytest.FixtureRequest) -> Path:
    """The folder named by --published-data; without one the test is skipped."""
    folder: Path | None = request.config.getoption("--published-data")
    if folder is None:
        pytest.skip("no --published-data names a folder of published schemes")
    if not (folder / "MANIFEST.json").is_file():
        pytest.fail(f"--published-data={folder} holds no MANIFEST.json")
    return folder


@pytest.fixture(scope="session")
def server() -> Iterator[postgres.Server]:
    """A running PostgreSQL; without its programs the test is skipped, but never in continuous integration."""
    if postgres.binaries() is None:
        assert "CI" not in os.environ, "no PostgreSQL on this machine: ./scripts/test installs it"
        pytest.skip("no PostgreSQL on this machine: ./scripts/test installs it where it may")
    started = postgres.Server()
    started.start()
    yield started
    started.remove()


@pytest.fixture
def url(server: postgres.Server) -> str:
    """An empty database."""
    return server.create(f"test_{uuid.uuid4().hex}")
