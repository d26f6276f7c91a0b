"""Conformance of every family: protocol members, specs, search space, examples, style, fit and cost."""

from __future__ import annotations

import dataclasses
import json
import random
from typing import Any

import optuna
import pytest
import torch
from conformance import (
    BATCH,
    DEVICES,
    DTYPES,
    FOR_GPUS,
    ON_CPU,
    SEEDS,
    SHAPES,
    SMALL,
    asked,
    cases,
    expected,
    fitted,
    for_gpus,
    in_places,
    is_sentence,
    layer,
    sampled,
    specs,
)
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.families import FAMILIES
from basis_search.families.protocol import Cost, Style, spec_from_json, spec_hash, spec_to_json


@pytest.mark.parametrize("name", FAMILIES)
def test_kernels_are_named_apart_and_begin_with_the_reference(name: str) -> None:
    names = [kernel.name for kernel in FAMILIES[name].KERNELS]
    assert names[0] == "reference"
    assert "torch" in names, "a plain torch kernel is there when there is no compiler"
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", FAMILIES)
def test_space_has_a_default_for_every_field(name: str) -> None:
    space = FAMILIES[name].Space()
    assert dataclasses.is_dataclass(space)
    assert space == FAMILIES[name].Space()


@pytest.mark.parametrize("name", FAMILIES)
def test_specs_are_frozen_hashable_and_survive_json(name: str) -> None:
    family = FAMILIES[name]
    for spec in {family.Spec(), *(s for shape in SHAPES for s in specs(name, shape))}:
        for field in dataclasses.fields(spec):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(spec, field.name, getattr(spec, field.name))
        text = json.dumps(spec_to_json(spec))
        again = spec_from_json(family, json.loads(text))
        assert again == spec
        assert hash(again) == hash(spec)
        assert spec_hash(name, again) == spec_hash(name, spec)
        assert not any(isinstance(value, Tensor) for value in dataclasses.asdict(spec).values())


@pytest.mark.parametrize("name", FAMILIES)
def test_specs_refuse_wrong_types_and_unknown_fields(name: str) -> None:
    family = FAMILIES[name]
    good = spec_to_json(family.Spec())
    with pytest.raises(BadInput, match="no field 'rnak'"):
        spec_from_json(family, {**good, "rnak": 3})
    for field in good:
        for wrong in (None, {"a": 1}, [1.5], -1, 1.5, "no such thing"):
            with pytest.raises(BadInput) as caught:
                spec_from_json(family, {**good, field: wrong})
            assert is_sentence(str(caught.value)), f"{field}={wrong!r}: {caught.value}"


@pytest.mark.parametrize("name", ON_CPU)
def test_suggest_depends_on_the_trial_alone(name: str) -> None:
    some = False
    for shape in FOR_GPUS if for_gpus(name) else SHAPES:
        of = asked(name, shape)
        for seed in SEEDS[: len(specs(name, shape))]:
            some = True
            spec, drawn = sampled(name, of, seed)
            space = FAMILIES[name].Space()
            assert isinstance(spec, FAMILIES[name].Spec)
            assert FAMILIES[name].suggest(optuna.trial.FixedTrial(drawn), of, space) == spec
    assert some


@pytest.mark.parametrize("name", FAMILIES)
def test_a_layer_is_suggested_for_or_refused_with_a_sentence(name: str) -> None:
    for shape in (*SHAPES, (1, 1), (1, 5), (5, 1), (2, 3)):
        outcome: Any
        try:
            outcome, _ = sampled(name, layer(shape), 0)
        except BadInput as refusal:
            outcome = str(refusal)
        assert is_sentence(outcome) if isinstance(outcome, str) else isinstance(outcome, FAMILIES[name].Spec)
        assert not for_gpus(name) or "cpu" in outcome


@pytest.mark.parametrize("name", ON_CPU)
def test_examples_fit_layers_of_their_shape_and_differ(name: str) -> None:
    for shape in (*SHAPES, SMALL, (12, 16)):
        examples = FAMILIES[name].examples(layer(shape))
        assert examples == FAMILIES[name].examples(layer(shape).shape), "examples depend on more than the shape"
        assert examples
        assert len(set(examples)) == len(examples)
        for spec in examples:
            assert isinstance(spec, FAMILIES[name].Spec)
            assert FAMILIES[name].cost(spec, layer(shape)).flops > 0
        assert FAMILIES[name].fit(examples[0], layer(shape))


