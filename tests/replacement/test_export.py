"""StructuredLinear and its exported directories: round trips, damaged and hostile files."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from small_specs import SPECS
from torch import nn

import basis_search as bs


def a_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 5))


def an_input(rows: int = 64) -> torch.Tensor:
    return torch.randn(rows, 12, generator=torch.Generator().manual_seed(5))


def structured(family: str) -> nn.Sequential:
    model = a_model()
    layer = bs.capture(model, [an_input(256), an_input(256)])["0"]
    model[0] = bs.fit(layer, family, SPECS[family])
    return model.eval()


@pytest.mark.parametrize("family", SPECS)
def test_save_and_load_give_the_same_outputs(family: str, tmp_path: Path) -> None:
    model, x = structured(family), an_input()
    bs.save_pretrained(model, tmp_path)
    fresh = a_model().eval()
    with torch.no_grad():
        fresh[3].weight.zero_()  # must come back from the directory
        bs.load_pretrained(fresh, tmp_path)
        assert torch.equal(fresh(x), model(x))
    assert fresh[0].spec == model[0].spec


@pytest.mark.parametrize("family", SPECS)
def test_the_module_behaves_like_any_other(family: str) -> None:
    model, x = structured(family), an_input()
    module = model[0]
    assert (module.in_features, module.out_features) == (12, 16)
    assert module.bias.shape == (16,)
    with torch.no_grad():
        expected = module(x)
        assert torch.equal(copy.deepcopy(module)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(module))(x), expected)
        twin = structured(family)[0]
        twin.load_state_dict(module.state_dict())
        assert torch.equal(twin(x), expected)
        assert module(x.view(4, 4, 4, 12)).shape == (4, 4, 4, 16)
        assert module(x[:0]).shape == (0, 16)
        module.use("reference")
        assert module.kernel == "reference"
        torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)
        module.use(None)
        assert module.kernel != "reference"
    with pytest.raises(bs.BadInput, match="did you mean 'reference'"):
        module.use("refrence")
    with pytest.raises(bs.BadInput, match="11 features, but this layer takes 12"):
        module(x[:, :11])


@pytest.mark.parametrize("family", SPECS)
def test_training_steps_change_what_later_calls_return(family: str) -> None:
    """Parameters are packed again after an optimiser's step, and gradients lower the loss."""
    model, x = structured(family), an_input()
    target = torch.randn(64, 5, generator=torch.Generator().manual_seed(6))
    optimizer = torch.optim.SGD([p for p in model[0].parameters() if p.requires_grad], lr=1e-2)
    losses, outputs = [], []
    for _ in range(30):
        with torch.no_grad():
            outputs.append(model(x))
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert not torch.equal(outputs[0], outputs[-1])


def test_to_linear_gives_the_equal_dense_layer_or_refuses() -> None:
    x = an_input().double()
    for family in ("dense", "lowrank", "kronecker", "stl"):
        module = structured(family).double()[0]
        with torch.no_grad():
            # The fit rounds an exact scheme's weights to float32.
            torch.testing.assert_close(module.to_linear()(x), module.use("reference")(x), rtol=1e-5, atol=1e-6)
    for module in (structured("pq")[0], bs.StructuredLinear.from_linear(
        nn.Linear(8, 8), "stl", bs.stl.Spec(tile=4, rank=24), torch.randn(64, 8)
    )):  # fmt: skip
        with pytest.raises(bs.BadInput, match="no linear map of each row"):
            module.to_linear()


def test_apply_refuses_and_leaves_the_model_unchanged(tmp_path: Path) -> None:
    model = structured("lowrank")
    bs.save_pretrained(model, tmp_path)
    other = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.LayerNorm(20), nn.Linear(20, 5))
    with pytest.raises(bs.BadInput, match="layer '0' is 12 -> 20, but the replacement is 12 -> 16"):
        bs.apply_(other, tmp_path)
    with pytest.raises(bs.BadInput, match="no linear layer '0'"):
        bs.apply_(nn.ModuleDict({"1": nn.Linear(12, 16)}), tmp_path)
    assert isinstance(other[0], nn.Linear)
    narrow = a_model()
    narrow[3] = nn.Linear(16, 4)
    with pytest.raises(bs.BadInput, match=r"3\.\w+ has shape \(5"):
        bs.load_pretrained(narrow, tmp_path)
    assert isinstance(narrow[0], nn.Linear)
    with pytest.raises(bs.BadInput, match="no StructuredLinear"):
        bs.save_pretrained(a_model(), tmp_path / "x")


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"schema_version": 2}, "schema version 2, but this basis_search reads up to 1"),
        ({"schema_version": True}, "schema_version True"),
        ({"format": "pickle"}, "not written by basis_search"),
        ({"family": "lowrnk"}, "did you mean 'lowrank'"),
        ({"in_features": 2**60}, "1 to 16777216 is allowed"),
        ({"out_features": -1}, "1 to 16777216 is allowed"),
        ({"out_features": "16"}, "int is needed"),
        ({"bias": False}, "the tensors file disagrees"),
        ({"dtype": "os"}, "torch does not have"),
        ({"spec": {"rank": 3, "_target_": "os.system"}}, "no field '_target_'"),
        ({"spec": []}, "dict is needed"),
        ({"tensors": "../../etc/passwd"}, "does not lie in"),
        ({"sha256": "0" * 64}, "cut or edited"),
    ],
)
def test_hostile_configs_are_refused(tmp_path: Path, fields: dict[str, Any], sentence: str) -> None:
    bs.save_pretrained(structured("lowrank"), tmp_path)
    change(tmp_path / "0.json", **fields)
    model = a_model()
    with pytest.raises(bs.BadInput, match=sentence):
        bs.load_pretrained(model, tmp_path)
    assert isinstance(model[0], nn.Linear)


