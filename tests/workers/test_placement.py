"""Where layers run: a GPU for each worker, and one sentence on a device, dtype or GPU that does not do."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

import basis_search as bs
from basis_search.study.transfer import kinds
from basis_search.workers import placement
from basis_search.workers.placement import device_of, placed

pytestmark = pytest.mark.fast


@pytest.fixture
def a_layer() -> bs.Layer:
    torch.manual_seed(0)
    return bs.Layer.from_linear(torch.nn.Linear(8, 8), torch.randn(16, 8), "fc")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's answers on a machine with two GPUs; no tensor can be moved there."""
    properties = SimpleNamespace(name="A GPU", multi_processor_count=132, major=9, minor=0)
    for name, answer in {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "current_device": lambda: 0,
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: "A GPU",
    }.items():
        monkeypatch.setattr(torch.cuda, name, answer)


@pytest.mark.usefixtures("two_gpus")
def test_workers_take_the_gpus_in_turn_and_an_index_is_kept(a_layer: bs.Layer) -> None:
    assert [str(device_of("cuda", worker)) for worker in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert str(device_of("cuda:1", 2)) == "cuda:1"
    (layer,) = placed([a_layer], "cuda", "bfloat16", worker=3)
    assert (str(layer.device), layer.dtype) == ("cuda:1", torch.bfloat16)
    assert placed([a_layer], None) == [a_layer]


@pytest.mark.usefixtures("two_gpus")
def test_layers_on_twins_are_of_one_kind_and_one_content(a_layer: bs.Layer) -> None:
    first, second = (dataclasses.replace(a_layer, device=torch.device("cuda", index)) for index in (0, 1))
    assert placed([first, second], None) == [first, second], "a model that is spread over devices keeps them"
    assert len(kinds([first, second])) == 1
    assert first.content_hash == second.content_hash


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("device", "dtype", "sentence"),
    [
        ("cuda:7", None, "there is no device 'cuda:7'; torch sees: cuda:0, cuda:1"),
        ("cuda", "float64", "float64, for which a GPU has no fast kernel; search it in another dtype"),
        ("mps", None, "not on 'mps'"),
        ("xpu", None, "not on 'xpu'"),
        ("gpu", None, "'gpu' is not a device"),
        (None, "float1", "cannot run in the dtype 'float1'"),
    ],
)
def test_what_does_not_do_is_refused(a_layer: bs.Layer, device: str | None, dtype: str | None, sentence: str) -> None:
    with pytest.raises(bs.BadInput, match=sentence):
        placed([a_layer], device, dtype)


def test_a_layer_of_a_meta_model_is_refused(a_layer: bs.Layer) -> None:
    with pytest.raises(bs.BadInput, match="meta device"):
        placed([dataclasses.replace(a_layer, device=torch.device("meta"))], None)


@pytest.mark.usefixtures("two_gpus")
def test_an_old_gpu_is_named_with_the_kernels_it_lacks(
    a_layer: bs.Layer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(placement, "_warned", set())
    placed([a_layer, dataclasses.replace(a_layer, name="other")], "cuda:0", "float16")
    said = capsys.readouterr().err
    assert "A GPU (cuda:0) has compute capability 7.5, below 8.0: these kernels are left out: triton" in said
    assert len(said.splitlines()) == 1
