"""Protocol: dispatch over kernels, hashes and JSON of specs, near misses, tolerance and gaps, styles."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from basis_search.errors import BadInput, near_miss
from basis_search.families import FAMILIES, family
from basis_search.families.protocol import (
    Cost,
    Kernel,
    Style,
    choose,
    element_size,
    relative_gap,
    spec_from_json,
    spec_hash,
    spec_to_json,
    tolerance,
)
from basis_search.layers.layer import LayerShape

pytestmark = pytest.mark.fast

SHAPE = LayerShape(8, 4)


def kernel(name: str, refusal: str | None = None) -> Kernel:
    return Kernel(name, lambda spec, packed, x: x, lambda spec, params: params, lambda spec, layer: refusal)


def test_choose_takes_the_last_that_accepts() -> None:
    kernels = (kernel("reference"), kernel("torch"), kernel("cpu-avx2", "this processor has no AVX2"))
    assert choose(kernels, None, SHAPE).name == "torch"
    assert choose(kernels[:1], None, SHAPE).name == "reference"


def test_choose_by_name() -> None:
    kernels = (kernel("reference"), kernel("torch"), kernel("cpu-avx2", "this processor has no AVX2"))
    assert choose(kernels, None, SHAPE, "reference").name == "reference"
    with pytest.raises(BadInput, match="'cpu-avx2' refuses: this processor has no AVX2"):
        choose(kernels, None, SHAPE, "cpu-avx2")
    with pytest.raises(BadInput, match="no kernel 'trch' here; did you mean 'torch'\\? Known are: reference, torch"):
        choose(kernels, None, SHAPE, "trch")


def test_choose_gives_every_reason_when_all_refuse() -> None:
    with pytest.raises(BadInput, match="every kernel refuses: b: too wide; a: too long"):
        choose((kernel("a", "too long"), kernel("b", "too wide")), None, SHAPE)


def test_choose_shows_the_layer_to_the_kernel() -> None:
    seen: list[Any] = []
    asks = Kernel("asks", lambda s, p, x: x, lambda s, p: p, lambda s, layer: seen.append((s, layer)))
    choose((asks,), "spec", SHAPE)
    assert seen == [("spec", SHAPE)]


def test_cost_adds_up_by_field() -> None:
    a, b = Cost(1, 2, 3, 4, 5), Cost(10, 20, 30, 40, 50)
    assert a + b == Cost(11, 22, 33, 44, 55)
    assert a.flops == 3


def test_tolerance_is_derived_from_the_dtype_and_the_length() -> None:
    assert tolerance(torch.float64, 100) < tolerance(torch.float32, 100) < tolerance(torch.bfloat16, 100) < 0.02
    assert tolerance(torch.float32, 100) < tolerance(torch.float32, 10_000)
    assert tolerance(torch.float32, 100, 3.0) == pytest.approx(3 * tolerance(torch.float32, 100))
    eps = 2.0**-23
    assert tolerance(torch.float32, 400) == pytest.approx(22 * eps)
    assert tolerance(torch.bfloat16, 400) == pytest.approx(2 * 2.0**-7 + 20 * eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_tolerance_holds_a_plain_product_and_not_one_computed_in_less(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    coarser = {torch.float64: torch.float32, torch.float32: torch.bfloat16}.get(dtype)
    for length in (1, 17, 2000):
        x = torch.randn(40, length, generator=draw, dtype=torch.float64).to(dtype)
        w = torch.randn(30, length, generator=draw, dtype=torch.float64).to(dtype)
        exact = x.double() @ w.double().T
        assert relative_gap(torch.nn.functional.linear(x, w), exact) <= tolerance(dtype, length)
        if coarser is not None:
            coarse = torch.nn.functional.linear(x.to(coarser), w.to(coarser))
            assert relative_gap(coarse, exact) > tolerance(dtype, length)


def test_relative_gap() -> None:
    ones = torch.ones(4)
    assert relative_gap(ones, ones) == 0
    assert relative_gap(1.5 * ones, ones) == pytest.approx(0.5)
    assert relative_gap(3 * ones, 0 * ones) == 6
    for bad in (math.nan, math.inf):
        assert relative_gap(torch.tensor([1.0, bad]), torch.ones(2)) == math.inf
    assert relative_gap(torch.empty(0), torch.empty(0)) == 0


def test_near_miss_guesses_or_lists() -> None:
    assert near_miss("lowrnk", ["dense", "lowrank"]) == "; did you mean 'lowrank'? Known are: dense, lowrank"
    assert near_miss("zzz", ["dense", "lowrank"]) == "; known are: dense, lowrank"


def test_an_unknown_family_names_the_nearest() -> None:
    assert family("dense") is FAMILIES["dense"]
    with pytest.raises(BadInput, match="no family 'densse'; did you mean 'dense'"):
        family("densse")


@dataclass(frozen=True)
class Spec:
    size: int = 4
    name: str = "a"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise BadInput(f"size is {self.size}, but at least 1 is needed")


class Toy:
    Spec = Spec


def test_spec_json_round_trip_and_its_refusals() -> None:
    toy: Any = Toy
    assert spec_to_json(Spec(3, "b")) == {"size": 3, "name": "b"}
    assert spec_from_json(toy, {"size": 3, "name": "b"}) == Spec(3, "b")
    assert spec_from_json(toy, {}) == Spec()
    with pytest.raises(BadInput, match="no field 'siez'; did you mean 'size'"):
        spec_from_json(toy, {"siez": 3})
    with pytest.raises(BadInput, match="size is 0"):
        spec_from_json(toy, {"size": 0})
    with pytest.raises(BadInput, match="does not make a spec"):
        spec_from_json(toy, {"size": "3"})


def test_spec_hash_is_of_the_canonical_json() -> None:
    text = '{"family":"toy","spec":{"name":"b","size":3}}'
    assert spec_hash("toy", Spec(3, "b")) == hashlib.sha256(text.encode()).hexdigest()
    hashes = {spec_hash("toy", Spec(3, "b")), spec_hash("toy", Spec(3, "c")), spec_hash("other", Spec(3, "b"))}
    assert len(hashes) == 3


def test_spec_hashes_are_stable() -> None:
    """Stored studies and evaluations are looked up by these: a change would orphan them."""
    expected = {
        "dense": "90afed4405ee",
        "int8": "e4033bdb64f6",
        "lowrank": "f8ff15c3286f",
    }
    for name, start in expected.items():
        assert spec_hash(name, FAMILIES[name].Spec()).startswith(start), spec_hash(name, FAMILIES[name].Spec())


def test_kernels_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        kernel("a").name = "b"  # type: ignore[misc]


def test_styles_refuse_what_cannot_be_drawn() -> None:
    assert Style("#0072B2", "#4ba3e3", "circle").light == "#0072B2"
    with pytest.raises(BadInput, match="colour is 'blue', but it must be of the form '#0072B2'"):
        Style("blue", "#4BA3E3", "circle")
    with pytest.raises(BadInput, match="marker is 'heart', but it must be one of: star"):
        Style("#0072B2", "#4BA3E3", "heart")


def test_element_size() -> None:
    assert [element_size(d) for d in (torch.bfloat16, torch.float32, torch.float64, torch.int8)] == [2, 4, 8, 1]


def test_json_of_every_default_spec_is_plain() -> None:
    for name, module in FAMILIES.items():
        data = spec_to_json(module.Spec())
        assert json.loads(json.dumps(data)) == data, name
