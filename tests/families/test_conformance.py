"""One suite over all families and kernels: a family inherits it by standing in FAMILIES."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import optuna
import pytest
import torch
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.families import FAMILIES, dense
from basis_search.families.protocol import (
    Cost,
    Kernel,
    Params,
    relative_gap,
    spec_from_json,
    spec_hash,
    spec_to_json,
    tolerance,
)
from basis_search.layers.layer import Layer, LayerShape

optuna.logging.set_verbosity(optuna.logging.WARNING)

SHAPES = ((64, 48), (37, 29), (35, 70))  # (in, out): even, odd, widening and not divisible by anything useful
SMALL = (12, 9)
BATCH = 32
ROWS = (1, 3, 7, 16, BATCH - 1, BATCH, BATCH + 1)
SAMPLES = 160
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
SEEDS = (0, 1, 2)

# Rounding has no gradient but zero, which is of no use: these let the input's pass straight through instead, so that
# finite differences do not see it. Their own test says what it is.
STRAIGHT_THROUGH = {"int8"}
# Parameters of hash functions, whose output moves in steps.
STEPS = {"thresholds", "centroids"}

FAST = [(name, kernel) for name, family in FAMILIES.items() for kernel in family.KERNELS[1:]]


def _ids(values: list[tuple[str, Kernel]]) -> list[str]:
    return [f"{name}-{kernel.name}" for name, kernel in values]


@cache
def layer(shape: tuple[int, int], bias: bool = True, dtype: torch.dtype = torch.float32) -> Layer:
    """Correlated inputs with a mean, as layers see them."""
    in_features, out_features = shape
    draw = torch.Generator().manual_seed(in_features * 1000 + out_features)
    mix = torch.randn(in_features, in_features, generator=draw) * torch.linspace(1, 0.1, in_features)
    x = torch.randn(SAMPLES + 40, in_features, generator=draw) @ mix / in_features**0.5 + 0.2
    return Layer(
        name=f"{out_features}x{in_features}",
        weight=torch.randn(out_features, in_features, generator=draw) / in_features**0.5,
        bias=torch.randn(out_features, generator=draw) if bias else None,
        inputs=x[:SAMPLES],
        held_out=x[SAMPLES:],
        batch=BATCH,
        dtype=dtype,
    )


def sampled(name: str, of: Layer, seed: int) -> tuple[Any, dict[str, Any]]:
    """A spec drawn by optuna, and the parameters it was drawn as."""
    family = FAMILIES[name]
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed)).ask()
    return family.suggest(trial, of, family.Space()), trial.params


@cache
def specs(name: str, shape: tuple[int, int]) -> tuple[Any, ...]:
    """Different specs that the family suggests for a layer of that shape; none where it refuses the layer."""
    found: dict[str, Any] = {}
    for seed in SEEDS:
        try:
            spec, _ = sampled(name, layer(shape), seed)
        except BadInput:
            return ()
        found[spec_hash(name, spec)] = spec
    return tuple(found.values())


@cache
def fitted(name: str, spec: Any, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Params:
    params = FAMILIES[name].fit(spec, layer(shape, dtype=dtype))
    assert params, f"{name} has no parameters"
    return params


def cases(name: str, dtype: torch.dtype) -> Iterator[tuple[Any, tuple[int, int], Params]]:
    """Specs, shapes and parameters; for the dtypes beside float32, one spec a shape."""
    some = False
    for shape in SHAPES:
        for spec in specs(name, shape)[: None if dtype == torch.float32 else 1]:
            some = True
            yield spec, shape, fitted(name, spec, shape, dtype)
    assert some, f"{name} suggests nothing for any of {SHAPES}"


def is_sentence(reason: str) -> bool:
    return len(reason) >= 20 and " " in reason and "\n" not in reason and not reason.endswith(" ")


def inputs(rows: int, in_features: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed + rows)
    return (torch.randn(rows, in_features, generator=draw) + 0.2).to(dtype)


def expected(name: str, spec: Any, params: Params, x: Tensor) -> Tensor:
    """What the reference says, in float64."""
    reference = FAMILIES[name].KERNELS[0]
    return reference.run(spec, reference.pack(spec, params), x.double())


def poison(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Leave NaNs where an output of that shape is likely to be allocated next."""
    for tensor in [torch.full(shape, math.nan, dtype=dtype) for _ in range(4)]:
        del tensor