@pytest.mark.parametrize("name", FAMILIES)
def test_style_is_unlike_that_of_any_other_family(name: str) -> None:
    style = FAMILIES[name].STYLE
    assert isinstance(style, Style)
    assert style.marker != "hexagon", "reports give it to families that are not installed"
    for other, family in FAMILIES.items():
        if other != name:
            assert not {style.light, style.dark} & {family.STYLE.light, family.STYLE.dark}, other
            assert style.marker != family.STYLE.marker, other


# Fit and cost


@pytest.mark.parametrize(("where", "name"), in_places(FAMILIES), indirect=["where"])
def test_fit_is_deterministic_and_leaves_the_callers_generator_alone(where: str, name: str) -> None:
    shape = next(shape for shape in reversed(SHAPES) if specs(name, shape, where))
    spec = specs(name, shape, where)[-1]
    first = fitted(name, spec, shape, where=where)
    # Another layer object, another state of the generators, and other held-out rows, which a fit must not use.
    other = dataclasses.replace(layer(shape, where=where), held_out=torch.full_like(layer(shape).held_out, 1e3))
    torch.manual_seed(99)
    random.seed(99)
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    second = FAMILIES[name].fit(spec, other)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert first.keys() == second.keys()
    for key, value in first.items():
        if where == "gpu":  # cumulated sums of CUDA have no fixed order
            torch.testing.assert_close(value, second[key])
        else:
            assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("where", "name"), in_places(FAMILIES), indirect=["where"])
def test_params_are_finite_plain_tensors_of_the_layer(where: str, name: str, dtype: torch.dtype) -> None:
    for spec, shape, params in cases(name, dtype, where):
        assert params["bias"].shape == (shape[1],)
        assert params["bias"].dtype in (dtype, torch.float32)
        for key, value in params.items():
            assert isinstance(value, Tensor), key
            assert value.device == DEVICES[where], key
            assert not value.requires_grad, key
            assert value.is_contiguous(), key
            assert bool(torch.isfinite(value).all()), key
        # safetensors refuses tensors that share memory.
        storages = [value.untyped_storage().data_ptr() for value in params.values()]
        assert len(set(storages)) == len(storages), f"{spec} shares memory between parameters"


@pytest.mark.parametrize("name", ON_CPU)
def test_fit_leaves_less_than_95_percent_of_the_outputs_variance(name: str) -> None:
    for spec, shape, params in cases(name, torch.float32):
        x = layer(shape).inputs
        exact = torch.nn.functional.linear(x.double(), layer(shape).weight.double())
        y = expected(name, spec, {key: value for key, value in params.items() if key != "bias"}, x)
        # Both without their means: the bias, which is left out, may account for part of them.
        error = ((y - y.mean(0)) - (exact - exact.mean(0))).square().sum()
        assert float(error) < 0.95 * float((exact - exact.mean(0)).square().sum()), spec


@pytest.mark.parametrize(("where", "name"), in_places(FAMILIES), indirect=["where"])
def test_a_layer_without_bias_is_fitted_without_bias(where: str, name: str) -> None:
    shape = next(shape for shape in SHAPES if specs(name, shape, where))
    spec = specs(name, shape, where)[0]
    params = FAMILIES[name].fit(spec, layer(shape, bias=False, where=where))
    assert set(params) == set(fitted(name, spec, shape, where=where)) - {"bias"}


@pytest.mark.parametrize("name", ON_CPU)
def test_cost_counts_what_is_stored_and_grows_with_the_batch(name: str) -> None:
    for spec, shape, params in cases(name, torch.float32):
        whole = layer(shape)
        cost = FAMILIES[name].cost(spec, whole)
        assert cost == FAMILIES[name].cost(spec, whole.shape), "cost depends on more than the shape"
        for field in dataclasses.fields(Cost):
            value = getattr(cost, field.name)
            assert type(value) is int, field.name
            assert value >= 0, field.name
        assert cost.flops > 0
        assert cost.bytes >= 4 * BATCH * shape[1], "outputs are written"
        # A number without dimensions states a size, such as "out_features", and is not counted.
        assert cost.parameters == sum(value.numel() for value in params.values() if value.ndim > 0), spec
        twice = FAMILIES[name].cost(spec, dataclasses.replace(whole.shape, batch=2 * BATCH))
        assert twice.parameters == cost.parameters
        assert twice.flops == 2 * cost.flops
        assert twice.lookups == 2 * cost.lookups
        assert twice.bytes > cost.bytes