@pytest.mark.parametrize(
    ("family", "spec"),
    [
        ("lowrank", {"rank": 4}),
        ("stl", {"tile": 2, "rank": 6, "basis": "approximate"}),
        ("kronecker", {"chain": "(1,4,2,4)*(2,4,6,1)"}),
        ("pq", {"codebooks": 4}),
    ],
)
def test_tensors_of_another_spec_are_refused(family: str, spec: dict[str, Any], tmp_path: Path) -> None:
    bs.save_pretrained(structured(family), tmp_path)
    change(tmp_path / "0.json", spec=spec)
    with pytest.raises(bs.BadInput, match="do not fit its spec"):
        bs.load_pretrained(a_model(), tmp_path)


def test_truncated_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(bs.BadInput, match=r"holds no basis_search\.json"):
        bs.load_pretrained(a_model(), tmp_path)
    bs.save_pretrained(structured("pq"), tmp_path)
    tensors = tmp_path / "0.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:100])
    with pytest.raises(bs.BadInput, match="cut or edited"):
        bs.load_pretrained(a_model(), tmp_path)
    tensors.unlink()
    with pytest.raises(bs.BadInput, match="is missing"):
        bs.load_pretrained(a_model(), tmp_path)
    tensors.write_bytes(whole)
    index = tmp_path / "basis_search.json"
    good = json.loads(index.read_text())
    for text, sentence in (("{", "is not JSON"), ("[1]", "not written by"), ("[" * 100_000, "is nested too deeply"),
                           (json.dumps({**good, "layers": ["../0.json"]}), "plain file"),
                           ('{"a": NaN}', "NaN is not allowed")):  # fmt: skip
        index.write_text(text)
        with pytest.raises(bs.BadInput, match=sentence):
            bs.load_pretrained(a_model(), tmp_path)


def test_odd_layer_names_stay_in_their_directory(tmp_path: Path) -> None:
    from basis_search.files import file_name

    for name in ("a/b", "..", ".", "", "../../x", "blocks.0.fc1", "ä ö", "~root"):
        made = tmp_path / file_name(name, ".json")
        assert made.parent == tmp_path
        assert made.name not in (".", "..", ".json")
    assert len({file_name(n, "") for n in ("a/b", "a%2Fb", "a.b", ".a", "%2Ea")}) == 5


def test_a_plan_is_applied_saved_and_loaded(tmp_path: Path) -> None:
    model, x = a_model().eval(), an_input()
    layers = bs.capture(model, [an_input(256)])
    fronts = {layer.name: bs.search(layer, ("dense", "lowrank"), trials=3) for layer in layers}
    plan = bs.plan(fronts, {"flops": 0.9, "latency": math.inf})
    replaced = bs.apply_(copy.deepcopy(model), plan)
    bs.save_plan(plan, tmp_path)
    loaded = bs.load_pretrained(a_model().eval(), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), replaced(x))
    stripped = bs.Plan.from_json(plan.to_json())
    with pytest.raises(bs.BadInput, match="does not hold the captured layer"):
        bs.apply_(copy.deepcopy(model), stripped)
    bs.apply_(copy.deepcopy(model), stripped, layers)
    torch.manual_seed(1)
    others = bs.capture(nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 5)), [x])
    with pytest.raises(bs.BadInput, match="not the one the plan was made for"):
        bs.apply_(copy.deepcopy(model), stripped, others)


def test_bfloat16_models_keep_their_dtype(tmp_path: Path) -> None:
    model = a_model().bfloat16()
    layer = bs.capture(model, [an_input(64).bfloat16()])["0"]
    for family, spec in SPECS.items():
        module = bs.fit(layer, family, spec)
        with torch.no_grad():
            assert module(an_input(8).bfloat16()).dtype == torch.bfloat16, family
