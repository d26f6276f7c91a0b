"""Weight-only quantised layers: torch's layout of 4-bit codes, weights on the grid, clipping, limits on rows."""

from __future__ import annotations

import dataclasses
import sys

import optuna
import pytest
import torch
from conformance import layer, relative_gap
from pretend_cuda import FakeCuda

from basis_search.errors import BadInput
from basis_search.families import dense, weight_only
from basis_search.families.weight_only.layout import dequantised, join_halves, split_halves
from basis_search.layers.layer import LayerShape

pytestmark = pytest.mark.fast

KERNELS = {kernel.name: kernel for kernel in weight_only.KERNELS}


def test_four_bit_codes_have_the_meaning_that_torch_gives_them() -> None:
    """By torch's operator for CPUs, whose scales and zero points are those of the one for GPUs."""
    of, spec = layer((64, 48), bias=False, dtype=torch.bfloat16), weight_only.Spec(4, 32)
    params = weight_only.fit(spec, of)
    codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu(split_halves(params["weight"]).int(), 1)
    scales = torch.stack([params["scale"].t(), params["zero"].t()], -1).contiguous()  # [groups, out, 2], as packed
    x = of.inputs.bfloat16()
    y = torch.ops.aten._weight_int4pack_mm_for_cpu(x, codes, 32, scales)
    assert relative_gap(y, KERNELS["reference"].run(spec, params, x.double())) < 4e-3


def test_halves_of_bytes_are_split_as_they_were_joined() -> None:
    codes = torch.randint(0, 16, (5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    joined = join_halves(codes)
    assert joined.shape == (5, 4)
    assert torch.equal(split_halves(joined)[:, :7], codes)
    assert int(joined[0, 0]) == 16 * int(codes[0, 0]) + int(codes[0, 1])


@pytest.mark.parametrize("spec", [weight_only.Spec(8), weight_only.Spec(4, 32)])
def test_weights_on_the_grid_are_recovered_exactly(spec: weight_only.Spec) -> None:
    draw = torch.Generator().manual_seed(0)
    if spec.bits == 8:
        codes = torch.randint(-127, 128, (12, 70), generator=draw).float()
        codes[:, 3] = 127
    else:
        codes = torch.randint(0, 16, (12, 70), generator=draw).float() - 8
        codes[:, ::32], codes[:, 1::32] = -8, 7  # each group has its range's ends
    weight = codes * 2.0 ** torch.arange(-6, 6)[:, None]
    if spec.bits == 4:
        weight = weight + torch.arange(12)[:, None] / 4
    of = dataclasses.replace(layer((70, 12), bias=False), weight=weight)
    assert torch.equal(dequantised(spec, weight_only.fit(spec, of), torch.float32)[:, :70], weight)


def test_a_clipped_range_lessens_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    of, spec = layer((64, 48), bias=False), weight_only.Spec(4, 64)
    power = of.second_moment.diagonal().float()

    def error() -> float:
        weight = dequantised(spec, weight_only.fit(spec, of), torch.float32)
        return float((power * (weight - of.weight).square()).sum())

    clipped = error()
    monkeypatch.setattr(sys.modules[weight_only.fit.__module__], "SHRINKS", (1.0,))
    assert clipped < 0.95 * error()


def test_eight_bits_run_on_the_double_and_never_wait(fake_cuda: FakeCuda) -> None:
    of, spec = layer((64, 48), dtype=torch.bfloat16).to("cuda").on_device(), weight_only.Spec(8)
    kernel = KERNELS["int8pack"]
    assert kernel.refuses(spec, of) is None
    params = weight_only.fit(spec, of)
    packed, x = kernel.pack(spec, params), of.inputs.to(of.dtype)
    with torch.no_grad(), fake_cuda.synchronization_raises():
        y = kernel.run(spec, packed, x)
    assert relative_gap(y, KERNELS["reference"].run(spec, params, x.double())) < 4e-3
    # The operator for 4 bits has no CPU version, which the first run finds out.
    assert "_weight_int4pack_mm does not run here" in (KERNELS["int4pack"].refuses(weight_only.Spec(4, 32), of) or "")


def test_only_what_runs_is_suggested_and_only_for_few_rows(fake_cuda: FakeCuda) -> None:
    of, space = layer((64, 48), dtype=torch.bfloat16).to("cuda").on_device(), weight_only.Space()
    asked = {weight_only.suggest(optuna.trial.FixedTrial({"bits": 8}), of, space)}
    assert asked == {weight_only.Spec(8)}
    with pytest.raises(BadInput, match="a call of 65 rows takes as long as its operations"):
        weight_only.suggest(optuna.trial.FixedTrial({}), dataclasses.replace(of, batch=65), space)


@pytest.mark.parametrize(
    ("name", "spec", "shape", "reason"),
    [
        ("int8pack", (8, 0), LayerShape(64, 64), "the layer is on cpu"),
        ("int8pack", (4, 32), LayerShape(64, 64, 1, torch.bfloat16, torch.device("cuda")), "the spec has 4"),
        ("int4pack", (4, 32), LayerShape(64, 64, 1, torch.float16, torch.device("cuda")), "used in bfloat16, but"),
        ("int4pack", (4, 64), LayerShape(96, 64, 1, torch.bfloat16, torch.device("cuda")), "group of 64"),
    ],
)
def test_refusals_name_the_limit(name: str, spec: tuple[int, int], shape: LayerShape, reason: str) -> None:
    assert reason in (KERNELS[name].refuses(weight_only.Spec(*spec), shape) or "")


@pytest.mark.parametrize("wrong", [(3, 0), (8, 32), (4, 0), (4, 48), (True, 0), (8, False)])
def test_other_bits_and_groups_are_refused(wrong: tuple[int, int]) -> None:
    with pytest.raises(BadInput, match=r"weight_only: (bits|group) is"):
        weight_only.Spec(*wrong)


def test_bytes_fall_to_a_half_and_to_a_quarter_and_more() -> None:
    shape = LayerShape(4096, 4096, 1, torch.bfloat16)
    full = dense.cost(dense.Spec(), shape).bytes
    assert weight_only.cost(weight_only.Spec(8), shape).bytes < 0.51 * full
    assert weight_only.cost(weight_only.Spec(4, 128), shape).bytes < 0.27 * full