def check(name: str, kernel: Kernel, spec: Any, params: Params, packed: Any, x: Tensor) -> Tensor:
    """Runs the kernel on x and holds it against the reference."""
    want = expected(name, spec, params, x)
    before = x.clone()
    poison(tuple(want.shape), x.dtype)
    with torch.no_grad():
        y = kernel.run(spec, packed, x)
    assert (y.shape, y.dtype, y.device) == (want.shape, x.dtype, x.device)
    assert torch.equal(x, before), "the kernel changed its input"
    gap = relative_gap(y, want)
    limit = tolerance(x.dtype, x.shape[-1], kernel.growth(spec, params))
    assert gap <= limit, f"{name} {kernel.name} {spec} {tuple(x.shape)} {x.dtype}: gap {gap:.2e} above {limit:.2e}"
    return y


def layouts(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The values of x [rows, in] laid out otherwise."""
    rows, width = x.shape
    buffer = torch.full((rows * width + 1,), math.nan, dtype=x.dtype)
    buffer[1:] = x.flatten()
    yield "unaligned", buffer[1:].view(rows, width)
    yield "transposed", x.T.contiguous().T
    wide = torch.full((rows, 2 * width + 3), math.nan, dtype=x.dtype)
    wide[:, 3 : 3 + width] = x
    yield "columns of a wider tensor", wide[:, 3 : 3 + width]
    strided = torch.full((rows, 2 * width), math.nan, dtype=x.dtype)
    strided[:, ::2] = x
    yield "every other column", strided[:, ::2]
    tall = torch.full((2 * rows, width), math.nan, dtype=x.dtype)
    tall[::2] = x
    yield "every other row", tall[::2]
    yield "one row, repeated", x[:1].expand(rows, width)


# The protocol


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


@pytest.mark.parametrize("name", FAMILIES)
def test_suggest_depends_on_the_trial_alone(name: str) -> None:
    some = False
    for shape in SHAPES:
        for seed in SEEDS[: len(specs(name, shape))]:
            some = True
            spec, drawn = sampled(name, layer(shape), seed)
            space = FAMILIES[name].Space()
            assert isinstance(spec, FAMILIES[name].Spec)
            assert FAMILIES[name].suggest(optuna.trial.FixedTrial(drawn), layer(shape), space) == spec
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


# Fit and cost


@pytest.mark.parametrize("name", FAMILIES)
def test_fit_is_deterministic_and_leaves_the_callers_generator_alone(name: str) -> None:
    shape = next(shape for shape in reversed(SHAPES) if specs(name, shape))
    spec = specs(name, shape)[-1]
    first = fitted(name, spec, shape)
    # Another object, another state of the generators, and held-out rows that no fit may look at.
    other = dataclasses.replace(layer(shape), held_out=torch.full_like(layer(shape).held_out, 1e3))
    torch.manual_seed(99)
    random.seed(99)
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    second = FAMILIES[name].fit(spec, other)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_params_are_finite_plain_tensors_of_the_layer(name: str, dtype: torch.dtype) -> None:
    for spec, shape, params in cases(name, dtype):
        assert params["bias"].shape == (shape[1],)
        assert params["bias"].dtype in (dtype, torch.float32)
        for key, value in params.items():
            assert isinstance(value, Tensor), key
            assert not value.requires_grad, key
            assert value.is_contiguous(), key
            assert bool(torch.isfinite(value).all()), key
        # safetensors refuses tensors that share memory.
        storages = [value.untyped_storage().data_ptr() for value in params.values()]
        assert len(set(storages)) == len(storages), f"{spec} shares memory between parameters"


@pytest.mark.parametrize("name", FAMILIES)
def test_fit_is_better_than_no_layer_at_all(name: str) -> None:
    for spec, shape, params in cases(name, torch.float32):
        x = layer(shape).inputs
        exact = torch.nn.functional.linear(x.double(), layer(shape).weight.double())
        y = expected(name, spec, {key: value for key, value in params.items() if key != "bias"}, x)
        # Removing what any fit gives for free, the mean, from both: the bias may hold some of it.
        error = ((y - y.mean(0)) - (exact - exact.mean(0))).square().sum()
        assert float(error) < 0.95 * float((exact - exact.mean(0)).square().sum()), spec


@pytest.mark.parametrize("name", FAMILIES)
def test_a_layer_without_bias_is_fitted_without_bias(name: str) -> None:
    shape = next(shape for shape in SHAPES if specs(name, shape))
    spec = specs(name, shape)[0]
    params = FAMILIES[name].fit(spec, layer(shape, bias=False))
    assert set(params) == set(fitted(name, spec, shape)) - {"bias"}


@pytest.mark.parametrize("name", FAMILIES)
def test_cost_counts_what_is_stored_and_grows_with_the_batch(name: str) -> None:
    for spec, shape, params in cases(name, torch.float32):
        whole = layer(shape)
        cost = FAMILIES[name].cost(spec, whole)
        assert cost == FAMILIES[name].cost(spec, whole.shape), "cost looks at more than the shape"
        for field in dataclasses.fields(Cost):
            value = getattr(cost, field.name)
            assert type(value) is int, field.name
            assert value >= 0, field.name
        assert cost.flops > 0
        assert cost.bytes >= BATCH * shape[1] * 4, "outputs are written"
        # "parameters: stored values, the bias included"; a lone number says a size.
        assert cost.parameters == sum(value.numel() for value in params.values() if value.ndim > 0), spec
        twice = FAMILIES[name].cost(spec, dataclasses.replace(whole.shape, batch=2 * BATCH))
        assert twice.parameters == cost.parameters
        assert twice.flops == 2 * cost.flops
        assert twice.lookups == 2 * cost.lookups
        assert twice.bytes > cost.bytes


# Kernels


@pytest.mark.parametrize(("name", "kernel"), FAST, ids=_ids(FAST))
def test_kernel_matches_the_reference_on_odd_sizes(name: str, kernel: Kernel) -> None:
    ran = False
    for dtype in DTYPES:
        for spec, shape, params in cases(name, dtype):
            if kernel.refuses(spec, layer(shape, dtype=dtype)) is not None:
                continue
            for given in (params, {key: value for key, value in params.items() if key != "bias"}):
                packed = kernel.pack(spec, given)
                for rows in ROWS:
                    ran = True
                    check(name, kernel, spec, given, packed, inputs(rows, shape[0], dtype))
    if not ran:
        pytest.skip(str(kernel.refuses(spec, layer(shape))))


@pytest.mark.parametrize(("name", "kernel"), FAST, ids=_ids(FAST))
def test_kernel_takes_any_layout_and_leading_dimensions(name: str, kernel: Kernel) -> None:
    for dtype in DTYPES:
        for spec, shape, params in cases(name, dtype):
            if kernel.refuses(spec, layer(shape, dtype=dtype)) is not None:
                continue
            packed = kernel.pack(spec, params)
            x = inputs(BATCH + 1, shape[0], dtype)
            for _, same in layouts(x):
                check(name, kernel, spec, params, packed, same)
            deep = inputs(30, shape[0], dtype).view(2, 3, 5, shape[0])
            y = check(name, kernel, spec, params, packed, deep)
            assert y.shape == (2, 3, 5, shape[1])
            check(name, kernel, spec, params, packed, deep.transpose(0, 2))
            check(name, kernel, spec, params, packed, x[0])
            for empty in ((0, shape[0]), (2, 0, shape[0])):
                with torch.no_grad():
                    y = kernel.run(spec, packed, torch.empty(empty, dtype=dtype))
                assert (y.shape, y.dtype) == ((*empty[:-1], shape[1]), dtype)


@pytest.mark.parametrize(("name", "kernel"), FAST, ids=_ids(FAST))
def test_kernel_takes_parameters_in_training_and_copies_them(name: str, kernel: Kernel) -> None:
    """`StructuredLinear` holds the floating ones as nn.Parameter and may be copied."""
    shape = next(shape for shape in SHAPES if specs(name, shape))
    spec = specs(name, shape)[0]
    if kernel.refuses(spec, layer(shape)) is not None:
        pytest.skip(str(kernel.refuses(spec, layer(shape))))
    params = {
        key: value.clone().requires_grad_(value.is_floating_point()) for key, value in fitted(name, spec, shape).items()
    }
    frozen = {key: value.detach().clone() for key, value in params.items()}
    with torch.no_grad():
        packed = kernel.pack(spec, params)
        check(name, kernel, spec, frozen, packed, inputs(7, shape[0], torch.float32))
    for key, value in params.items():
        assert torch.equal(value, frozen[key]), "pack changed a parameter"
    again = kernel.pack(spec, copy.deepcopy(frozen))
    check(name, kernel, spec, frozen, again, inputs(7, shape[0], torch.float32))


@pytest.mark.parametrize(("name", "kernel"), FAST, ids=_ids(FAST))
def test_kernel_keeps_no_state_between_or_beside_calls(name: str, kernel: Kernel) -> None:
    shape = next(shape for shape in SHAPES if specs(name, shape))
    spec = specs(name, shape)[-1]
    if kernel.refuses(spec, layer(shape)) is not None:
        pytest.skip(str(kernel.refuses(spec, layer(shape))))
    params = fitted(name, spec, shape)
    packed = kernel.pack(spec, params)
    y = check(name, kernel, spec, params, packed, inputs(16, shape[0], torch.float32))
    kept = y.clone()
    check(name, kernel, spec, params, packed, inputs(16, shape[0], torch.float32, seed=1))
    assert torch.equal(y, kept), "a later call overwrote an earlier result"
    several = [inputs(16 + i % 3, shape[0], torch.float32, seed=i) for i in range(24)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: kernel.run(spec, packed, x), several))
    for x, got in zip(several, results, strict=True):
        want = expected(name, spec, params, x)
        assert relative_gap(got, want) <= tolerance(x.dtype, shape[0], kernel.growth(spec, params))


@pytest.mark.parametrize(("name", "kernel"), FAST, ids=_ids(FAST))
def test_kernel_on_several_threads(name: str, kernel: Kernel) -> None:
    shape = next(shape for shape in reversed(SHAPES) if specs(name, shape))
    threads = torch.get_num_threads()
    for spec in specs(name, shape):
        if kernel.refuses(spec, layer(shape)) is not None:
            pytest.skip(str(kernel.refuses(spec, layer(shape))))
        params = fitted(name, spec, shape)
        try:
            for count in (2, 3):
                torch.set_num_threads(count)
                packed = kernel.pack(spec, params)
                for rows in (1, BATCH + 1, 515):
                    check(name, kernel, spec, params, packed, inputs(rows, shape[0], torch.float32))
        finally:
            torch.set_num_threads(threads)


@pytest.mark.parametrize(("name", "kernel"), FAST, ids=_ids(FAST))
def test_a_kernel_that_refuses_says_why(name: str, kernel: Kernel) -> None:
    shape = next(shape for shape in SHAPES if specs(name, shape))
    for spec in specs(name, shape):
        for dtype in (*DTYPES, torch.float16):
            for device in ("cpu", "cuda", "meta"):
                of = LayerShape(*shape, BATCH, dtype, torch.device(device))
                reason = kernel.refuses(spec, of)
                assert reason is None or is_sentence(reason), reason
                if reason is not None:
                    assert kernel.refuses(spec, of) == reason
        if kernel.name.startswith("cpu"):
            assert kernel.refuses(spec, LayerShape(*shape, BATCH, device=torch.device("cuda"))) is not None


@pytest.mark.parametrize("name", FAMILIES)
def test_reference_returns_the_input_dtype_and_torch_never_refuses_float32(name: str) -> None:
    family = FAMILIES[name]
    reference, plain = family.KERNELS[0], next(kernel for kernel in family.KERNELS if kernel.name == "torch")
    for spec, shape, params in cases(name, torch.float32):
        for dtype in DTYPES:
            y = reference.run(spec, reference.pack(spec, params), inputs(3, shape[0], dtype))
            assert y.dtype == dtype
        assert reference.refuses(spec, layer(shape)) is None
        assert plain.refuses(spec, layer(shape)) is None
        assert math.isfinite(plain.growth(spec, params))
        assert plain.growth(spec, params) >= 1


DIFFERENTIABLE = [
    (name, kernel) for name, family in FAMILIES.items() for kernel in family.KERNELS if kernel.differentiable
]


def run_with(kernel: Kernel, spec: Any, params: Params, names: list[str], x: Tensor, *values: Tensor) -> Tensor:
    return kernel.run(spec, kernel.pack(spec, {**params, **dict(zip(names, values, strict=True))}), x)


@pytest.mark.parametrize(("name", "kernel"), DIFFERENTIABLE, ids=_ids(DIFFERENTIABLE))
def test_gradients_agree_with_finite_differences(name: str, kernel: Kernel) -> None:
    shape = SMALL if specs(name, SMALL) else next(shape for shape in reversed(SHAPES) if specs(name, shape))
    of = layer(shape, dtype=torch.float64)
    for spec in specs(name, shape)[:2]:
        if kernel.refuses(spec, of) is not None:
            pytest.skip(str(kernel.refuses(spec, of)))
        params = fitted(name, spec, shape, torch.float64)
        floating = [key for key, value in params.items() if value.dtype == torch.float64]
        assert "bias" in floating

        run = partial(run_with, kernel, spec, params, floating)
        x = inputs(3, shape[0], torch.float64).requires_grad_(name not in STRAIGHT_THROUGH)
        values = [params[key].clone().requires_grad_(True) for key in floating]
        assert torch.autograd.gradcheck(run, (x, *values), fast_mode=True)
        # A kernel cut off from a parameter would agree with nothing to differ from.
        reached = torch.autograd.grad(run(x, *values).square().sum(), values, allow_unused=True)
        assert all(
            grad is not None and bool((grad != 0).any())
            for key, grad in zip(floating, reached, strict=True)
            if key not in STEPS
        )


# The suite itself: each of these kernels is wrong in one way


def _altered(change: Any) -> Kernel:
    plain = dense.KERNELS[1]
    return dataclasses.replace(plain, run=lambda spec, packed, x: change(plain.run(spec, packed, x)))


@pytest.mark.parametrize(
    "wrong",
    [
        _altered(lambda y: torch.empty_like(y)),
        _altered(lambda y: torch.cat([y[:-1], torch.zeros_like(y[-1:])])),
        _altered(lambda y: y * (1 + 1e-4)),
        _altered(lambda y: y.bfloat16().to(y.dtype)),
        _altered(lambda y: y.double()),
        _altered(lambda y: y[None]),
    ],
    ids=["writes nothing", "drops a row", "scaled", "loses digits", "wrong dtype", "wrong shape"],
)
def test_the_suite_catches_a_wrong_kernel(wrong: Kernel) -> None:
    shape = SHAPES[1]
    (spec,) = specs("dense", shape)
    params = fitted("dense", spec, shape)
    x = inputs(BATCH + 1, shape[0], torch.float32)  # above what malloc keeps in its smallest bins
    check("dense", dense.KERNELS[1], spec, params, params, x)
    with pytest.raises(AssertionError):
        check("dense", wrong, spec, params, params, x)
